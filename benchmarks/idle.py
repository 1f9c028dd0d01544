"""What it costs to do nothing: an agent that waits, and a coordinator that knows ten thousand cars."""

import asyncio
from dataclasses import replace
from typing import Final

import psutil

from benchmarks.child import spawn
from benchmarks.figures import Figure, Plan, below, middle
from benchmarks.stack import FLEET, run_parked_car, run_stack, until

GROUP: Final = "idle"
CARS: Final = 10_000
_SETTLE_S: Final = 3.0


async def measure(plan: Plan) -> list[Figure]:
    return [*await _agent(plan), await _coordinator(plan)]


async def _agent(plan: Plan) -> list[Figure]:
    seconds = 10.0 if plan.quick else 20.0
    rss_mb, percent = [], []
    folder = plan.directory / "agent"
    folder.mkdir()
    async with run_stack(folder) as (local, client), run_parked_car(local, "car-0") as agent:
        await until(lambda: client.health().vehicles_eligible == 1, 30)
        await asyncio.sleep(_SETTLE_S)
        for _ in range(plan.runs):
            before_s = _cpu_s(agent.pid)
            await asyncio.sleep(seconds)
            percent.append((_cpu_s(agent.pid) - before_s) / seconds * 100)
            rss_mb.append(sum(process.memory_info().rss for process in _tree(agent.pid)) / 1e6)
    return [
        below(100, Figure(GROUP, "agent without a model, resident memory", "MB", middle(rss_mb))),
        below(1, Figure(GROUP, f"agent, share of a core over {seconds:.0f} s", "%", middle(percent))),
    ]


async def _coordinator(plan: Plan) -> Figure:
    folder = plan.directory / "coordinator-alone"
    folder.mkdir()
    async with run_stack(folder) as (local, client):
        process = psutil.Process(local.coordinator.pid)
        empty_mb = process.memory_info().rss / 1e6
        async with spawn(folder, "benchmarks.fleet_load", local.broker.port, FLEET, CARS, "announce") as load:
            await load.hear()
            await until(lambda: client.health().vehicles_eligible == CARS, 120)
        await asyncio.sleep(_SETTLE_S)
        figure = Figure(GROUP, f"coordinator that knows {CARS:,} cars, resident memory", "MB")
        return below(300, replace(figure, value=process.memory_info().rss / 1e6, note=f"{empty_mb:.0f} MB before"))


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_s(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _tree(pid))
