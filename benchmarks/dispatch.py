"""Many small chunks: 1 KB in and out, one lease each, through two agents; beside bare round trips and beside peers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.child import Process, spawn
from benchmarks.figures import Figure, Plan, at_least, listed, middle
from benchmarks.peers import measure_peer
from benchmarks.stack import job_took, run_stack
from idlewheel.client import Client

GROUP: Final = "dispatch"
UNIT: Final = "chunks/s"
PEERS: Final = {"process pool": False, "ray tasks": True, "ray actors": False, "dask": True, "celery": True}
PEER_CHUNKS: Final = 4_000  # their rate does not grow with the number, and some take a minute for 20,000
_COLUMNS: Final = 256  # float32: 1 KB a row


def identity_model() -> bytes:
    """A model that gives back its rows."""
    shape = [None, _COLUMNS]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["rows"], ["same"])],
        "identity",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


async def measure(plan: Plan) -> list[Figure]:
    chunks = 4_000 if plan.quick else 20_000
    floors, ours = [], []
    async with (
        run_stack(plan.directory, cars=2) as (local, client),
        _floor(plan.directory, local.broker.port, chunks) as floor,
    ):
        await _run_ours(client, 200, seed=0)
        for seed in range(1, plan.runs + 1):
            await floor.tell(go=True)
            floors.append(float((await floor.hear())["per_s"]))
            ours.append(chunks / await _run_ours(client, chunks, seed))
    figure = Figure(
        GROUP,
        f"idlewheel, {chunks:,} chunks of 1 KB, 2 agents",
        UNIT,
        middle(ours),
        middle(floors),
        "bare MQTT QoS 1 round trips",
        note=f"{listed(ours)}; floor {listed(floors)}",
    )
    peers = [await _peer(plan, name, middle(ours), must_lead=PEERS[name]) for name in PEERS]
    return [at_least(0.5, figure), *peers]


@contextlib.asynccontextmanager
async def _floor(directory: Path, port: int, chunks: int) -> AsyncIterator[Process]:
    names = ("one", "two")
    async with contextlib.AsyncExitStack() as running:
        for name in names:
            echo = spawn(directory, "benchmarks.floor", "echo", port, name)
            await (await running.enter_async_context(echo)).hear()
        ask = await running.enter_async_context(spawn(directory, "benchmarks.floor", "ask", port, chunks, *names))
        await ask.hear()
        yield ask


async def _run_ours(client: Client, chunks: int, seed: int) -> float:
    """Seconds of one job; every row of its result is compared."""
    rows = np.random.default_rng(seed).standard_normal((chunks, _COLUMNS), dtype=np.float32)
    job = await asyncio.to_thread(client.submit, identity_model(), rows, chunk_rows=1)
    took_s = (await job_took(job)).seconds
    result = await asyncio.to_thread(job.result)
    if not np.array_equal(result["same"], rows):
        raise RuntimeError(f"job {job.id}: its rows came back changed")
    return took_s


async def _peer(plan: Plan, name: str, ours: float, *, must_lead: bool) -> Figure:
    figure = await measure_peer(plan, Figure(GROUP, name, UNIT), PEER_CHUNKS, "echo", PEER_CHUNKS)
    if figure.value is None:
        return figure
    figure = replace(figure, beside=ours, beside_name="idlewheel")
    return replace(figure, required="idlewheel ahead", met=ours > (figure.value or 0.0)) if must_lead else figure
