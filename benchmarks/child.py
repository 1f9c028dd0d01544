"""A process of a benchmark that speaks JSON lines over its standard input and output. Knows no benchmark."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

__all__ = ["Process", "ProcessFailed", "hear", "say", "spawn"]

_STOP_S: Final = 20.0


class ProcessFailed(Exception):
    """It ended or fell silent; the message ends with what it logged last."""


class Process:
    """A running child."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def tell(self, **message: object) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self, within_s: float = 300.0) -> dict[str, Any]:
        """Wait for its next line; what it or a library prints besides is passed over. Raise ProcessFailed."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"{"):
                        message = json.loads(line)
                        assert isinstance(message, dict)
                        return message
        except TimeoutError:
            pass
        raise ProcessFailed(self._log.read_text(errors="replace")[-2000:].strip() or "it logged nothing")


@contextlib.asynccontextmanager
async def spawn(directory: Path, module: str, *arguments: object) -> AsyncIterator[Process]:
    """Run `python -m MODULE ARGUMENTS`; on leaving, its standard input ends, and it is killed if that is not enough."""
    log = directory / f"{module}.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        yield Process(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def say(**message: object) -> None:
    """In the child: send a line."""
    print(json.dumps(message), flush=True)


def hear() -> dict[str, Any] | None:
    """In the child: wait for a line; None at the end."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None
