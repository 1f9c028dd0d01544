"""The agent's end of the worker process: starts it when needed, speaks with it, kills it at once. Decides nothing."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from fleet_wire.tensors import decode_tensors
from vehicle_agent.events import BatchFailed, BatchRan, Event, ModelLoaded, ModelUnusable, WorkerDied
from vehicle_agent.frames import PREFIX_BYTES, Answer, Loaded, Order, Raised, Ran, Unusable, frame_of

__all__ = ["Inference"]

_decode = msgspec.msgpack.Decoder(Answer).decode
_BUFFER_BYTES = 1 << 20
_END_S = 2.0


class Inference:
    """At most one worker process. `on_event` hears its answers; nothing is heard of a worker that was killed."""

    def __init__(
        self, group: asyncio.TaskGroup, *, threads: int, niceness: int, on_event: Callable[[Event], None]
    ) -> None:
        self._group = group
        self._threads = threads
        self._niceness = niceness
        self._on_event = on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[subprocess.Popen[bytes]] = []
        self._orders: asyncio.Queue[bytearray] = asyncio.Queue()
        self._conversation: asyncio.Task[None] | None = None

    def order(self, order: Order) -> None:
        """Send an order, to a new worker when there is none; it belongs to the running event loop."""
        if self._conversation is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = self._spawn(theirs)
            self._orders = asyncio.Queue()
            self._conversation = self._group.create_task(self._converse(ours, self._process), name="worker")
        self._orders.put_nowait(frame_of(order))

    def kill(self) -> None:
        """End the worker now, in the middle of whatever it does."""
        process, conversation = self._process, self._conversation
        self._process = self._conversation = None
        if process is not None:
            process.kill()
            self._ended = [each for each in self._ended if each.poll() is None] + [process]
        if conversation is not None and conversation is not asyncio.current_task():
            conversation.cancel()

    async def close(self) -> None:
        """Kill the worker and wait until it is gone."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self._ended:
                await asyncio.to_thread(process.wait, _END_S)

    def _spawn(self, pipe: socket.socket) -> subprocess.Popen[bytes]:
        arguments = [pipe.fileno(), os.getpid(), self._threads, self._niceness]
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module, and numbers
            [sys.executable, "-m", "vehicle_agent.worker", *map(str, arguments)],
            pass_fds=[pipe.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the agent, which ends in order
        )

    async def _converse(self, pipe: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Carry orders and answers until the worker ends, by itself (which is an event) or because we killed it."""
        reader, writer = await asyncio.open_connection(sock=pipe, limit=_BUFFER_BYTES)
        sending = asyncio.create_task(_send(self._orders, writer), name="worker orders")
        try:
            while self._process is process:
                prefix = await reader.readexactly(PREFIX_BYTES)
                answer = _decode(await reader.readexactly(int.from_bytes(prefix, "little")))
                self._on_event(_event_of(answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self._process is process:
                self.kill()
                self._on_event(WorkerDied(_ending(process)))
        finally:
            sending.cancel()
            writer.close()


async def _send(orders: asyncio.Queue[bytearray], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(await orders.get())
            await writer.drain()


def _event_of(answer: Answer) -> Event:
    match answer:
        case Ran(outputs, compute_ms, processor_ms):
            return BatchRan(decode_tensors(outputs), compute_ms, processor_ms)
        case Raised(error, by_row):
            return BatchFailed(error, by_row)
        case Loaded(digest, batch_rows):
            return ModelLoaded(digest, batch_rows)
        case Unusable(digest, error):
            return ModelUnusable(digest, error)


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    return f"it ended with {signal.Signals(-code).name if code < 0 else code}"
