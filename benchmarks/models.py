"""Real work through two agents of one thread each, beside onnxruntime alone on as many threads."""

import asyncio
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.child import spawn
from benchmarks.figures import Figure, Plan, at_least, listed, middle
from benchmarks.peers import measure_peer
from benchmarks.stack import JobTook, job_took, run_stack
from idlewheel.client import Client
from idlewheel.examples import EXAMPLES

GROUP: Final = "models"
UNIT: Final = "rows/s"
PEERS: Final = ("process pool", "ray actors")
_WIDTHS: Final = (64, 2048, 2048, 10)


@dataclass(frozen=True, slots=True)
class Load:
    """A model, its rows, the rows that warm everything up, and how many rows peers get at once."""

    name: str
    model: bytes
    inputs: dict[str, NDArray[Any]]
    warm_rows: int
    peer_chunk: int

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def first(self, rows: int) -> dict[str, NDArray[Any]]:
        """The first rows alone."""
        return {name: array[:rows] for name, array in self.inputs.items()}


def dense_model(seed: int = 0) -> bytes:
    """A multilayer perceptron of 17 MB with weights of a seed, float32."""
    draw = np.random.default_rng(seed)
    nodes, weights, last = [], [], "rows"
    for layer, (inside, outside) in enumerate(pairwise(_WIDTHS)):
        weight = draw.standard_normal((inside, outside), dtype=np.float32) / np.float32(np.sqrt(inside))
        bias = np.zeros(outside, np.float32)
        weights += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"sum{layer}"]))
        last = f"sum{layer}"
        if outside != _WIDTHS[-1]:
            nodes.append(helper.make_node("Relu", [last], [f"out{layer}"]))
            last = f"out{layer}"
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, _WIDTHS[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, _WIDTHS[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def loads(*, quick: bool) -> list[Load]:
    rows = 10_000 if quick else 50_000
    dense = {"rows": np.random.default_rng(1).standard_normal((rows, _WIDTHS[0]), dtype=np.float32)}
    magika = EXAMPLES["magika"]
    files = magika.rows(300 if quick else 1_000, 0).inputs
    return [Load("magika", magika.model(), files, 100, 8), Load("dense 17 MB", dense_model(), dense, 4_000, 256)]


async def measure(plan: Plan) -> list[Figure]:
    figures = []
    for load in loads(quick=plan.quick):
        folder = plan.directory / load.name.replace(" ", "-")
        folder.mkdir()
        figures += await _measure(replace(plan, directory=folder), load)
    return figures


async def _measure(plan: Plan, load: Load) -> list[Figure]:
    model, rows = plan.directory / "model.onnx", plan.directory / "rows.npz"
    model.write_bytes(load.model)
    np.savez(rows, **load.inputs)  # type: ignore[arg-type]
    ours, alone, busy = [], [], []
    async with (
        spawn(plan.directory, "benchmarks.direct", model, rows) as direct,
        run_stack(plan.directory, cars=2) as (_, client),
    ):
        batch = (await direct.hear())["batch"]
        await _run_ours(client, model, load.first(load.warm_rows))
        for _ in range(plan.runs):
            await direct.tell(go=True)
            alone.append(float((await direct.hear())["per_s"]))
            took = await _run_ours(client, model, load.inputs)
            ours.append(len(load) / took.seconds)
            busy.append(took.compute_s / took.seconds / 2)
    figure = Figure(
        GROUP,
        f"idlewheel, {load.name}, {len(load):,} rows, 2 agents of 1 thread",
        UNIT,
        middle(ours),
        middle(alone),
        f"onnxruntime, 2 of 1 thread, batches of {batch}",
        note=f"{listed(ours)}; alone {listed(alone)}; ours computed {middle(busy):.0%} of its time",
    )
    return [at_least(0.9, figure), *[await _peer(plan, name, load, model, rows, middle(alone)) for name in PEERS]]


async def _run_ours(client: Client, model: Path, inputs: dict[str, NDArray[Any]]) -> JobTook:
    """One job; that its rows are right is what the tests are for."""
    job = await asyncio.to_thread(client.submit, model, inputs)
    return await job_took(job)


async def _peer(plan: Plan, name: str, load: Load, model: Path, rows: Path, alone: float) -> Figure:
    figure = Figure(GROUP, name, UNIT, beside=alone, beside_name="onnxruntime")
    figure = await measure_peer(plan, figure, len(load), "infer", model, rows, load.peer_chunk)
    return replace(figure, name=f"{name}, {load.name}, chunks of {load.peer_chunk}")
