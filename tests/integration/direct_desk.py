"""A desk that runs jobs at once with onnxruntime in its own process, and a server around it for tests of HTTP."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from coordinator.adapters.http import HttpLimits, build_app, open_listener, serve
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.assembly import assemble
from coordinator.errors import Rejected, ResourceMissing
from coordinator.model import Piece
from coordinator.ports import ReceiptFilter
from fleet_wire.api import (
    FailedRowView,
    HealthView,
    JobExplanation,
    JobRequest,
    JobView,
    ModelView,
    ReasonView,
    ReceiptView,
    RowsFrame,
    StatementLine,
    TensorSpec,
    VehicleView,
)
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.tensors import Array, decode_tensors, encode_tensors
from fleet_wire.trace import TraceContext

_RUNTIME_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)

__all__ = ["DirectDesk", "Served", "double_model", "mixed_model", "serving"]


def double_model() -> bytes:
    """One input x [rows, 3], one output y = 2 x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
    )
    return _serialized(graph)


def mixed_model() -> bytes:
    """Two inputs of different types; three outputs whose names numpy.savez can't write."""
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["text"], ["file"]),
            helper.make_node("Cast", ["number"], ["a/b"], to=TensorProto.INT64),
            helper.make_node("Greater", ["number", "number"], ["args"]),
        ],
        "mixed",
        [
            helper.make_tensor_value_info("number", TensorProto.DOUBLE, ["rows", "width"]),
            helper.make_tensor_value_info("text", TensorProto.STRING, ["rows"]),
        ],
        [
            helper.make_tensor_value_info("file", TensorProto.STRING, ["rows"]),
            helper.make_tensor_value_info("a/b", TensorProto.INT64, ["rows", "width"]),
            helper.make_tensor_value_info("args", TensorProto.BOOL, ["rows", "width"]),
        ],
    )
    return _serialized(graph)


