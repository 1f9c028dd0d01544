"""The month's bytes: a count that never loses any, not by a kill nor by a clock that is set back."""

from pathlib import Path

import pytest

from vehicle_agent.month_bytes import MonthBytes

MIB = 1 << 20
MAY_MS, JUNE_MS = 1_778_000_000_000, 1_780_272_000_000  # the second is the first of June 2026, 00:00 UTC


def test_it_counts_a_month_and_begins_again_with_the_next(tmp_path: Path) -> None:
    counter = MonthBytes.open(tmp_path / "bytes")
    counts = [counter.add(count, now) for count, now in ((5, MAY_MS), (7, JUNE_MS - 1), (2, JUNE_MS), (0, JUNE_MS))]
    assert counts == [5, 12, 2, 2]


def test_it_goes_on_after_an_end_and_after_a_kill(tmp_path: Path) -> None:
    counter = MonthBytes.open(tmp_path / "bytes")
    counter.add(5, MAY_MS)
    counter.close()
    counter = MonthBytes.open(tmp_path / "bytes")
    assert counter.add(3 * MIB, MAY_MS) == 5 + 3 * MIB
    killed = MonthBytes.open(tmp_path / "bytes")
    assert 5 + 3 * MIB <= killed.add(0, MAY_MS) <= 5 + 4 * MIB


def test_the_disk_is_never_behind(tmp_path: Path) -> None:
    counter, total = MonthBytes.open(tmp_path / "bytes"), 0
    for count in (0, 1, MIB - 1, 1, 1, 5 * MIB, 0):
        total += count
        assert counter.add(count, MAY_MS) == total
        assert MonthBytes.open(tmp_path / "bytes").add(0, MAY_MS) >= total


def test_a_clock_that_is_set_back_does_not_end_the_month(tmp_path: Path) -> None:
    counter = MonthBytes.open(tmp_path / "bytes")
    counter.add(5, JUNE_MS)
    assert counter.add(1, 0) == 6
    assert counter.add(1, JUNE_MS) == 7


@pytest.mark.parametrize("text", ["", "2026-05", "2026-05 x", "2026-05 1 2"])
def test_what_we_did_not_write_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "bytes").write_text(text)
    assert MonthBytes.open(tmp_path / "bytes").add(1, MAY_MS) == 1


def test_nothing_counted_is_nothing_written(tmp_path: Path) -> None:
    MonthBytes.open(tmp_path / "bytes").close()
    assert not (tmp_path / "bytes").exists()
