"""Computes rows of jobs itself, so that the core knows the truth about them. Never judges anybody by it.

Jobs take turns. What waits is bounded by what the core asks for at once, and by `_MOST_ROWS` for all jobs together.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence
from time import monotonic
from typing import Final, Protocol

import msgspec

from coordinator.commands import FindOut
from coordinator.errors import CoordinatorError, Rejected
from coordinator.events import RowsKnown
from coordinator.model import Job, Model
from coordinator.ports import BlobStore, InputReader, ModelRunner
from coordinator.rules.fit import output_fault
from fleet_wire.api import TensorSpec
from fleet_wire.errors import WireError
from fleet_wire.tensors import Tensor

__all__ = ["Referee"]

_MOST_ROWS: Final = 16_384
_TURN_ROWS: Final = 64
_TURN_S: Final = 2.0
_TURN_BYTES: Final = 16 << 20
_PAUSE_S: Final = 1.0  # until a store or a process can be had again; the core asks again by itself
_DEATHS: Final = 3

_encode = msgspec.msgpack.Encoder().encode


class Catalogue(Protocol):
    """Where a job and its model are looked up; a job that has ended is not there."""

    def find(self, job: str) -> tuple[Job, Model] | None:
        """The job and its model, while it runs."""


class Known(Protocol):
    """Takes what was computed."""

    def __call__(self, event: RowsKnown) -> None: ...


class Referee:
    """Answers `FindOut`. What fails for reasons of ours is only counted: the core asks again."""

    def __init__(
        self,
        catalogue: Catalogue,
        inputs: InputReader,
        blobs: BlobStore,
        runner: ModelRunner,
        known: Known,
        keep_s: float = 60.0,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._catalogue = catalogue
        self._inputs = inputs
        self._blobs = blobs
        self._runner = runner
        self._known = known
        self._keep_s = keep_s
        self._waiting: OrderedDict[str, dict[int, None]] = OrderedDict()
        self._under_way: tuple[str, dict[int, None]] = ("", {})
        self._wake = asyncio.Event()
        self._row_s = _TURN_S
        self._deaths: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Rows that are still to be computed."""
        return sum(map(len, self._waiting.values()))

    def put(self, commands: Sequence[FindOut]) -> None:
        """Queue rows; those that wait already are not queued twice, and what finds no room is dropped and counted."""
        for command in commands:
            job, computing = self._under_way
            room = max(0, _MOST_ROWS - self.waiting)
            queue = self._waiting.setdefault(command.job, {})
            known = queue | computing if job == command.job else queue
            new = [row for row in command.rows if row not in known]
            queue.update(dict.fromkeys(new[:room]))
            if new[room:]:
                self.counters["referee_queue_full"] += len(new) - room
        self._wake.set()

    async def run(self) -> None:
        """Compute until cancelled; the process that does is let go when nothing was asked for a while."""
        try:
            while True:
                if self._waiting:
                    await self._take_turn()
                    continue
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._keep_s)
                except TimeoutError:
                    await self._runner.close()
                    await self._wake.wait()
        finally:
            await self._runner.close()

    async def _take_turn(self) -> None:
        """Compute some rows of the job whose turn it is; then it is the next one's."""
        job_id, queue = self._waiting.popitem(last=False)
        found = self._catalogue.find(job_id)
        if found is None or not queue:  # it has ended: nobody asks any more
            return
        job, model = found
        most = min(_TURN_ROWS, model.batch_rows or _TURN_ROWS, _TURN_BYTES // max(1, job.row_bytes))
        rows = list(queue)[: max(1, min(most, int(_TURN_S / max(self._row_s, 1e-6))))]
        for row in rows:
            del queue[row]
        self._under_way = (job_id, dict.fromkeys(rows))
        try:
            await self._load(model)
            await self._compute(job, model, rows)
        except Rejected as error:
            self._fail(job, (*self._under_way[1], *queue), error)  # no row of it can be computed
            queue = {}
        except CoordinatorError as error:
            self.counters[f"referee_{error.code}"] += len(self._under_way[1])
            self._under_way = ("", {})
            await asyncio.sleep(_PAUSE_S)
        self._under_way = ("", {})
        if waiting := queue | self._waiting.pop(job_id, {}):
            self._waiting[job_id] = waiting
        else:
            self._deaths.pop(job_id, None)

    async def _load(self, model: Model) -> None:
        if self._runner.model == model.digest:
            return
        await self._runner.load(model.digest, await self._blobs.whole(model.digest))
        self._row_s = _TURN_S  # one row first, to see how long it takes

    async def _compute(self, job: Job, model: Model, rows: Sequence[int]) -> None:
        """Compute rows together; where that fails, one by one, so that a bad row takes no neighbours along."""
        inputs = await self._inputs.gather(job.inputs, [(row, row + 1) for row in rows])
        begun_s = monotonic()
        try:
            self._tell(job, rows, await self._run(model, len(rows), inputs))
        except Rejected as error:
            self._row_s = _TURN_S
            if len(rows) == 1:
                self._blame(job, rows[0], error)
                return
        else:
            self._row_s = (monotonic() - begun_s) / len(rows)
            return
        for row in rows:
            await self._load(model)
            await self._compute(job, model, [row])

    async def _run(self, model: Model, count: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = await self._runner.run(count, inputs)
        try:
            for tensor in outputs:
                tensor.array()
        except WireError as error:
            raise Rejected("run_malformed", error.detail) from None
        fault = output_fault([TensorSpec(each.name, each.dtype, list(each.shape)) for each in outputs], count, model)
        if fault is not None:
            raise Rejected("run_malformed", fault)
        return outputs

    def _tell(self, job: Job, rows: Sequence[int], outputs: Sequence[Tensor]) -> None:
        self.counters["referee_rows"] += len(rows)
        for row in rows:
            self._under_way[1].pop(row)
        self._known(RowsKnown(job.id, tuple(rows), _encode(outputs)))

    def _blame(self, job: Job, row: int, error: Rejected) -> None:
        """A row that alone kills or stalls the process costs others much time: a few of them are enough for a job."""
        self._fail(job, (row,), error)
        if error.code != "run_failed":
            self._deaths[job.id] += 1
            if self._deaths[job.id] >= _DEATHS:
                raise Rejected(error.code, f"{_DEATHS} rows were as bad, so that no more are tried: {error.detail}")

    def _fail(self, job: Job, rows: Sequence[int], error: Rejected) -> None:
        self.counters[f"referee_{error.code}"] += len(rows)
        for row in rows:
            self._under_way[1].pop(row, None)
            self._known(RowsKnown(job.id, (row,), None, f"the coordinator, which checks it: {error.detail}"))
