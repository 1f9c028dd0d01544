"""A disk that is slow for some processes: strace holds up each of their system calls that reach it.

Never says that a disk was slow when it was not: what strace held up is counted in what it writes down.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from idlewheel.processes import dying_with_us
from tests.servers import required

__all__ = ["require_strace", "slow_disk"]

_SYNCS: Final = "fsync,fdatasync"
_WRITES: Final = "pwrite64"
_WRITES_A_SYNC: Final = 20  # which end in the machine's memory first
_LOOK_AGAIN_S: Final = 0.05


def require_strace() -> str:
    """Where it is missing, skip; under CI, fail."""
    return required(shutil.which("strace"), "strace is not installed (tests/install_servers.sh)")


async def slow_disk(
    pids: Callable[[], Sequence[int]], for_s: float, sync_ms: int, log: Path, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Let each sync of these processes take longer, and each write a little, also of those that follow a kill.

    How many calls were held up, and why strace could do nothing, if so. It is gone on return.
    """
    complaint = ""
    ends = time.monotonic() + for_s
    while (left_s := ends - time.monotonic()) > 0:
        if found := pids():
            complaint = await _hold_up(found, left_s, sync_ms, log, environment)
        await asyncio.sleep(_LOOK_AGAIN_S)
    return _held_up(log), complaint


async def _hold_up(pids: Sequence[int], for_s: float, sync_ms: int, log: Path, environment: Mapping[str, str]) -> str:
    """Until the time is over or the last of them is dead; strace's last complaint."""
    arguments = ["-f", "-qq", "-A", "-o", str(log), "-e", f"trace={_SYNCS},{_WRITES}"]
    for calls, delay_us in ((_SYNCS, sync_ms * 1_000), (_WRITES, sync_ms * 1_000 // _WRITES_A_SYNC)):
        arguments += ["-e", f"inject={calls}:delay_enter={delay_us}"]
    for pid in pids:
        arguments += ["-p", str(pid)]
    try:
        tracing = await asyncio.create_subprocess_exec(
            "strace",
            *arguments,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=dying_with_us(),
        )
    except OSError as error:
        return str(error)
    saying = asyncio.create_task(tracing.communicate())
    try:
        await asyncio.wait({saying}, timeout=for_s)
    finally:
        if tracing.returncode is None:
            tracing.terminate()  # it lets go of them first
        _, said = await saying
    return said.decode(errors="replace").strip().rpartition("\n")[2]


def _held_up(log: Path) -> int:
    return log.read_text().count("(DELAYED)") if log.exists() else 0
