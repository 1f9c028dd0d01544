"""Verified jobs on real cars, through a restart: every row comes once, equal, and no honest car is convicted."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from idlewheel.brokers import Broker
from tests.system.deployment import deployment, until
from tests.system.test_failing_rows import looking_up

ROWS = 300


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_jobs_of_every_rule_come_back_whole_through_a_kill(broker: Broker, tmp_path: Path) -> None:
    numbers = np.arange(ROWS, dtype=np.int64) % 10
    rules = ["canaries", "adaptive", "quorum:2"]
    async with deployment(broker, tmp_path, cars=2) as running:
        jobs = [
            await asyncio.to_thread(running.client.submit, looking_up(), numbers, chunk_rows=10, verify=rule)
            for rule in rules
        ]
        await until(lambda: all(job.status().rows_done for job in jobs), "rows of every job count")
        await running.kill("coordinator")
        await running.start_coordinator()
        for job in jobs:
            found = (await asyncio.to_thread(job.result, 60))["found"]
            np.testing.assert_array_equal(found, numbers * np.float32(0.5))
            rows = [row for start, part in job for row in range(start, start + len(part["found"]))]
            assert sorted(rows) == list(range(ROWS))
        views = [job.status() for job in jobs]
        assert [(view.verification, view.rows_done, view.rows_retracted) for view in views] == [
            ("canaries", ROWS, 0),
            ("adaptive", ROWS, 0),
            ("quorum 2", ROWS, 0),
        ]
        assert not [car for car in running.client.vehicles() if car.convictions]
