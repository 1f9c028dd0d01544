"""What every benchmark of ours runs on: Mosquitto, the coordinator and parked cars, all as child processes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from idlewheel.agent_host import HostedCar
from idlewheel.client import Client, Job
from idlewheel.local_fleet import LocalFleet, run_agents, run_local_fleet
from idlewheel.processes import Child
from simulator.car import Replay
from simulator.traces import parked

__all__ = ["FLEET", "JobTook", "job_took", "run_parked_car", "run_stack", "until"]

FLEET: Final = "bench"
_DEADLINE_S: Final = 600.0


@contextlib.asynccontextmanager
async def run_stack(directory: Path, cars: int = 0) -> AsyncIterator[tuple[LocalFleet, Client]]:
    """Broker, coordinator and `cars` parked cars, each in a process of its own; entered when all may work."""
    async with contextlib.AsyncExitStack() as running:
        local = await running.enter_async_context(run_local_fleet(directory, broker="mosquitto", fleet=FLEET))
        for number in range(cars):
            await running.enter_async_context(run_parked_car(local, f"car-{number}"))
        client = running.enter_context(Client(local.url))
        await until(lambda: client.health().vehicles_eligible == cars, 30)
        yield local, client


@contextlib.asynccontextmanager
async def run_parked_car(local: LocalFleet, vehicle: str, broker_port: int | None = None) -> AsyncIterator[Child]:
    """The agent of a car that is plugged in, and whose time stands still, in a process of its own."""
    now_ms = time.time_ns() // 1_000_000
    car = HostedCar(vehicle, parked(now_ms), Replay(trace_ms=now_ms, start_ms=now_ms, speed_up=0.0))
    async with run_agents(local, vehicle, [car], broker_port) as child:
        yield child


async def until(holds: Callable[[], bool], within_s: float) -> None:
    """Wait for a condition that asks a coordinator. Raise TimeoutError."""
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class JobTook:
    """By the coordinator's clock from submission to the last row; `compute_s` is what the runtime alone took of it."""

    seconds: float
    compute_s: float


async def job_took(job: Job) -> JobTook:
    """Wait for a job's end. Raise RuntimeError when not all is as it must be."""
    view = await asyncio.to_thread(job.wait, _DEADLINE_S)
    if view.state != "done" or view.ended_ms is None or view.rows_duplicate:
        raise RuntimeError(f"job {view.id} is {view.state}: {view.error}; {view.rows_duplicate} rows came twice")
    return JobTook((view.ended_ms - view.created_ms) / 1000, view.compute_ms / 1000)
