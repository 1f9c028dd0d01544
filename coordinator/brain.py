"""The loop around the core: events are taken in rounds, a round's writes are committed in one group, then it speaks.

Never decides and never talks to a vehicle: it hands commands to whoever was given as `send`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from coordinator.clock import SteadyClock
from coordinator.commands import (
    AddRows,
    CheckBlob,
    Command,
    EndJob,
    FindOut,
    LedgerWrite,
    LookBack,
    SendControl,
    SendPolicy,
    SendTask,
)
from coordinator.core import Core
from coordinator.delays import Delay
from coordinator.events import Event, Tick
from coordinator.local_time import utc_offsets_ms
from coordinator.ports import Ledger

__all__ = ["Brain", "wall_clock_ms"]

_INBOX_EVENTS = 8192
_TICK_S = 0.1
_SLEPT_MS = 500
T = TypeVar("T")

wall_clock_ms = SteadyClock(time.time_ns, time.monotonic_ns).now_ms
"""Milliseconds since 1970, UTC; one for the whole process, as all that the core remembers is in it."""


class Brain:
    """Feeds one core and keeps what it says."""

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self.core = core
        self.commits = Delay()
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._readers = ThreadPoolExecutor(ledger.readers, "ledger-reader") if ledger.readers else self._thread
        self._events: list[Event] = []
        self._time: Tick | None = None
        self._when_durable: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._changes: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def open(self) -> None:
        """Open the ledger and let the core go on from it. Raises StoreUnavailable, LedgerHeld."""
        await self._in(self._thread, self._ledger.open)
        self.core.restore(await self.with_ledger(self._ledger.load), wall_clock_ms())

    async def close(self) -> None:
        """Close the ledger after the commit that is under way, unless that waits for a server."""
        self.give_up()
        await self._in(self._thread, self._ledger.close)

    def give_up(self) -> None:
        """Let whoever waits for the ledger's server hear that there will be no answer."""
        self._ledger.give_up()

    async def with_ledger(self, call: Callable[..., T], *arguments: object) -> T:
        """Ask the ledger something, in a thread in which one may. Raises StoreUnavailable."""
        return await self._in(self._readers, call, *arguments)

    async def _in(self, thread: ThreadPoolExecutor, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)

    def put(self, events: Iterable[Event], when_durable: Callable[[], None] | None = None) -> None:
        """Hand events over; `when_durable` is called once all that follows from them is committed."""
        self._events.extend(events)
        if when_durable is not None:
            self._when_durable.append(when_durable)
        if len(self._events) >= _INBOX_EVENTS:
            self._room.clear()
        self._wake.set()

    async def put_and_wait(self, event: Event) -> None:
        """Hand one event over and wait until what follows from it is committed."""
        durable = asyncio.Event()
        self.put([event], durable.set)
        await durable.wait()

    @property
    def waiting(self) -> int:
        """Events that wait for the next round."""
        return len(self._events)

    async def room(self) -> None:
        """Wait while too many events wait: back-pressure for whoever can hold messages back."""
        await self._room.wait()

    def change(self, job: str) -> asyncio.Event:
        """What is set by the next commit that adds rows to a job or ends it; to be had before one looks for them."""
        return self._changes.setdefault(job, asyncio.Event())

    async def run(
        self,
        send: Callable[[Sequence[SendTask | SendControl | SendPolicy]], None],
        ask: Callable[[Sequence[FindOut | CheckBlob | LookBack]], None],
        has_room: Callable[[], bool],
    ) -> None:
        """Take rounds until cancelled; `send` gets the commands of a round that are no writes, once those are durable;
        `ask` gets what is to be found out.

        Work is given only in rounds in which there `has_room` for more tasks; until then rows wait where any car may
        still have them.

        A failing ledger ends the process: nothing was acknowledged that isn't kept. While one on a server is away, the
        round waits, and whoever would put more events than there is room for.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            acknowledge, self._when_durable = self._when_durable, []
            self._room.set()
            # A tick stands for the end of what was heard: by then it must not take those for silent who spoke.
            tick, self._time = self._time, None
            commands = self._decide(events if tick is None else [*events, tick], assigns=has_room())
            writes = [command for command in commands if isinstance(command, LedgerWrite)]
            if writes:
                begun = time.monotonic()
                await self._in(self._thread, self._ledger.commit, writes)
                self.commits.add(1, (time.monotonic() - begun) * 1000)
            spoken = [command for command in commands if isinstance(command, SendTask | SendControl | SendPolicy)]
            if spoken:
                send(spoken)
            asked = [command for command in commands if isinstance(command, FindOut | CheckBlob | LookBack)]
            if asked:
                ask(asked)
            for call in acknowledge:
                call()
            self._tell_watchers(writes)

    async def tick(self, listens: Callable[[], bool]) -> None:
        """Let time pass for the core, as long as `listens` says that what cars say gets here.

        When much more of it has passed than should, this process slept, or the machine did, and heard nothing.
        Raises StoreUnavailable when no more can be committed.
        """
        last_ms = wall_clock_ms()
        while True:
            await asyncio.sleep(_TICK_S)
            self._ledger.expect_usable()
            now_ms = wall_clock_ms()
            listened = listens() and now_ms - last_ms < _SLEPT_MS and (self._time is None or self._time.listened)
            last_ms = now_ms
            self._time = Tick(utc_offsets_ms(self.core.fleet.timezones, now_ms), listened)
            self._wake.set()

    def _decide(self, events: Sequence[Event], *, assigns: bool) -> list[Command]:
        now_ms = wall_clock_ms()
        commands: list[Command] = []
        for event in events:
            commands += self.core.handle(event, now_ms)
        return commands + (self.core.assign(now_ms) if assigns else [])

    def _tell_watchers(self, writes: Iterable[LedgerWrite]) -> None:
        for write in writes:
            job = write.rows.job if isinstance(write, AddRows) else write.job if isinstance(write, EndJob) else None
            watched = self._changes.pop(job, None) if job is not None else None
            if watched is not None:
                watched.set()
