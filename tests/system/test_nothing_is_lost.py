"""Jobs survive what happens to their processes: every row once and equal to the direct run, on both brokers."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from idlewheel import Job
from idlewheel.brokers import Broker
from tests.system.deployment import DEADLINE_S, Deployment, deployment, until

ROWS = 6_000
MANY_ROWS = 24_000  # so many that the job outlasts what is done to it, while the cars go on with what they hold
WIDTH = 64


def slow_model() -> bytes:
    """About a millisecond a row on one core, so that a job lasts long enough to be disturbed."""
    rng = np.random.default_rng(5)
    size = 1024
    layers = 12
    weights = [helper.make_tensor("w0", TensorProto.FLOAT, [WIDTH, size], rng.normal(0, 0.1, WIDTH * size))]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"])]
    weights.append(helper.make_tensor("w", TensorProto.FLOAT, [size, size], rng.normal(0, 0.03, size * size)))
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "w"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("ReduceSum", [f"h{layers}", "axes"], ["y"], keepdims=1))
    weights.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


MODEL = slow_model()
INPUTS = np.random.default_rng(6).normal(size=(MANY_ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(MODEL).run(None, {"x": INPUTS})[0])


async def submitted(running: Deployment, rows: int = ROWS) -> Job:
    return await asyncio.to_thread(running.client.submit, MODEL, INPUTS[:rows])


async def until_under_way(job: Job, done: int = ROWS // 20) -> None:
    await until(lambda: job.status().rows_done > done, f"{done} rows are done")
    assert job.status().state == "running", "the job was over before it could be disturbed"


def collect(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Every row that the stream brings, and how often it brought it."""
    rows = job.status().rows
    outputs, times = np.full((rows, 1), np.nan, np.float32), np.zeros(rows, int)
    for start, piece in job.rows():
        stop = start + len(piece["y"])
        outputs[start:stop] = piece["y"]
        times[start:stop] += 1
    return outputs, times


async def check(job: Job, collecting: asyncio.Task[tuple[np.ndarray, np.ndarray]], expected: np.ndarray) -> None:
    async with asyncio.timeout(DEADLINE_S):
        outputs, times = await collecting
    assert times.tolist() == [1] * len(outputs)
    np.testing.assert_allclose(outputs, expected[: len(outputs)], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal((await asyncio.to_thread(job.result))["y"], outputs)
    assert job.status().state == "done"


async def none_is_cut(running: Deployment) -> None:
    """Honest cars are believed all that their work took, however late they told it."""
    health = await asyncio.to_thread(running.client.health)
    assert [name for name in health.refusals if name.endswith("_capped")] == []


async def test_coordinator_killed_in_mid_job(broker: Broker, tmp_path: Path, expected: np.ndarray) -> None:
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await submitted(running, MANY_ROWS)
        collecting = asyncio.create_task(asyncio.to_thread(collect, job))
        done = 0
        for _ in range(2):
            await until_under_way(job, done + 500)
            done = job.status().rows_done
            await running.kill("coordinator")
            await running.start_coordinator()
        await check(job, collecting, expected)
        await none_is_cut(running)


async def test_agent_killed_while_it_holds_work(broker: Broker, tmp_path: Path, expected: np.ndarray) -> None:
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await submitted(running, MANY_ROWS)
        collecting = asyncio.create_task(asyncio.to_thread(collect, job))
        await until_under_way(job)
        await until(lambda: running.client.vehicle("car-1").leases > 0, "car-1 holds work")
        await running.kill("car-1")
        await check(job, collecting, expected)
        assert job.status().rows_released_again > 0


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_consent_revoked_in_mid_job(broker: Broker, tmp_path: Path, expected: np.ndarray) -> None:
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await submitted(running, MANY_ROWS)
        collecting = asyncio.create_task(asyncio.to_thread(collect, job))
        await until_under_way(job)
        await until(lambda: running.client.vehicle("car-1").leases > 0, "car-1 holds work")
        async with httpx.AsyncClient(base_url=running.url) as http:
            (await http.delete("/v1/vehicles/car-1/policy")).raise_for_status()
        assert running.client.vehicle("car-1").leases == 0
        await check(job, collecting, expected)
        view = running.client.vehicle("car-1")
        assert (view.eligible, (view.reason or "").partition(":")[0]) == (False, "consent_revoked")


async def test_broker_killed_and_started_again(broker: Broker, tmp_path: Path, expected: np.ndarray) -> None:
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await submitted(running, MANY_ROWS)
        collecting = asyncio.create_task(asyncio.to_thread(collect, job))
        await until_under_way(job)
        await broker.kill()
        await broker.start()
        await check(job, collecting, expected)
        await none_is_cut(running)


async def test_an_agent_written_from_the_document_alone(broker: Broker, tmp_path: Path, expected: np.ndarray) -> None:
    async with deployment(broker, tmp_path, cars=0) as running:
        await running.start_reference_car("reference-1")
        await running.until_eligible(1)
        job = await submitted(running)
        await check(job, asyncio.create_task(asyncio.to_thread(collect, job)), expected)