def _serialized(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass
class _DirectJob:
    view: JobView
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    frames: list[RowsFrame]
    shown: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class DirectDesk:
    """Holds everything in memory. With `hold`, frames of a job are shown only when `show` is called."""

    def __init__(self, blobs: ObjectBlobs, *, hold: bool = False) -> None:
        self._blobs = blobs
        self._hold = hold
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._models: dict[str, ModelView] = {}
        self._jobs: dict[str, _DirectJob] = {}
        self.callers: list[TraceContext | None] = []
        self.streams_open = 0
        self.cut_next_stream_after: int | None = None

    async def add_model(self, digest: str) -> ModelView:
        size = await self._blobs.size(digest)
        try:
            session = onnxruntime.InferenceSession(await self._blobs.read(digest, 0, size))
        except _RUNTIME_ERRORS as error:
            raise Rejected("bad_model", f"the model cannot be loaded: {error}".splitlines()[0]) from None
        self._sessions[digest] = session
        self._models[digest] = ModelView(
            digest, size, [_spec(value) for value in session.get_inputs()], [_spec(v) for v in session.get_outputs()]
        )
        return self._models[digest]

    async def submit(self, request: JobRequest, caller: TraceContext | None) -> JobView:
        self.callers.append(caller)
        if request.model not in self._models:
            raise ResourceMissing("model_unknown", "register the model first")
        inputs = decode_bundle(await self._blobs.read(request.inputs, 0, await self._blobs.size(request.inputs)))
        expected = {spec.name: spec.dtype for spec in self._models[request.model].inputs}
        if set(inputs) != set(expected):
            raise Rejected("wrong_inputs", f"the model's inputs are {sorted(expected)} and not {sorted(inputs)}")
        try:
            outputs = dict(
                zip(
                    (spec.name for spec in self._models[request.model].outputs),
                    self._sessions[request.model].run(None, inputs),
                    strict=True,
                )
            )
        except _RUNTIME_ERRORS as error:
            raise Rejected("wrong_inputs", " ".join(str(error).split())) from None
        rows = len(next(iter(inputs.values())))
        view = JobView(
            id=f"job-{len(self._jobs)}", name=request.name, model=request.model, state="running", rows=rows,
            rows_done=0, rows_leased=0, created_ms=1, ended_ms=None, error=None, rows_duplicate=0,
            rows_released_again=0, compute_ms=0.0, energy_mwh=0, pay_micro=0, vehicles=1,
        )  # fmt: skip
        job = _DirectJob(view, inputs, outputs, _frames(outputs, rows, request.terms.chunk_rows or 4))
        self._jobs[view.id] = job
        if not self._hold:
            self.show(view.id, len(job.frames))
        return job.view

    def show(self, job_id: str, frames: int) -> None:
        """Accept the next frames of a job; after the last one it is done."""
        job = self._jobs[job_id]
        job.shown = min(job.shown + frames, len(job.frames))
        rows_done = sum(stop - start for frame in job.frames[: job.shown] for start, stop, _ in frame.spans)
        state = "done" if job.shown == len(job.frames) else "running"
        self._change(job, msgspec.structs.replace(job.view, rows_done=rows_done, state=state))

    def fail(self, job_id: str, error: str) -> None:
        job = self._jobs[job_id]
        self._change(job, msgspec.structs.replace(job.view, state="failed", error=error))

    async def cancel(self, job: str) -> JobView:
        found = self._find(job)
        if found.view.state == "running":
            self._change(found, msgspec.structs.replace(found.view, state="cancelled"))
        return found.view

    async def job(self, job: str) -> JobView:
        return self._find(job).view

    async def jobs(self) -> list[JobView]:
        return [job.view for job in self._jobs.values()]

    def vehicles(self) -> Iterator[VehicleView]:
        yield self.vehicle("car-1")
        yield self.vehicle("car-2")

    def vehicle(self, vehicle: str) -> VehicleView:
        reasons = {"car-1": None, "car-2": "not_plugged_in: it is not plugged in"}
        if vehicle not in reasons:
            raise ResourceMissing("vehicle_unknown", f"there is no vehicle {vehicle!r}: see `idlewheel vehicles`")
        reason = reasons[vehicle]
        why = [] if reason is None else [ReasonView("not_plugged_in", "it is not plugged in", remedy="plug it in")]
        return VehicleView(
            vehicle, True, reason is None, reason, reason is None, False, 80.0, 2, 10.5, 7, 1, 2, 3, reasons=why
        )

    async def rows(self, job: str, after: int) -> AsyncIterator[RowsFrame]:
        found = self._find(job)
        sent = 0
        self.streams_open += 1
        try:
            while True:
                found.changed.clear()
                while after < found.shown:
                    if sent == self.cut_next_stream_after:
                        self.cut_next_stream_after = None
                        raise ConnectionResetError("the network went away")
                    after, sent = after + 1, sent + 1
                    yield found.frames[after - 1]
                if found.view.state != "running":
                    yield RowsFrame(after, [], [], found.view.state, found.view.error)
                    return
                await found.changed.wait()
        finally:
            self.streams_open -= 1

    async def result(self, job: str, *, partial: bool = False) -> AsyncIterator[bytes]:
        found = self._find(job)
        if found.view.state != "done" and not (partial and found.view.rows_done):
            raise Rejected("not_done", f"job {job} is {found.view.state}")
        parts = [
            ([Piece(*span) for span in frame.spans], decode_tensors(frame.outputs))
            for frame in found.frames[: found.shown]
        ]
        data = encode_bundle(assemble(parts, found.view.rows))
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    async def failures(self, job: str) -> list[FailedRowView]:
        error = self._find(job).view.error
        return [] if error is None else [FailedRowView(3, 2, error)]

    async def explain(self, job: str) -> JobExplanation:
        view = self._find(job).view
        if view.state != "running":
            raise Rejected("not_running", f"job {job} is {view.state}, so it waits for nothing")
        waiting = view.rows - view.rows_done
        cars, advice = {"busy": 1}, ["1 car busy: they take more rows when they have worked off what they hold"]
        return JobExplanation(view, waiting, cars, advice, 1, 1.0, 0, 1, await self.failures(job))

    async def input_rows(self, job: str, start: int, stop: int) -> bytes:
        found = self._find(job)
        if stop > found.view.rows:
            raise ResourceMissing("rows_unknown", f"job {job} has {found.view.rows} rows")
        return encode_bundle({name: array[start:stop] for name, array in found.inputs.items()})

    async def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Says back what was asked."""
        return [StatementLine(f"{by} {only}", 1, 2, 3, 4, 5)]

    async def receipts(self, only: ReceiptFilter, after: tuple[str, int]) -> list[ReceiptView]:
        """Two pages: chunks 0 and 1, then 2."""
        pages = {("", 0): [0, 1], ("j", 1): [2]}
        view = ReceiptView("", "", "v", "j", 0, "2026-11", 0, 1, 1, 2, 3, 4, 5, 6, 7)
        return [msgspec.structs.replace(view, cursor=f"j.{chunk}", chunk=chunk) for chunk in pages.get(after, [])]

    def health(self) -> HealthView:
        return HealthView("ok", "test", True, 2, 1, len(self._jobs), {"malformed": 2}, {})

    def _find(self, job: str) -> _DirectJob:
        if job not in self._jobs:
            raise ResourceMissing("job_unknown", f"there is no job {job!r}: see `idlewheel jobs`")
        return self._jobs[job]

    def _change(self, job: _DirectJob, view: JobView) -> None:
        job.view = view
        job.changed.set()


def _spec(value: onnxruntime.NodeArg) -> TensorSpec:
    shape = [axis if isinstance(axis, int) else None for axis in value.shape]
    return TensorSpec(value.name, value.type.removeprefix("tensor(").removesuffix(")"), shape)


def _frames(outputs: dict[str, Array], rows: int, chunk_rows: int) -> list[RowsFrame]:
    """Chunks two by two, the last first, as cars that finish at different times would deliver them."""
    chunks = [(start, min(start + chunk_rows, rows)) for start in range(0, rows, chunk_rows)][::-1]
    frames = []
    for index in range(0, len(chunks), 2):
        spans, offset = [], 0
        for start, stop in chunks[index : index + 2]:
            spans.append((start, stop, offset))
            offset += stop - start
        parts = {
            name: np.concatenate([output[start:stop] for start, stop, _ in spans]) for name, output in outputs.items()
        }
        frames.append(RowsFrame(index // 2 + 1, spans, encode_tensors(parts)))
    return frames


@dataclass
class Served:
    """A server in a thread of its own; `call` runs a function of the desk in its event loop."""

    url: str
    desk: DirectDesk
    blobs: ObjectBlobs
    refusals: Counter[str]
    loop: asyncio.AbstractEventLoop

    def show(self, job: str, frames: int) -> None:
        self.loop.call_soon_threadsafe(self.desk.show, job, frames)

    def fail(self, job: str, error: str) -> None:
        self.loop.call_soon_threadsafe(self.desk.fail, job, error)


@contextmanager
def serving(
    folder: Path,
    *,
    hold: bool = False,
    port: int = 0,
    limits: HttpLimits = HttpLimits(),
    desk: DirectDesk | None = None,
) -> Iterator[Served]:
    """Serve a DirectDesk (a new one, or the one of a server before) with blobs in `folder` on a loopback port."""
    listener = open_listener("127.0.0.1", port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started: list[tuple[Served, asyncio.Task[None]]] = []
    ready = threading.Event()

    async def run() -> None:
        blobs = ObjectBlobs.in_folder(folder)
        served_desk = desk or DirectDesk(blobs, hold=hold)
        refusals: Counter[str] = Counter()
        served = Served(url, served_desk, blobs, refusals, asyncio.get_running_loop())
        task = asyncio.create_task(serve(build_app(served_desk, blobs, refusals, list, limits), listener))
        started.append((served, task))
        ready.set()
        await asyncio.wait({task})

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        served, task = started[0]
        yield served
    finally:
        served.loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
    assert not thread.is_alive()
