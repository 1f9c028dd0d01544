"""The slow disk of the fault harness: commits of a real process take longer, and afterwards all is as before."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.system.chaos.slow_disk import require_strace, slow_disk
from tests.system.deployment import until

SYNC_MS = 150
# Says how long each commit took, in milliseconds.
COMMITTER = """
import sqlite3, sys, time
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE IF NOT EXISTS rows (n)")
while True:
    begun = time.monotonic()
    ledger.execute("INSERT INTO rows VALUES (1)")
    print((time.monotonic() - begun) * 1000, flush=True)
    time.sleep(0.01)
"""


@asynccontextmanager
async def committing(ledger: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", COMMITTER, str(ledger), stdout=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def commit_ms(process: Process) -> float:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return float(await process.stdout.readline())


def status(process: Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def tracers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if each.name() == "strace"]


@pytest.fixture(autouse=True)
def strace() -> None:
    require_strace()


async def test_commits_wait_for_the_disk_and_afterwards_do_not(tmp_path: Path) -> None:
    async with committing(tmp_path / "ledger") as process:
        await commit_ms(process)
        slow = asyncio.create_task(slow_disk(lambda: [process.pid], 2.0, SYNC_MS, tmp_path / "log", {}))
        while not slow.done() and await commit_ms(process) < SYNC_MS:
            pass
        held_up, complaint = await slow
        if "not permitted" in complaint:
            pytest.skip(f"tracing is not allowed here: {complaint}")
        assert held_up > 0
        assert complaint == ""
        assert status(process)["TracerPid"] == "0"
        assert tracers() == []
        while await commit_ms(process) > SYNC_MS:  # those from before are read first
            pass


async def test_a_pause_is_one_and_what_follows_a_kill_has_the_same_disk(tmp_path: Path) -> None:
    async with committing(tmp_path / "one") as process, committing(tmp_path / "other") as other:
        now = process
        slow = asyncio.create_task(slow_disk(lambda: [now.pid], 60.0, SYNC_MS, tmp_path / "log", {}))
        await until(lambda: slow.done() or status(process)["TracerPid"] != "0", "it is traced")
        if slow.done():
            pytest.skip(f"tracing is not allowed here: {slow.result()}")
        process.send_signal(signal.SIGSTOP)
        await until(lambda: status(process)["State"].partition(" ")[0] in {"t", "T"}, "it is stopped")
        process.send_signal(signal.SIGCONT)
        while await commit_ms(process) < SYNC_MS:
            pass
        now = other
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        while await commit_ms(other) < SYNC_MS:
            pass
        slow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await slow
        assert status(other)["TracerPid"] == "0"
        assert tracers() == []
