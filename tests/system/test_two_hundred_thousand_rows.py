"""A large job on a bad day: the coordinator is killed five times, the broker twice, half of the cars leave."""

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from idlewheel.errors import IdlewheelError
from tests.system.chaos.oracle import objections
from tests.system.chaos.plan import Load, Plan
from tests.system.chaos.run import Run, after, ending, work
from tests.system.chaos.stage import on_stage
from tests.system.deployment import until

LOAD = Load(0.0, "digits", 200_000)
PLAN = Plan(seed=200_000, cars=4, store="duckdb", ledger="sqlite", broker_keeps=True, loads=(LOAD,), faults=())
DAY = ("coordinator", "broker", "coordinator", "half leave", "coordinator", "broker", "coordinator", "coordinator")
DEADLINE_S = 200.0


def rows_done(stage: Run) -> int:
    try:
        (view,) = stage.client.jobs()
    except (IdlewheelError, ValueError):
        return 0
    assert view.state == "running", "the job was over before all of this could happen to it"
    return view.rows_done


async def bad_day(stage: Run) -> None:
    """One thing after the other, each when more rows are there."""
    for number, happens in enumerate(DAY):
        least = LOAD.rows * (number + 1) // 20
        await until(lambda least=least: rows_done(stage) > least, f"{least} rows are done", deadline_s=DEADLINE_S)  # type: ignore[misc]
        if happens == "half leave":
            for car in stage.cars[2:]:
                stage.signal(car, signal.SIGUSR1)
        elif happens == "broker":
            await stage.broker.kill()
            await stage.broker.start()
        else:
            await stage.kill(happens)
            await stage.start(happens)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("mosquitto_program")
async def test_a_job_of_200_000_rows_survives_a_bad_day(tmp_path: Path) -> None:
    stage = Run(PLAN, tmp_path)
    async with on_stage(stage):
        working = asyncio.create_task(asyncio.to_thread(work, stage, LOAD, threading.Event(), DEADLINE_S))
        await bad_day(stage)
        await working
        await ending(stage)
    await after(stage)
    assert stage.crashes == DAY.count("coordinator")
    assert objections(stage.facts) == []
