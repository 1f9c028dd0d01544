"""A child process of ours: started, waited for until it says that it is ready, and ended in any case, by its pid."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["Child", "ChildFailed", "dying_with_us", "run_child"]

_READY_S: Final = 60.0
_STOP_S: Final = 10.0
_LAST_LINES: Final = 5
_PR_SET_PDEATHSIG: Final = 1


class ChildFailed(Exception):
    """A child did not become ready, or ended by itself; the message ends with what it logged last."""


@dataclass(frozen=True, slots=True)
class _Log:
    """What a child logs, behind what earlier ones did."""

    path: Path
    begun: int

    def last_words(self) -> str:
        """Its last lines, for a person."""
        lines = self.path.read_bytes()[self.begun :].decode(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:]).strip() or "it logged nothing"


class Child:
    """A running child. `ready` is what it said in its first line, a JSON object."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, ready: dict[str, Any], log: _Log) -> None:
        self.name: Final = name
        self.ready: Final = ready
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def tell(self, message: Mapping[str, object]) -> None:
        """Send a line of JSON to its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # that it has ended shows in `wait`
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()

    async def read(self) -> dict[str, Any]:
        """Its next line on standard output, a JSON object. Raises ChildFailed when it has ended."""
        return await _read_line(self.name, self._process, self._log)

    async def wait(self) -> int:
        """Wait until it ends, and return its exit code."""
        return await self._process.wait()

    async def expect_running(self) -> None:
        """Wait until it ends by itself, and raise ChildFailed."""
        code = await self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise ChildFailed(f"{self.name} {how}: {self._log.last_words()}")

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        _send(self._process, signal.SIGKILL)


@contextlib.asynccontextmanager
async def run_child(
    name: str, arguments: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run `python ARGUMENTS` in a session of its own, so that Ctrl-C reaches us alone; log to a file.

    Enters when the child has printed its first line. On leaving it is asked to end, and killed when it does not.
    Where the system can, the child is killed when we die. Raises ChildFailed.
    """
    with log.open("ab") as file:
        logged = _Log(log, file.tell())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=dying_with_us(),
        )
    try:
        yield Child(name, process, await _ready(name, process, logged), logged)
    finally:
        await asyncio.shield(_end(process))


async def _ready(name: str, process: asyncio.subprocess.Process, log: _Log) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_READY_S):
            return await _read_line(name, process, log)
    except TimeoutError:
        raise ChildFailed(f"{name} was not ready after {_READY_S:.0f} s: {log.last_words()}") from None


async def _read_line(name: str, process: asyncio.subprocess.Process, log: _Log) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise ChildFailed(f"{name} ended early: {log.last_words()}")
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


async def _end(process: asyncio.subprocess.Process) -> None:
    _send(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        _send(process, signal.SIGKILL)
        await process.wait()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def dying_with_us() -> Callable[[], None] | None:
    """What a child does before it runs its program, so that it is killed when we die; None where nothing can."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: afterwards hardly anything is safe
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
