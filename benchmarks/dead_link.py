"""A TCP proxy whose link can die the way a car's does: it stays open, and what goes in never comes out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["DeadLink", "run_dead_link"]

_HOST: Final = "127.0.0.1"
_BLOCK: Final = 1 << 16


class DeadLink:
    """Carries bytes to `target_port` while `is_alive`. Connections that were up when it died are closed by `revive`:
    a stream with a hole in it is of no use to anybody.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.is_alive = True
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()

    def revive(self) -> None:
        """Carry bytes again, for connections to come."""
        self.is_alive = True
        self.close()

    def close(self) -> None:
        """End all connections."""
        for writer in list(self._writers):
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._writers.add(writer)
        try:
            onward_reader, onward = await asyncio.open_connection(_HOST, self._target_port)
            self._writers.add(onward)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, onward))
                both.create_task(self._carry(onward_reader, writer))
            self._writers.discard(onward)
        except* OSError:
            pass
        finally:
            self._writers.discard(writer)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while block := await source.read(_BLOCK):
                if self.is_alive:
                    target.write(block)
                    await target.drain()
        finally:
            if self.is_alive:
                target.close()


@contextlib.asynccontextmanager
async def run_dead_link(target_port: int) -> AsyncIterator[DeadLink]:
    """Listen on a free port of loopback."""
    link = DeadLink(target_port)
    server = await asyncio.start_server(link.serve, _HOST, 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        link.close()
        server.close()
