"""What was learned of availability outlives the process: from the file, from the store, and whatever either holds."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.adapters.state_file import StateFile
from coordinator.core import Core
from coordinator.errors import StoreUnavailable
from coordinator.events import PlugHistory
from coordinator.memory import AvailabilityMemory

HOUR_MS = 3_600_000
NOW_MS = 1_760_000_000_000 // HOUR_MS * HOUR_MS


class Store:
    """What a store remembers, and what it was asked for."""

    def __init__(self, *readings: tuple[str, int, int]) -> None:
        self.readings = readings
        self.asked: list[int] = []

    async def __call__(self, since_ms: int) -> PlugHistory:
        self.asked.append(since_ms)
        kept = [reading for reading in self.readings if reading[1] >= since_ms]
        vehicle, received_ms, plugged = zip(*kept, strict=True) if kept else ((), (), ())
        return PlugHistory(
            np.array(vehicle, dtype=object), np.array(received_ms, dtype=np.int64), np.array(plugged, dtype=np.int8)
        )


LIVED = (("a", NOW_MS, 1), ("a", NOW_MS + HOUR_MS, 0))


async def test_at_first_it_learns_from_the_store(tmp_path: Path) -> None:
    core, store = Core(), Store(*LIVED)
    await AvailabilityMemory(core, StateFile(tmp_path / "a.npz"), store).recall(NOW_MS + 2 * HOUR_MS)
    assert store.asked == [NOW_MS + 2 * HOUR_MS - 28 * 24 * HOUR_MS]
    assert core.foresight.model.fleet.minutes.sum() == pytest.approx(60)
    assert not core.refusals


async def test_later_it_goes_on_from_the_file_and_what_was_heard_since(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a.npz")
    first = AvailabilityMemory(Core(), file, Store(*LIVED))
    await first.recall(NOW_MS + 2 * HOUR_MS)
    await first.save()
    core, store = Core(), Store(*LIVED, ("a", NOW_MS + 2 * HOUR_MS, 0))
    await AvailabilityMemory(core, file, store).recall(NOW_MS + 3 * HOUR_MS)
    assert store.asked == [NOW_MS + HOUR_MS]
    fleet = core.foresight.model.fleet
    assert (fleet.minutes.sum(), fleet.unplugged.sum(), fleet.away_minutes.sum()) == pytest.approx((60, 1, 60))


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
async def test_a_damaged_file_is_said_and_learned_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    core = Core()
    await AvailabilityMemory(core, StateFile(tmp_path / "a.npz"), Store(*LIVED)).recall(NOW_MS + 2 * HOUR_MS)
    assert core.refusals == {"availability_unreadable": 1}
    assert core.foresight.model.fleet.unplugged.sum() == 1
    assert capsys.readouterr().err.count("\n") == 1


async def test_neither_file_nor_store_is_needed_to_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def away(since_ms: int) -> PlugHistory:
        raise StoreUnavailable("telemetry_unavailable", "the server is away")

    core = Core()
    memory = AvailabilityMemory(core, StateFile(tmp_path), away)  # a folder
    await memory.recall(NOW_MS)
    await memory.save()
    await memory.save()
    assert core.refusals == {"availability_unreadable": 1, "availability_unlearned": 1, "availability_unsaved": 2}
    assert capsys.readouterr().err.count("\n") == 3


async def test_it_saves_now_and_then(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a.npz")
    saving = asyncio.create_task(AvailabilityMemory(Core(), file, Store()).keep_saving(0.01))
    async with asyncio.timeout(60):
        for _ in range(2):
            while file.read() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            (tmp_path / "a.npz").unlink()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving


def test_a_file_is_whole_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "state"
    writer = (
        "import sys, pathlib\n"
        "from coordinator.adapters.state_file import StateFile\n"
        "file = StateFile(pathlib.Path(sys.argv[1]))\n"
        "while True:\n"
        "    for letter in (b'a', b'b'):\n"
        "        file.write(letter * 3_000_000)\n"
        "        print('written', flush=True)\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(4):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        child.wait(60)
        child.stdout.close()
        data = StateFile(path).read()
        assert data in {b"a" * 3_000_000, b"b" * 3_000_000}
