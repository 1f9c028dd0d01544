"""The spill log: whatever byte a file is cut off at, every whole frame before it comes back, and none is made up."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.adapters.influx_spill import SpillLog, read_frames

BODIES = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8)


def everything(log: SpillLog) -> list[bytes]:
    found = []
    while bodies := log.first(3):
        found += bodies
        log.taken(len(bodies))
    return found


@given(BODIES, st.data())
def test_a_file_cut_off_anywhere(bodies: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        log = SpillLog(Path(folder))
        log.open()
        for body in bodies:
            log.append([body])
        log.close()
        (file,) = Path(folder).glob("*.spill")
        whole = file.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        file.write_bytes(whole[:cut])
        again = SpillLog(Path(folder))
        again.open()
        kept = everything(again)
        assert kept == bodies[: len(kept)]
        assert len(kept) == sum(8 * n + sum(map(len, bodies[:n])) <= cut for n in range(1, len(bodies) + 1))
        assert again.lines == 0
        assert not list(Path(folder).glob("*.spill"))
        assert not list(Path(folder).glob("*.damaged"))  # it was only broken off


@given(BODIES, st.data())
def test_a_byte_that_changed_is_found(bodies: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        log = SpillLog(Path(folder))
        log.open()
        log.append(bodies)
        log.close()
        (file,) = Path(folder).glob("*.spill")
        whole = bytearray(file.read_bytes())
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        kept, end = read_frames(bytes(whole))
        assert kept == bodies[: len(kept)]
        assert len(kept) < len(bodies)
        assert end < len(whole)


@given(st.lists(st.one_of(BODIES, st.integers(1, 5), st.just("again")), max_size=30))
def test_first_in_first_out_over_restarts(steps: list[list[bytes] | int | str]) -> None:
    with TemporaryDirectory() as folder:
        log = SpillLog(Path(folder), segment_bytes=100)
        log.open()
        waiting: list[bytes] = []
        taken: list[bytes] = []
        for step in steps:
            if isinstance(step, list):
                log.append(step)
                waiting += step
            elif isinstance(step, int):
                bodies = log.first(step)
                assert bodies == waiting[: len(bodies)]
                log.taken(len(bodies))
                taken += waiting[: len(bodies)]
                waiting = waiting[len(bodies) :]
            else:
                log.close()
                log = SpillLog(Path(folder), segment_bytes=100)
                log.open()
                # What was taken of the first segment comes again, and nothing else.
                came = [
                    body for each in sorted(Path(folder).glob("*.spill")) for body in read_frames(each.read_bytes())[0]
                ]
                assert came[len(came) - len(waiting) :] == waiting
                assert came[: len(came) - len(waiting)] == taken[len(taken) - (len(came) - len(waiting)) :]
                waiting = came
            assert log.lines == sum(body.count(b"\n") + 1 for body in waiting)
        assert everything(log) == waiting
        log.close()


def test_a_full_log_takes_nothing_more(tmp_path: Path) -> None:
    log = SpillLog(tmp_path, most_bytes=100)
    log.open()
    log.append([b"a 1 1000000"])
    with pytest.raises(OSError, match="limit") as raised:
        log.append([b"b" * 100])
    assert raised.value.errno == errno.ENOSPC
    log.append([b"c 1 2000000"])
    assert log.oldest_ms == 1
    assert everything(log) == [b"a 1 1000000", b"c 1 2000000"]


def test_a_write_that_failed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SpillLog(tmp_path)
    log.open()
    log.append([b"a"])

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append([b"b"])
    log.append([b"c"])
    assert everything(log) == [b"a", b"c"]


def test_a_new_file_that_the_folder_could_not_take_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SpillLog(tmp_path)
    log.open()

    def full(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="Input/output"):
            log.append([b"a"])
    log.append([b"b"])
    assert everything(log) == [b"b"]
