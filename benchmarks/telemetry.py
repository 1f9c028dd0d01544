"""Telemetry at full speed into the real coordinator, beside a bare subscriber that only counts and acknowledges.

The load is let go on only so far ahead of what was taken in that the broker's queue drops nothing; that all of it
arrives is checked at the end of each round.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import psutil

from benchmarks.child import Process, spawn
from benchmarks.figures import Figure, Plan, at_least, below, listed, middle
from benchmarks.stack import FLEET, run_stack
from fleet_wire.topics import FleetTopics, VehicleChannel
from idlewheel.client import Client
from idlewheel.local_fleet import LocalFleet

GROUP: Final = "telemetry"
VEHICLES: Final = 1_000
BARE_FLEET: Final = "bare"
AHEAD: Final = 50_000
_SAMPLE_S: Final = 0.2
_WARM_S: Final = 2.0
_ARRIVE_S: Final = 30.0
_FLAT_PERCENT: Final = 10.0


class Listener:
    """What a child said last, name by name."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: dict[str, Any] = {}

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            self.said |= await self.process.hear()


@dataclass(frozen=True, slots=True)
class Side:
    """A subscriber with its load: `taken` asks how much it has taken in so far, `pids` names who works for it."""

    load: Listener
    taken: Callable[[], Awaitable[int]]
    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Round:
    """`lost` is what the broker acknowledged and nobody took in; `cores` who used how much of the processor."""

    per_s: float
    lost: int
    cores: dict[str, float]
    rss_mb: list[float]


async def measure(plan: Plan) -> list[Figure]:
    usual_s, last_s = (10.0, 10.0) if plan.quick else (20.0, 60.0)
    bare: list[Round] = []
    ours: list[Round] = []
    async with (
        run_stack(plan.directory) as (local, client),
        _bare(plan.directory, local) as bare_side,
        _ours(plan.directory, local, client) as our_side,
    ):
        for number in range(plan.runs):
            bare.append(await _round(bare_side, usual_s))
            ours.append(await _round(our_side, last_s if number == plan.runs - 1 else usual_s))
        payload_bytes = our_side.load.said["payload_bytes"]
    figures = [each.per_s for each in ours]
    floors = [each.per_s for each in bare]
    rate = Figure(
        GROUP,
        f"coordinator, {payload_bytes} B, {VEHICLES:,} vehicles",
        "messages/s",
        middle(figures),
        middle(floors),
        "bare subscriber",
        note=f"{listed(figures)}; bare {listed(floors)}; cores {_cores(ours[-1])}; bare {_cores(bare[-1])}",
    )
    lost = Figure(GROUP, "coordinator, lost", "messages", sum(each.lost for each in ours))
    return [at_least(0.8, rate), replace(lost, required="none", met=lost.value == 0), _memory(ours[-1], last_s)]


@contextlib.asynccontextmanager
async def _bare(directory: Path, local: LocalFleet) -> AsyncIterator[Side]:
    pattern = FleetTopics(BARE_FLEET).every_vehicle(VehicleChannel.TELE)
    async with (
        _listening(directory, "benchmarks.floor", "count", local.broker.port, pattern) as subscriber,
        _load(directory, local, BARE_FLEET) as load,
    ):

        async def counted() -> int:
            return int(subscriber.said["counted"])

        pids = {"load": load.process.pid, "broker": local.broker.pid, "subscriber": subscriber.process.pid}
        yield Side(load, counted, pids)


@contextlib.asynccontextmanager
async def _ours(directory: Path, local: LocalFleet, client: Client) -> AsyncIterator[Side]:
    async with _load(directory, local, FLEET) as load:

        async def applied() -> int:
            health = await asyncio.to_thread(client.health)
            return health.counters.get("telemetry_applied", 0)

        pids = {"load": load.process.pid, "broker": local.broker.pid, "coordinator": local.coordinator.pid}
        yield Side(load, applied, pids)


def _load(directory: Path, local: LocalFleet, fleet: str) -> contextlib.AbstractAsyncContextManager[Listener]:
    return _listening(directory, "benchmarks.fleet_load", local.broker.port, fleet, VEHICLES, "deltas")


@contextlib.asynccontextmanager
async def _listening(directory: Path, module: str, *arguments: object) -> AsyncIterator[Listener]:
    async with spawn(directory, module, *arguments) as process:
        listener = Listener(process)
        listener.said = await process.hear()
        listening = asyncio.create_task(listener.listen(), name=f"listen to {module}")
        try:
            yield listener
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _round(side: Side, seconds: float) -> Round:
    """Let the load go for a while, keeping its lead bounded; then wait until all has arrived."""
    taken_before, sent_before = await _settled(side)
    processes = {name: psutil.Process(pid) for name, pid in side.pids.items()}
    begun_s = time.monotonic()
    rss_mb: list[float] = []
    started: tuple[float, int, dict[str, float]] | None = None
    while True:
        taken, now_s = await side.taken(), time.monotonic()
        await side.load.process.tell(allowed=sent_before + taken - taken_before + AHEAD)
        rss_mb.append(list(processes.values())[-1].memory_info().rss / 1e6)
        if started is None and now_s - begun_s >= _WARM_S:
            started = now_s, taken, _cpu_s(processes)
        if started is not None and now_s - begun_s >= seconds:
            break
        await asyncio.sleep(_SAMPLE_S)
    start_s, start_taken, start_cpu_s = started
    took_s, end_cpu_s = now_s - start_s, _cpu_s(processes)
    cores = {name: (end_cpu_s[name] - start_cpu_s[name]) / took_s for name in processes}
    taken_after, sent_after = await _settled(side)
    lost = (sent_after - sent_before) - (taken_after - taken_before)
    return Round((taken - start_taken) / took_s, lost, cores, rss_mb)


async def _settled(side: Side) -> tuple[int, int]:
    """What was taken in and what was sent, once neither grows any more."""
    last: tuple[int, int] | None = None
    until_s = time.monotonic() + _ARRIVE_S
    while time.monotonic() < until_s:
        now = (await side.taken(), side.load.said.get("acknowledged", 0))
        if now == last and side.load.said.get("sent", 0) == now[1]:
            break
        last = now
        await asyncio.sleep(1.0)
    assert last is not None
    return last


def _memory(last: Round, seconds: float) -> Figure:
    """The last third beside the one before: the store's buffers fill first, and then are written out in bursts."""
    third = max(1, len(last.rss_mb) // 3)
    before, after = fmean(last.rss_mb[third : 2 * third]), fmean(last.rss_mb[-third:])
    figure = Figure(
        GROUP,
        f"coordinator, growth of memory from the second to the last third of {seconds:.0f} s",
        "%",
        max(0.0, (after - before) / before * 100),
        note=f"RSS {last.rss_mb[0]:.0f} MB at the start, on average {before:.0f}, then {after:.0f};"
        f" {max(last.rss_mb):.0f} at most",
    )
    return below(_FLAT_PERCENT, figure) if seconds >= 60 else figure  # sooner the buffers are not full yet


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def _cores(measured: Round) -> str:
    return ", ".join(f"{name} {cores:.2f}" for name, cores in measured.cores.items())
