"""The month's bytes: a count that never loses any, not by a kill nor by a clock that is set back."""

from collections import Counter
from pathlib import Path

import pytest

from vehicle_agent.month_bytes import MonthBytes

MIB = 1 << 20
SPENT = 1 << 53  # the most that a budget can be
MAY_MS, JUNE_MS = 1_778_000_000_000, 1_780_272_000_000  # the second is the first of June 2026, 00:00 UTC


def opened(folder: Path, counters: Counter[str] | None = None) -> MonthBytes:
    return MonthBytes.open(folder / "bytes", Counter() if counters is None else counters)


def test_it_counts_a_month_and_begins_again_with_the_next(tmp_path: Path) -> None:
    counter = opened(tmp_path)
    counts = [counter.add(count, now) for count, now in ((5, MAY_MS), (7, JUNE_MS - 1), (2, JUNE_MS), (0, JUNE_MS))]
    assert counts == [5, 12, 2, 2]


def test_it_goes_on_after_an_end_and_after_a_kill(tmp_path: Path) -> None:
    counter = opened(tmp_path)
    counter.add(5, MAY_MS)
    counter.close()
    counter = opened(tmp_path)
    assert counter.add(3 * MIB, MAY_MS) == 5 + 3 * MIB
    killed = opened(tmp_path)
    assert 5 + 3 * MIB <= killed.add(0, MAY_MS) <= 5 + 4 * MIB


def test_the_disk_is_never_behind(tmp_path: Path) -> None:
    counter, total = opened(tmp_path), 0
    for count in (0, 1, MIB - 1, 1, 1, 5 * MIB, 0):
        total += count
        assert counter.add(count, MAY_MS) == total
        assert opened(tmp_path).add(0, MAY_MS) >= total


def test_a_clock_that_is_set_back_does_not_end_the_month(tmp_path: Path) -> None:
    counter = opened(tmp_path)
    counter.add(5, JUNE_MS)
    assert counter.add(1, 0) == 6
    assert counter.add(1, JUNE_MS) == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"2026-05",
        b"2026-05 x",
        b"2026-05 1 2",
        b"2026-05 -1",
        b"may 1",
        b"\xff\xfe 1",
        b"\0" * 10,
        b"2026-05 1" + b"0" * 5000,
    ],
)
def test_what_cannot_be_read_counts_as_spent_until_the_next_month(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bytes").write_bytes(data)
    counters: Counter[str] = Counter()
    counter = opened(tmp_path, counters)
    assert counter.add(1, MAY_MS) == SPENT
    assert counters == {"month_bytes_unreadable": 1}
    again = opened(tmp_path, counters)  # a restart is no way round it
    assert again.add(1, MAY_MS) == SPENT
    assert again.add(3, JUNE_MS) == 3
    assert counters == {"month_bytes_unreadable": 1}


def test_a_file_that_the_system_does_not_give_counts_as_spent_too(tmp_path: Path) -> None:
    (tmp_path / "bytes").symlink_to("bytes")
    assert opened(tmp_path).add(1, MAY_MS) == SPENT
    assert opened(tmp_path).add(1, MAY_MS) == SPENT


def test_nothing_counted_is_nothing_written(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert not (tmp_path / "bytes").exists()


def test_a_disk_that_takes_nothing_at_the_end_is_ahead_still_and_holds_nobody_up(tmp_path: Path) -> None:
    counter = opened(tmp_path)
    counter.add(5, MAY_MS)
    (tmp_path / "bytes.new").mkdir()  # nothing can be written there, by root either
    counter.close()
    assert opened(tmp_path).add(0, MAY_MS) == 5 + MIB
