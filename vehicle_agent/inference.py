"""The agent's end of the worker process: starts it when needed, speaks with it, kills it at once. Decides nothing."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleet_wire.tensors import decode_tensors
from vehicle_agent.allotment import Allotment
from vehicle_agent.cgroup import prepare_cgroup
from vehicle_agent.events import BatchFailed, BatchRan, Event, ModelLoaded, ModelUnusable, WorkerDied, WorkerUnwatched
from vehicle_agent.frames import PREFIX_BYTES, UNWATCHED, Answer, Loaded, Order, Raised, Ran, Unusable, frame_of
from vehicle_agent.guard import Guard

__all__ = ["Inference"]

_log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(Answer).decode
_BUFFER_BYTES = 1 << 20
_END_S = 2.0


class Inference:
    """At most one worker process. `on_event` hears its answers; nothing is heard of a worker that was killed.

    `allotment` is what the next worker may use. While one lives, `must_stop` is asked many times a second, in another
    thread; when it says so, the worker is killed at once and `on_kill` is called in that thread. `cgroup` is the folder
    of the worker's control group, in one that was delegated to us.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        allotment: Allotment,
        *,
        on_event: Callable[[Event], None],
        must_stop: Callable[[], bool],
        on_kill: Callable[[], object],
        cgroup: Path | None = None,
    ) -> None:
        self.allotment = allotment
        self._group = group
        self._on_event = on_event
        self._must_stop = must_stop
        self._on_kill = on_kill
        self._cgroup = cgroup
        self._guard: Guard | None = None
        self._ended: list[Guard] = []
        self._orders: asyncio.Queue[bytearray] = asyncio.Queue()
        self._conversation: asyncio.Task[None] | None = None

    def order(self, order: Order) -> None:
        """Send an order, to a new worker when there is none; it belongs to the running event loop."""
        if self._conversation is None:
            ours, theirs = socket.socketpair()
            with theirs:
                process, self._guard = self._start(theirs)
            self._orders = asyncio.Queue()
            self._conversation = self._group.create_task(self._converse(ours, process, self._guard), name="worker")
        self._orders.put_nowait(frame_of(order))

    def kill(self) -> None:
        """End the worker now, in the middle of whatever it does."""
        guard, conversation = self._guard, self._conversation
        self._guard = self._conversation = None
        if guard is not None:
            guard.kill()
            self._ended = [each for each in self._ended if each.is_alive] + [guard]
        if conversation is not None and conversation is not asyncio.current_task():
            conversation.cancel()

    async def close(self) -> None:
        """Kill the worker and wait until it is gone."""
        self.kill()
        for guard in self._ended:
            await asyncio.to_thread(guard.join, _END_S)

    def _start(self, pipe: socket.socket) -> tuple[subprocess.Popen[bytes], Guard]:
        """Start a worker and its guard. It dies with this thread, which is to be the agent's own."""
        heard, beats = os.pipe()
        os.set_blocking(beats, False)
        cgroup = self._prepared_cgroup()
        numbers = [pipe.fileno(), heard, os.getpid()]
        arguments = [*map(str, numbers), msgspec.json.encode(self.allotment).decode(), str(cgroup or "")]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, and numbers
                [sys.executable, "-m", "vehicle_agent.worker", *arguments],
                pass_fds=[pipe.fileno(), heard],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the agent, which ends in order
            )
        except OSError:
            os.close(beats)
            raise
        finally:
            os.close(heard)
        bound_by = f"the control group {cgroup}" if cgroup else "resource limits and pauses"
        _log.info("worker %d: %s, by %s", process.pid, self.allotment, bound_by)
        guard = Guard(process, beats, self._must_stop, self._on_kill)
        guard.start()
        return process, guard

    def _prepared_cgroup(self) -> Path | None:
        """The worker's control group, bounded; None where there is none."""
        if self._cgroup is None:
            return None
        try:
            prepare_cgroup(self._cgroup, self.allotment)
        except OSError as error:
            _log.warning("no control group for the worker: %s", error)
            return None
        return self._cgroup

    async def _converse(self, pipe: socket.socket, process: subprocess.Popen[bytes], guard: Guard) -> None:
        """Carry orders and answers until the worker ends, by itself (which is an event) or because we killed it."""
        reader, writer = await asyncio.open_connection(sock=pipe, limit=_BUFFER_BYTES)
        sending = asyncio.create_task(_send(self._orders, writer), name="worker orders")
        try:
            while self._guard is guard:
                prefix = await reader.readexactly(PREFIX_BYTES)
                answer = _decode(await reader.readexactly(int.from_bytes(prefix, "little")))
                self._on_event(_event_of(answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self._guard is guard and not guard.has_killed:  # whoever hears of that kill is going to end it here
                self.kill()
                self._on_event(_ending(process))
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


def _ending(process: subprocess.Popen[bytes]) -> Event:
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return WorkerDied("it closed its pipe")
    if code == UNWATCHED:
        return WorkerUnwatched()
    return WorkerDied(f"it ended with {signal.Signals(-code).name if code < 0 else code}")
