"""Rows that make the model fail, on real cars: they alone are given up, whatever is killed; the others come back."""

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from idlewheel import JobFailed
from idlewheel.brokers import Broker
from idlewheel.client import Job
from tests.system.deployment import DEADLINE_S, deployment, until

ROWS = 400
BAD = [37, 250]


def looking_up() -> bytes:
    """A model that looks a row's number up in a table of ten: any other number is an error of the runtime."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "number"], ["found"])],
        "lookup",
        [helper.make_tensor_value_info("number", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [10], np.arange(10) * 0.5)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def streamed(job: Job) -> list[int]:
    """The rows that iterating gives before it says that the job failed."""
    rows: list[int] = []
    with contextlib.suppress(JobFailed):
        for start, outputs in job:
            rows += range(start, start + len(outputs["found"]))
    return sorted(rows)


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_bad_rows_alone_are_given_up_and_a_kill_forgets_none(broker: Broker, tmp_path: Path) -> None:
    numbers = np.arange(ROWS, dtype=np.int64) % 10
    numbers[BAD] = 1_000
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await asyncio.to_thread(running.client.submit, looking_up(), numbers, chunk_rows=20)
        await until(lambda: job.status().rows_failed or job.status().state != "running", "a row is given up")
        await running.kill("coordinator")
        await running.start_coordinator()
        with pytest.raises(JobFailed, match="rows 37, 250 failed on"):
            await asyncio.to_thread(job.result, DEADLINE_S)
        view = job.status()
        assert (view.state, view.rows_done, view.rows_failed) == ("failed", ROWS - 2, 2)
        failures = await asyncio.to_thread(job.failures)
        assert [row.row for row in failures] == BAD
        assert all("Gather" in row.error for row in failures)
        found = (await asyncio.to_thread(lambda: job.result(partial=True)))["found"]
        good = np.delete(np.arange(ROWS), BAD)
        np.testing.assert_array_equal(found[good], numbers[good] * np.float32(0.5))
        assert np.isnan(found[BAD]).all()
        assert await asyncio.to_thread(streamed, job) == good.tolist()
