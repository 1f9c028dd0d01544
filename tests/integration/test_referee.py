"""The coordinator computes rows itself: right outputs, models that loop or die, bad rows, and what is asked twice."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from coordinator.adapters.input_rows import InputRows
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.adapters.onnx_inspector import OnnxInspector
from coordinator.adapters.onnx_runner import OnnxRunner, _processor_s
from coordinator.commands import FindOut
from coordinator.errors import Rejected, StoreUnavailable
from coordinator.events import RowsKnown
from coordinator.model import Job, Model
from coordinator.ports import ModelRunner
from coordinator.referee import Referee
from fleet_wire.api import JobTerms
from fleet_wire.bundle import encode_bundle
from fleet_wire.tensors import Tensor, decode_tensors, encode_tensors
from tests.integration.small_models import digest_of, doubling, looking_up, mixed, summing_up


def looping(path: Path) -> Path:
    """A loop of x rounds: with a huge number it never ends, with a small one it gives x back."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["rounds"], keepdims=0),
            helper.make_node("Loop", ["rounds", "", "nothing"], ["total"], body=body),
            helper.make_node("Add", ["x", "total"], ["sums"]),
            helper.make_node("Sub", ["sums", "total"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("nothing", TensorProto.INT64, [1], [0]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def payload_arrays(payload: bytes | None) -> dict[str, Any]:
    assert payload is not None
    return decode_tensors(msgspec.msgpack.decode(payload, type=list[Tensor]))


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)


@dataclass
class Court:
    """A referee over real blobs, and what it told."""

    blobs: ObjectBlobs
    runner: ModelRunner
    found: dict[str, tuple[Job, Model]] = field(default_factory=dict)
    known: list[RowsKnown] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    referee: Referee = field(init=False)

    def __post_init__(self) -> None:
        self.referee = Referee(self, InputRows(self.blobs), self.blobs, self.runner, self.tell, keep_s=0.2)

    def find(self, job: str) -> tuple[Job, Model] | None:
        return self.found.get(job)

    def tell(self, event: RowsKnown) -> None:
        self.known.append(event)
        self.told.set()

    async def store(self, data: bytes) -> str:
        async def once() -> AsyncIterator[bytes]:
            yield data

        return (await self.blobs.put(once(), hashlib.sha256(data).hexdigest())).digest

    async def add(self, job: str, path: Path, inputs: dict[str, Any]) -> None:
        data = path.read_bytes()  # noqa: ASYNC240 - a few bytes
        view = await OnnxInspector().inspect(data)
        model = Model(view.digest, view.size, tuple(view.inputs), tuple(view.outputs), view.batch_rows)
        await self.store(data)
        digest = await self.store(encode_bundle(inputs))
        rows = len(next(iter(inputs.values())))
        self.found[job] = Job(job, "", model.digest, digest, rows, 16, JobTerms(), created_ms=0), model

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not done():
                self.told.clear()
                await self.told.wait()

    def rows_known(self) -> list[int]:
        return sorted(row for event in self.known for row in event.rows)

    def errors(self) -> dict[int, str]:
        return {event.rows[0]: event.error for event in self.known if event.error is not None}

    def child(self) -> psutil.Process:
        children = psutil.Process().children()
        (running,) = [each for each in children if "coordinator.adapters.onnx_run" in each.cmdline()]
        return running


@contextlib.asynccontextmanager
async def court(tmp_path: Path, runner: ModelRunner | None = None) -> AsyncIterator[Court]:
    each = Court(ObjectBlobs.in_folder(tmp_path / "blobs"), runner or OnnxRunner(30.0))
    running = asyncio.create_task(each.referee.run())
    try:
        yield each
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert not [child for child in psutil.Process().children() if "onnx_run" in " ".join(child.cmdline())]


async def test_rows_are_computed_as_the_model_says_wherever_they_lie(tmp_path: Path) -> None:
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    texts = np.array([[f"a{row}", "ü"] for row in range(4)], dtype=object)
    half, whole = np.arange(4, dtype=np.float16), np.arange(8, dtype=np.int64).reshape(4, 1, 2)
    async with court(tmp_path) as judge:
        await judge.add("doubling", doubling(tmp_path / "d.onnx"), {"x": rows})
        await judge.add("fixed", doubling(tmp_path / "f.onnx", batch=8), {"x": rows})
        await judge.add("mixed", mixed(tmp_path / "m.onnx"), {"text": texts, "half": half, "whole": whole})
        wanted = tuple(range(99, 0, -3))
        judge.referee.put([FindOut("doubling", wanted), FindOut("fixed", (5, 98)), FindOut("mixed", (3, 1))])
        await judge.until(lambda: len(judge.rows_known()) == len(wanted) + 4)
        for event in judge.known:
            outputs = payload_arrays(event.payload)
            picked = list(event.rows)
            if event.job == "mixed":
                assert outputs["text_out"].tolist() == texts[picked].tolist()
                assert outputs["half_out"].tolist() == (2 * half[picked]).tolist()
                assert outputs["whole_out"].tolist() == (-whole[picked]).tolist()
            else:
                assert np.array_equal(outputs["y"], 2 * rows[picked])
        assert judge.referee.counters == {"referee_rows": len(wanted) + 4}


async def test_what_is_asked_again_is_computed_once_and_what_has_ended_not_at_all(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        await judge.add("one", doubling(tmp_path / "d.onnx"), {"x": np.ones((5, 3), dtype=np.float32)})
        judge.referee.put([FindOut("one", (1, 2)), FindOut("gone", (1, 2)), FindOut("one", (2, 1, 3))])
        assert judge.referee.waiting == 5
        await judge.until(lambda: len(judge.rows_known()) == 3)
        assert judge.rows_known() == [1, 2, 3]
        assert judge.referee.waiting == 0


async def test_what_finds_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    judge = Court(ObjectBlobs.in_folder(tmp_path / "blobs"), OnnxRunner())
    judge.referee.put([FindOut("one", tuple(range(20_000))), FindOut("other", (1,))])
    assert judge.referee.waiting == 16_384
    assert judge.referee.counters == {"referee_queue_full": 20_000 - 16_384 + 1}


async def test_a_row_that_the_model_fails_on_takes_no_neighbours_along(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        indices = np.array([0, 1, 2, 99, 3, 4], dtype=np.int64)
        await judge.add("one", looking_up(tmp_path / "l.onnx", 5), {"x": indices})
        judge.referee.put([FindOut("one", (0,))])
        await judge.until(lambda: len(judge.known) == 1)
        judge.referee.put([FindOut("one", (1, 2, 3, 4, 5))])
        await judge.until(lambda: len(judge.rows_known()) == 6)
        assert judge.rows_known() == [0, 1, 2, 3, 4, 5]
        ((row, error),) = judge.errors().items()
        assert row == 3
        assert "the coordinator" in error
        assert "indices" in error
        assert judge.referee.counters == {"referee_rows": 5, "referee_run_failed": 1}


async def test_a_row_that_never_ends_is_given_up_after_its_time_and_others_go_on(tmp_path: Path) -> None:
    async with court(tmp_path, runner=OnnxRunner(3.0, niceness=0)) as judge:
        rounds = np.array([3, 2**62, 5], dtype=np.int64)
        await judge.add("loops", looping(tmp_path / "l.onnx"), {"x": rounds})
        judge.referee.put([FindOut("loops", (0, 1, 2))])
        await judge.until(lambda: len(judge.rows_known()) == 3)
        assert judge.errors() == {1: "the coordinator, which checks it: it took more than 3 s"}
        values = {event.rows: payload_arrays(event.payload)["y"].tolist() for event in judge.known if event.payload}
        assert values == {(0,): [3], (2,): [5]}


async def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        await judge.add("loops", looping(tmp_path / "l.onnx"), {"x": np.array([1, 2**62, 2], dtype=np.int64)})
        judge.referee.put([FindOut("loops", (0,))])
        await judge.until(lambda: len(judge.known) == 1)
        child = judge.child()
        begun_s = child.cpu_times().user
        judge.referee.put([FindOut("loops", (1, 2))])
        await eventually(lambda: child.cpu_times().user > begun_s + 0.1)
        child.kill()
        await eventually(lambda: judge.runner.model is None)
        await eventually(lambda: judge.runner.model is not None)
        second = judge.child()
        begun_s = second.cpu_times().user
        await eventually(lambda: second.cpu_times().user > begun_s + 0.1)
        second.kill()
        await judge.until(lambda: len(judge.known) == 3)
        assert judge.errors() == {1: "the coordinator, which checks it: the process that ran the model died (signal 9)"}
        assert judge.rows_known() == [0, 1, 2]


class Deadly:
    """A runner whose process every row kills."""

    model: str | None = None

    async def load(self, digest: str, model: bytes) -> None:
        self.model = digest

    async def run(self, rows: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.model = None
        raise Rejected("run_died", "killed")

    async def close(self) -> None:
        self.model = None


async def test_a_job_whose_rows_kill_the_process_is_not_tried_for_ever(tmp_path: Path) -> None:
    async with court(tmp_path, runner=Deadly()) as judge:
        await judge.add("one", doubling(tmp_path / "d.onnx"), {"x": np.ones((9, 3), dtype=np.float32)})
        judge.referee.put([FindOut("one", tuple(range(9)))])
        await judge.until(lambda: len(judge.rows_known()) == 9)
        assert judge.rows_known() == list(range(9))
        assert judge.referee.counters == {"referee_run_died": 9}
        assert [row for row, error in judge.errors().items() if "3 rows were as bad" in error] == [3, 4, 5, 6, 7, 8]


async def test_the_process_is_kept_for_the_next_question_and_let_go_when_none_comes(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        await judge.add("one", doubling(tmp_path / "d.onnx"), {"x": np.ones((5, 3), dtype=np.float32)})
        judge.referee.put([FindOut("one", (0,))])
        await judge.until(lambda: len(judge.known) == 1)
        child = judge.child()
        assert child.nice() == 19
        assert "HOME" not in child.environ()
        judge.referee.put([FindOut("one", (1,))])
        await judge.until(lambda: len(judge.known) == 2)
        await eventually(lambda: not child.is_running())
        judge.referee.put([FindOut("one", (2,))])
        await judge.until(lambda: len(judge.known) == 3)


async def test_a_model_that_loses_the_rows_fails_them(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        await judge.add("sums", summing_up(tmp_path / "s.onnx"), {"x": np.ones((4, 3), dtype=np.float32)})
        judge.referee.put([FindOut("sums", (0, 1))])
        await judge.until(lambda: len(judge.known) == 2)
        assert judge.referee.counters == {"referee_run_malformed": 2}


async def test_what_is_our_fault_is_counted_and_nobody_is_told(tmp_path: Path) -> None:
    async with court(tmp_path) as judge:
        await judge.add("one", doubling(tmp_path / "d.onnx"), {"x": np.ones((4, 3), dtype=np.float32)})
        _, model = judge.found["one"]
        blob = next((tmp_path / "blobs").rglob(model.digest))
        data = blob.read_bytes()
        blob.unlink()
        judge.referee.put([FindOut("one", (0, 1))])
        await eventually(lambda: bool(judge.referee.counters))
        assert judge.referee.counters == {"referee_blob_missing": 1}
        assert not judge.known
        blob.write_bytes(data)
        judge.referee.put([FindOut("one", (0, 1))])
        await judge.until(lambda: len(judge.rows_known()) == 2)


# The runner itself ------------------------------------------------------------------------------------------------


def ones(rows: int) -> list[Tensor]:
    return encode_tensors({"x": np.ones((rows, 3), dtype=np.float32)})


async def test_the_runner_refuses_what_is_no_model_and_outputs_beyond_measure(tmp_path: Path) -> None:
    runner = OnnxRunner(30.0, answer_bytes=1000)
    with pytest.raises(Rejected, match="can't load the model"):
        await runner.load("a" * 64, b"no model")
    assert runner.model is None
    with pytest.raises(Rejected, match="is gone"):
        await runner.run(1, ones(1))
    path = doubling(tmp_path / "d.onnx")
    await runner.load(digest_of(path), path.read_bytes())
    assert decode_tensors(await runner.run(1, ones(1)))["y"].tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(Rejected, match="are the most"):
        await runner.run(100, ones(100))
    assert runner.model is None
    await runner.close()


async def test_a_process_that_the_machine_has_no_time_for_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = OnnxRunner(60.0)
    path = looping(tmp_path / "l.onnx")
    await runner.load(digest_of(path), path.read_bytes())
    had_s = iter([7.0, 7.01, 7.02, 7.03, 7.04, 7.06])
    runner._timeout_s = 0.1
    monkeypatch.setattr("coordinator.adapters.onnx_runner._processor_s", lambda pid: next(had_s))
    with pytest.raises(Rejected, match=r"it took more than 0.1 s"):
        await runner.run(1, encode_tensors({"x": np.array([2**62])}))
    assert list(had_s) == []


async def test_a_process_for_which_somebody_waits_has_our_priority_and_is_given_up_when_it_does_nothing(
    tmp_path: Path,
) -> None:
    runner = OnnxRunner(60.0, niceness=0)
    path = looping(tmp_path / "l.onnx")
    await runner.load(digest_of(path), path.read_bytes())
    assert runner._child is not None
    child = psutil.Process(runner._child.pid)
    assert child.nice() == psutil.Process().nice()
    child.suspend()
    runner._timeout_s = 0.1
    with pytest.raises(Rejected, match=r"it took more than 0.1 s"):
        await runner.run(1, encode_tensors({"x": np.array([1])}))


def test_a_process_has_had_the_time_that_it_says_itself() -> None:
    before_s = process_time()
    assert before_s <= _processor_s(os.getpid()) <= process_time()


async def test_a_runner_that_can_not_start_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StoreUnavailable, match="can't be run here"):
        await OnnxRunner().load("a" * 64, b"model")
