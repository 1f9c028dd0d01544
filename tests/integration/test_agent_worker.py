"""The worker process on real models: types, shapes and batches as onnxruntime gives them, errors, kills and orphans."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper

from fleet_wire.tensors import Array, encode_tensors
from tests.integration.small_models import doubling, endless, looking_up, mixed, summing_up, swelling, write_model
from vehicle_agent.allotment import Allotment
from vehicle_agent.events import BatchFailed, BatchRan, Event, ModelLoaded, ModelUnusable, WorkerDied
from vehicle_agent.frames import Load, RunBatch
from vehicle_agent.inference import Inference

DEADLINE_S = 60.0


class Desk:
    """Gives the worker orders and waits for what it says."""

    def __init__(self, group: asyncio.TaskGroup, cgroup: Path | None = None) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.must_stop = False
        self.kills = 0
        self.inference = Inference(
            group,
            Allotment(threads=1),
            on_event=self.events.put_nowait,
            must_stop=lambda: self.must_stop,
            on_kill=self.killed,
            cgroup=cgroup,
        )

    def killed(self) -> None:
        self.kills += 1

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE_S):
            return await self.events.get()

    async def load(self, path: Path, unload: list[str] | None = None) -> Event:
        self.inference.order(Load(path.name, str(path), unload or []))
        return await self.next()

    def run(self, path: Path, inputs: dict[str, Array]) -> None:
        rows = len(next(iter(inputs.values())))
        self.inference.order(RunBatch(path.name, rows, encode_tensors(inputs)))

    async def outputs(self, path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
        self.run(path, inputs)
        event = await self.next()
        assert isinstance(event, BatchRan), event
        assert event.compute_ms > 0
        return event.outputs


def worker_of(parent: int) -> psutil.Process:
    (worker,) = (child for child in psutil.Process(parent).children() if "vehicle_agent.worker" in child.cmdline())
    return worker


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group)
        yield desk
        await desk.inference.close()


async def test_several_inputs_and_outputs_of_mixed_types_are_what_onnxruntime_gives(desk: Desk, tmp_path: Path) -> None:
    path = mixed(tmp_path / "m.onnx")
    inputs: dict[str, Array] = {
        "text": np.array([["a", "é"], ["", "日本"], ["c", "d"]], dtype=object),
        "half": np.array([1.5, -2, 65504], dtype=np.float16),
        "whole": np.arange(6, dtype=np.int64).reshape(3, 1, 2),
    }
    assert await desk.load(path) == ModelLoaded("m.onnx", None)
    given = await desk.outputs(path, inputs)
    direct = onnxruntime.InferenceSession(str(path))
    expected = dict(zip(given, direct.run(None, inputs), strict=True))
    assert list(given) == ["text_out", "half_out", "whole_out"]
    for name, array in expected.items():
        assert given[name].dtype == array.dtype
        np.testing.assert_array_equal(given[name], array)


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [(TensorProto.BFLOAT16, ml_dtypes.bfloat16), (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn)],
)
async def test_types_that_numpy_does_not_know_come_through(
    desk: Desk, tmp_path: Path, element_type: int, dtype: Any
) -> None:
    path = write_model(
        tmp_path / "m.onnx",
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["wide"], ["w"]),
            helper.make_node("Cast", ["w"], ["y"], to=element_type),
        ],
        [("x", element_type, ["n", 3])],
        [("y", element_type, ["n", 3]), ("w", TensorProto.FLOAT, ["n", 3])],
    )
    assert await desk.load(path) == ModelLoaded("m.onnx", None)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    given = await desk.outputs(path, {"x": x})
    assert given["y"].dtype == dtype
    np.testing.assert_array_equal(given["y"].astype(float), -x.astype(float))
    assert given["w"].tolist() == (-x.astype(float)).tolist()


async def test_a_fixed_batch_is_filled_up_and_the_filling_left_out(desk: Desk, tmp_path: Path) -> None:
    path = doubling(tmp_path / "m.onnx", batch=4)
    assert await desk.load(path) == ModelLoaded("m.onnx", 4)
    for rows in (1, 3, 4):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        np.testing.assert_array_equal((await desk.outputs(path, {"x": x}))["y"], 2 * x)


async def test_an_error_of_the_model_is_told_and_the_next_batch_runs(desk: Desk, tmp_path: Path) -> None:
    path = looking_up(tmp_path / "m.onnx", entries=5)
    await desk.load(path)
    desk.run(path, {"x": np.array([1, 99])})
    desk.run(path, {"x": np.array([4, 2])})
    failed = await desk.next()
    assert isinstance(failed, BatchFailed)
    assert failed.by_row
    assert "out of" in failed.error
    assert (await desk.next()).outputs["y"].tolist() == [40, 20]  # type: ignore[union-attr]


async def test_an_output_that_has_lost_the_rows_fails_as_a_whole_and_says_why(desk: Desk, tmp_path: Path) -> None:
    path = summing_up(tmp_path / "m.onnx")
    await desk.load(path)
    desk.run(path, {"x": np.ones((2, 3), np.float32)})
    failed = await desk.next()
    assert failed == BatchFailed("output 'y' has shape () for 2 rows: its first axis must be the rows", False)


async def test_inputs_under_other_names_fail_as_a_whole(desk: Desk, tmp_path: Path) -> None:
    path = doubling(tmp_path / "m.onnx")
    await desk.load(path)
    desk.run(path, {"z": np.ones((2, 3), np.float32)})
    assert await desk.next() == BatchFailed("the model takes x and got z", False)


async def test_what_is_no_model_of_rows_is_refused_with_a_reason(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    scalar = write_model(
        tmp_path / "scalar.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, [])],
    )
    fixed = write_model(
        tmp_path / "fixed.onnx",
        [helper.make_node("Identity", ["c"], ["y"]), helper.make_node("Neg", ["x"], ["w"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, [7]), ("w", TensorProto.FLOAT, ["n"])],
        [("c", np.zeros(7, np.float32))],
    )
    sequence = write_model(
        tmp_path / "sequence.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    for path, words in (
        (tmp_path / "text.onnx", "rotobuf"),
        (scalar, "input 'x' is a scalar: its first axis must be the rows"),
        (fixed, "output 'y' has 7 rows however many go in"),
        (sequence, "output 'y' is a seq(tensor(float)) and must be a tensor"),
    ):
        event = await desk.load(path)
        assert isinstance(event, ModelUnusable)
        assert words in event.error


async def test_models_are_let_go_when_told(desk: Desk, tmp_path: Path) -> None:
    first, second = doubling(tmp_path / "1.onnx"), doubling(tmp_path / "2.onnx")
    await desk.load(first)
    assert await desk.load(second, unload=["1.onnx"]) == ModelLoaded("2.onnx", None)
    x = np.ones((1, 3), np.float32)
    assert (await desk.outputs(second, {"x": x}))["y"].tolist() == [[2, 2, 2]]


async def test_a_worker_that_is_killed_from_outside_is_noticed_and_the_next_order_starts_another(
    desk: Desk, tmp_path: Path
) -> None:
    path = doubling(tmp_path / "m.onnx")
    await desk.load(path)
    worker_of(os.getpid()).kill()
    assert await desk.next() == WorkerDied("it ended with SIGKILL")
    assert await desk.load(path) == ModelLoaded("m.onnx", None)


async def test_a_worker_that_is_stopped_from_outside_is_killed_and_the_next_order_starts_another(
    desk: Desk, tmp_path: Path
) -> None:
    path = doubling(tmp_path / "m.onnx")
    await desk.load(path)
    worker_of(os.getpid()).suspend()
    desk.run(path, {"x": np.ones((1, 2), np.float32)})
    assert await desk.next() == WorkerDied("it ended with SIGKILL")
    assert await desk.load(path) == ModelLoaded(path.name, None)


async def test_a_worker_that_we_kill_is_gone_at_once_and_says_nothing_more(desk: Desk, tmp_path: Path) -> None:
    path = doubling(tmp_path / "m.onnx")
    await desk.load(path)
    process = worker_of(os.getpid())
    for _ in range(50):
        desk.run(path, {"x": np.ones((1000, 3), np.float32)})
    desk.inference.kill()
    await asyncio.to_thread(process.wait, DEADLINE_S)
    assert await desk.load(path) == ModelLoaded("m.onnx", None)
    assert desk.events.empty()


ENDLESS = {"times": np.array([1 << 40]), "x": np.zeros((1, 3), np.float32)}


async def until_busy(worker: psutil.Process) -> None:
    """Wait until it is in the middle of something long."""
    busy_s = worker.cpu_times().user
    async with asyncio.timeout(DEADLINE_S):
        while worker.cpu_times().user < busy_s + 0.1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_guard_kills_in_the_middle_of_a_batch_while_the_event_loop_stands_still(
    desk: Desk, tmp_path: Path
) -> None:
    path = endless(tmp_path / "m.onnx")
    await desk.load(path)
    desk.run(path, ENDLESS)
    worker = worker_of(os.getpid())
    await until_busy(worker)
    desk.must_stop = True
    worker.wait(DEADLINE_S)  # blocks the loop
    assert desk.kills == 1
    desk.must_stop = False
    desk.inference.kill()  # as who hears of it does
    assert await desk.load(path) == ModelLoaded("m.onnx", None)
    assert desk.events.empty()


@pytest.fixture
async def parent(tmp_path: Path) -> AsyncIterator[subprocess.Popen[str]]:
    """A process with an agent's end of a worker, which computes without end."""
    path = endless(tmp_path / "m.onnx")
    script = f"""
import asyncio
import numpy as np
from fleet_wire.tensors import encode_tensors
from vehicle_agent.allotment import Allotment
from vehicle_agent.frames import Load, RunBatch
from vehicle_agent.inference import Inference

async def main():
    async with asyncio.TaskGroup() as group:
        events = asyncio.Queue()
        inference = Inference(
            group,
            Allotment(threads=1),
            on_event=events.put_nowait,
            must_stop=lambda: False,
            on_kill=lambda: None,
        )
        inference.order(Load("m", {str(path)!r}, []))
        await events.get()
        inputs = {{"times": np.array([1 << 40]), "x": np.zeros((1, 3), np.float32)}}
        inference.order(RunBatch("m", 1, encode_tensors(inputs)))
        print("given", flush=True)
        print(await events.get(), flush=True)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline) == "given\n"
    yield parent
    parent.kill()
    parent.wait()
    parent.stdout.close()


async def test_a_worker_dies_with_its_parent_in_the_middle_of_a_long_batch(parent: subprocess.Popen[str]) -> None:
    worker = worker_of(parent.pid)
    await until_busy(worker)
    parent.kill()
    await asyncio.to_thread(worker.wait, DEADLINE_S)


async def test_a_worker_ends_itself_when_its_parent_stands_still_which_then_knows_why(
    parent: subprocess.Popen[str],
) -> None:
    worker = worker_of(parent.pid)
    await until_busy(worker)
    parent.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE_S):
        while worker.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - the parent can't bury it
            await asyncio.sleep(0.02)
    parent.send_signal(signal.SIGCONT)
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline) == "WorkerUnwatched()\n"


async def test_what_needs_more_memory_than_the_car_gives_fails_and_the_next_batch_runs(
    desk: Desk, tmp_path: Path
) -> None:
    path = swelling(tmp_path / "m.onnx")
    desk.inference.allotment = Allotment(threads=1, memory_bytes=1 << 29)
    await desk.load(path)
    x = np.ones((1, 3), np.float32)
    desk.run(path, {"elements": np.array([1 << 28]), "x": x})
    failed = await desk.next()
    assert isinstance(failed, BatchFailed), failed
    assert "allocat" in failed.error
    np.testing.assert_array_equal((await desk.outputs(path, {"elements": np.array([8]), "x": x}))["y"], x)


async def test_a_worker_computes_only_for_its_share_of_the_time(desk: Desk, tmp_path: Path) -> None:
    path = endless(tmp_path / "m.onnx")
    desk.inference.allotment = Allotment(threads=1, busy_share=0.25)
    await desk.load(path)
    before_s, started_s = sum(worker_of(os.getpid()).cpu_times()[:2]), time.perf_counter()
    told: list[BatchRan] = []
    for _ in range(8):
        desk.run(path, {"times": np.array([10]), "x": np.zeros((1, 3), np.float32)})
        told.append(await desk.next())  # type: ignore[arg-type]
    worked_s = sum(worker_of(os.getpid()).cpu_times()[:2]) - before_s
    assert worked_s / (time.perf_counter() - started_s) < 0.5
    # Whoever plans by what a batch takes must know that the worker rests in between.
    assert sum(each.compute_ms for each in told) > 2 * sum(each.processor_ms for each in told)


@pytest.mark.parametrize("is_delegated", [True, False])
async def test_a_worker_enters_its_control_group_and_runs_without_one_too(tmp_path: Path, is_delegated: bool) -> None:
    group = tmp_path / "worker"
    if is_delegated:  # it looks like one; the system would make these files
        (tmp_path / "cgroup.subtree_control").touch()
        group.mkdir()
        for name in ("memory.max", "cpu.max", "cgroup.procs"):
            (group / name).touch()
    path = doubling(tmp_path / "m.onnx")
    async with asyncio.TaskGroup() as tasks:
        desk = Desk(tasks, group)
        assert await desk.load(path) == ModelLoaded("m.onnx", None)
        if is_delegated:
            assert (group / "cgroup.procs").read_text() == str(worker_of(os.getpid()).pid)
        await desk.inference.close()
