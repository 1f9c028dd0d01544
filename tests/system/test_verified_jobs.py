"""Verified jobs on real cars, through a restart: every row comes once, equal, and no honest car is convicted."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

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


def wide() -> bytes:
    """A model whose rows are too large for a message, so that they come as blobs."""
    table = np.arange(20 * 40_000, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "number"], ["found"])],
        "wide",
        [helper.make_tensor_value_info("number", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["rows", 40_000])],
        [helper.make_tensor("table", TensorProto.FLOAT, [20, 40_000], table)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_answers_that_come_as_blobs_are_compared_too(broker: Broker, tmp_path: Path) -> None:
    numbers = np.arange(20, dtype=np.int64)
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await asyncio.to_thread(running.client.submit, wide(), numbers, chunk_rows=5, verify="quorum:2")
        found = (await asyncio.to_thread(job.result, 60))["found"]
        np.testing.assert_array_equal(found, np.arange(20 * 40_000, dtype=np.float32).reshape(20, 40_000))
