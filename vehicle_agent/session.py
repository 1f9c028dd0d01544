"""The car's brain for leased rows: events in, commands out. Never awaits, reads no clock, touches only its own memory.

Every leased row ends exactly once: sent (itself or by reference), refused with its chunk, or failed. A lease that is
refused ends all its rows that have not ended yet, also those inside the worker, whose outputs are then left out.
Leases end with the connection under which they were granted, because the coordinator leases their rows again then;
what was computed before that is still sent.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import BlobRef, Failure, Refusal, RefusalReason, Rows, Task
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Array, decode_tensors
from vehicle_agent.events import (
    BatchFailed,
    BatchRan,
    Command,
    Connected,
    Drained,
    Event,
    FetchInputs,
    FetchModel,
    InputsArrived,
    InputsUnavailable,
    JobCancelled,
    Judged,
    KillWorker,
    LoadModel,
    ModelArrived,
    ModelLoaded,
    ModelUnavailable,
    ModelUnusable,
    OutboxFilled,
    PolicyChanged,
    Run,
    Send,
    ShutDown,
    TaskOffered,
    Tick,
    UploadFailed,
    WorkerDied,
    WorkerUnwatched,
)
from vehicle_agent.holding import Holding, Piece, layout_of
from vehicle_agent.pace import Pace, PaceLimits
from vehicle_agent.policy import IneligibleReason, Level, refusal_reason, task_objection
from vehicle_agent.results import NJ_PER_MWH, Gathered

__all__ = ["Session", "SessionLimits"]

_CHUNKS_IN_REFUSAL = 8192
_DEATHS_IN_A_ROW = 3
_MAX_DETAIL = 1000
_MAX_ERROR = 4000
_NJ_PER_MJ = 1_000_000


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds. `pipe_batches` keeps one batch waiting behind the one that computes, so that the worker never starves.

    `finish_ms` is the grace time of work that may be finished.
    """

    slots: int = 1024
    input_bytes: int = 256 << 20
    worker_models: int = 4
    pipe_batches: int = 2
    gather_ms: int = 100
    finish_ms: int = 1000
    worker_idle_ms: int = 300_000
    pace: PaceLimits = field(default_factory=PaceLimits)


class _Stage(Enum):
    ABSENT = 0  # not in the worker; perhaps on the disk
    FETCHING = 1
    LOADING = 2
    LOADED = 3


@dataclass(slots=True, eq=False)
class _Model:
    pace: Pace
    ref: BlobRef
    stage: _Stage = _Stage.ABSENT
    rows: int = 0  # held and not ended


@dataclass(slots=True, eq=False)
class _Batch:
    model: _Model
    pieces: list[Piece]
    rows: int
    deadline_ms: int


@dataclass(slots=True, eq=False)
class _Job:
    """What is held of one job: `held` finds a chunk's lease, `waiting` has the rows whose inputs are here, in order."""

    held: dict[int, tuple[Holding, int]] = field(default_factory=dict)
    waiting: deque[Piece] = field(default_factory=deque)


@dataclass(slots=True)
class Session:
    """All leases of one vehicle, from offer to end."""

    limits: SessionLimits = field(default_factory=SessionLimits)
    policy: OwnerPolicy | None = None
    epoch: int = 0
    max_bytes: int = 64 * 1024
    reason: IneligibleReason | None = IneligibleReason.TELEMETRY_MISSING
    draining: bool = False
    open_leases: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    _compute_w: float = 0.0
    _awake_w: float = 0.0
    _spare_nj: int = 0
    _paused: bool = False
    _finish_by_ms: int | None = None
    _bytes_held: int = 0
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _models: dict[str, _Model] = field(default_factory=dict)
    _holdings: dict[int, Holding] = field(default_factory=dict)
    _next_task: int = 0
    _running: deque[_Batch] = field(default_factory=deque)
    _gathered: dict[str, Gathered] = field(default_factory=dict)
    _worker_up: bool = False
    _worker_used_ms: int = 0
    _deaths: int = 0

    @property
    def working(self) -> bool:
        """The worker computes."""
        return bool(self._running)

    @property
    def busy(self) -> bool:
        """Something is held or not yet sent, so that `Tick` is due often; else now and then is enough."""
        return bool(self._holdings or self._running or self._gathered)

    @property
    def free_slots(self) -> int:
        """How many more leases it would take."""
        return 0 if self.draining else max(0, self.limits.slots - self.open_leases)

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Take one event in; return what is to be done about it."""
        if self._running:
            self._worker_used_ms = now_ms
        return [*self._react(event, now_ms), *self._finish(now_ms), *self._feed_worker()]

    def _react(self, event: Event, now_ms: int) -> list[Command]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        match event:
            case BatchRan():
                return self._batch_ran(event, now_ms)
            case TaskOffered(task):
                return self._task_offered(task, now_ms)
            case Tick():
                return self._tick(now_ms)
            case Judged(reason, compute_w, awake_w, level):
                self._compute_w, self._awake_w = compute_w, awake_w
                return self._judged(reason, level, now_ms)
            case PolicyChanged(policy):
                self.policy = policy
                for model in self._models.values():  # the next worker may use more of the car, or less
                    model.pace = Pace(self.limits.pace)
                detail = "the consent that it relied on does not hold any more"
                return [*self._kill_worker(), *self._refuse_all(RefusalReason.CONSENT_MISSING, detail)]
            case Connected(epoch, max_bytes):
                commands = self._refuse_all(RefusalReason.LEAVING, "the connection that granted it has ended")
                self.epoch, self.max_bytes, self.draining = epoch, max_bytes, False
                return commands
            case JobCancelled(job, chunks):
                held = self._jobs[job].held if job in self._jobs else {}
                named = [chunk for chunk in dict.fromkeys(chunks) if chunk in held] if chunks else list(held)
                return self._refuse(job, named, RefusalReason.CANCELLED)
            case Drained():
                self.draining = True
                return []
            case ShutDown():
                self.draining = True
                return [*self._refuse_all(RefusalReason.DRAINING), *self._kill_worker()]
            case ModelArrived(digest):
                return self._model_arrived(digest, now_ms)
            case ModelUnavailable(digest, detail):
                self._models[digest].stage = _Stage.ABSENT
                return self._refuse_where(lambda each: each.model == digest, RefusalReason.MODEL_MISSING, detail)
            case ModelLoaded(digest, batch_rows):
                self._models[digest].stage = _Stage.LOADED
                self._models[digest].pace.fixed_rows = batch_rows
                return []
            case ModelUnusable(digest, error):
                self._models[digest].stage = _Stage.ABSENT
                return self._fail_model(digest, error)
            case InputsArrived(task, inputs):
                return self._inputs_arrived(task, inputs)
            case InputsUnavailable(task, detail):
                gone = self._holdings.get(task)
                return self._refuse_where(lambda each: each is gone, RefusalReason.INPUTS_MISSING, detail)
            case BatchFailed(error, by_row):
                return self._batch_failed(error, by_row=by_row)
            case WorkerDied(detail):
                return self._worker_died(detail)
            case WorkerUnwatched():
                self.counters["worker_unwatched"] += 1
                return self._kill_worker()
            case UploadFailed(rows, detail):
                return self._give_back(rows, detail)
            case OutboxFilled(full):
                self._paused = full
                return []

    # Tasks -----------------------------------------------------------------------------------------------------------

    def _task_offered(self, task: Task, now_ms: int) -> list[Command]:
        objection = self._objection(task, now_ms)
        if objection is not None:
            return self._refuse_task(task, objection)
        try:
            holding = _holding_of(task)
        except WireError as error:
            return self._refuse_task(task, RefusalReason.MALFORMED, error.detail)
        if self._bytes_held + holding.bytes_held > self.limits.input_bytes:
            return self._refuse_task(task, RefusalReason.BUSY, "no memory for its inputs")
        if self._too_late(holding, now_ms):
            return self._refuse_task(task, RefusalReason.EXPIRED, "it would not end before its deadline")
        commands = self._take(holding)
        if holding.left.any():
            commands += self._hold(holding, task)
        return commands

    def _hold(self, holding: Holding, task: Task) -> list[Command]:
        holding.number, self._next_task = self._next_task, self._next_task + 1
        self._holdings[holding.number] = holding
        self._bytes_held += holding.bytes_held
        model = self._models.setdefault(holding.model, _Model(Pace(self.limits.pace), task.model))
        model.ref = task.model
        model.rows += int(holding.left.sum())
        if holding.inputs:
            self._queue(holding)
            return []
        assert task.inputs_ref is not None
        return [FetchInputs(holding.number, task.inputs_ref)]

    def _objection(self, task: Task, now_ms: int) -> RefusalReason | None:
        if task.epoch != self.epoch:
            return RefusalReason.STALE_EPOCH
        if self.draining:
            return RefusalReason.DRAINING
        if self.reason is not None:
            return refusal_reason(self.reason, held=False)
        if task.deadline_ms <= now_ms:
            return RefusalReason.EXPIRED
        return task_objection(task, self.policy)

    def _refuse_task(self, task: Task, reason: RefusalReason, detail: str = "") -> list[Command]:
        """Refuse all leases of a task, but for chunks that are held already under an earlier one."""
        held = self._jobs[task.job].held if task.job in self._jobs and task.epoch == self.epoch else {}
        chunks = [lease.chunk for lease in task.leases if lease.chunk not in held]
        return list(self._refusals(task.job, task.epoch, chunks, reason, detail))

    def _too_late(self, holding: Holding, now_ms: int) -> bool:
        """Say whether it can't end in time, by the speed that this model showed here; not known is not too late."""
        rows = {digest: model.rows for digest, model in self._models.items() if model.rows}
        rows[holding.model] = rows.get(holding.model, 0) + holding.rows
        paces = [(self._models[digest].pace, count) for digest, count in rows.items() if digest in self._models]
        work_ms = sum(count * pace.row_ms for pace, count in paces if pace.row_ms is not None)
        return now_ms + work_ms > holding.deadline_ms

    def _take(self, holding: Holding) -> list[Command]:
        """Hold as many of a task's leases as there are slots; leave out those that are held already."""
        held = self._jobs.setdefault(holding.job, _Job()).held
        busy: list[int] = []
        for place, lease in enumerate(holding.leases):
            if lease.chunk in held:
                self.counters["lease_twice"] += 1
                holding.left[place] = 0
            elif self.open_leases >= self.limits.slots:
                busy.append(lease.chunk)
                holding.left[place] = 0
            else:
                held[lease.chunk] = (holding, place)
                self.open_leases += 1
        if not held:
            del self._jobs[holding.job]
        return list(self._refusals(holding.job, self.epoch, busy, RefusalReason.BUSY))

    def _inputs_arrived(self, task: int, inputs: dict[str, Array]) -> list[Command]:
        holding = self._holdings.get(task)
        if holding is None:
            return []
        try:
            holding.layout = layout_of(inputs, holding.rows)
        except WireError as error:
            return self._refuse_where(lambda each: each is holding, RefusalReason.MALFORMED, error.detail)
        holding.inputs = inputs
        self._queue(holding)
        return []

    def _queue(self, holding: Holding) -> None:
        self._jobs[holding.job].waiting.extend(Piece(holding, 0, holding.rows).living())

    # The worker ------------------------------------------------------------------------------------------------------

    def _feed_worker(self) -> list[Command]:
        """Bring models one step nearer and keep the worker's pipe full."""
        commands: list[Command] = []
        if self.reason is not None or self._paused:
            return commands
        for model in self._models.values():
            if model.rows and model.stage is _Stage.ABSENT:
                model.stage = _Stage.FETCHING
                commands.append(FetchModel(model.ref))
        while len(self._running) < self.limits.pipe_batches:
            batch = self._next_batch()
            if batch is None:
                break
            self._running.append(batch)
            holding, start = batch.pieces[0].holding, batch.pieces[0].start
            chunk = holding.leases[holding.lease_range(start, start + 1)[0]].chunk
            commands.append(Run(holding.model, batch.rows, _inputs_of(batch.pieces), holding.job, chunk))
        return commands

    def _model_arrived(self, digest: str, now_ms: int) -> list[Command]:
        """Load it, if it is still wanted; for room the worker lets go of models that nothing held needs."""
        model = self._models[digest]
        if not model.rows or self.reason is not None:  # while work is finished, nothing new begins
            model.stage = _Stage.ABSENT
            return []
        loaded = {each for each, other in self._models.items() if other.stage is _Stage.LOADED}
        running = [batch.model for batch in self._running]
        spare = [each for each in loaded if not self._models[each].rows and self._models[each] not in running]
        unload = tuple(sorted(spare)[: max(0, len(loaded) + 1 - self.limits.worker_models)])
        for each in unload:
            self._models[each].stage = _Stage.ABSENT
        model.stage = _Stage.LOADING
        self._worker_up, self._worker_used_ms = True, now_ms
        return [LoadModel(digest, unload)]

    def _next_batch(self) -> _Batch | None:
        """Form a batch of the first job that has rows to run."""
        for job in self._jobs.values():
            while job.waiting:
                model = self._models[job.waiting[0].holding.model]
                if model.stage is not _Stage.LOADED:
                    break
                pieces = self._take_rows(job.waiting, model.pace)
                if pieces:
                    rows = pieces[-1].at + pieces[-1].rows
                    return _Batch(model, pieces, rows, max(piece.holding.deadline_ms for piece in pieces))
        return None

    def _take_rows(self, waiting: deque[Piece], pace: Pace) -> list[Piece]:
        """Remove living rows of one layout from the queue's head, up to one batch; none when the head was dead."""
        pieces: list[Piece] = []
        layout, count, wanted = None, 0, 1
        while waiting and count < wanted:
            head = waiting[0]
            if pieces and (head.alone or pieces[0].alone or head.holding.layout != layout):
                break
            waiting.popleft()
            parts = list(head.living())
            if not parts:
                continue
            piece, rest = parts[0], parts[1:]
            if not pieces:
                layout = piece.holding.layout
                wanted = 1 if piece.alone else pace.rows(piece.holding.bytes_held / piece.holding.rows)
            room = wanted - count
            if piece.rows > room:
                rest.insert(0, piece.part(piece.start + room, piece.stop))
                piece = piece.part(piece.start, piece.start + room)
            waiting.extendleft(reversed(rest))
            pieces.append(Piece(piece.holding, piece.start, piece.stop, count, piece.alone, piece.deaths))
            count += piece.rows
        return pieces

    def _batch_ran(self, event: BatchRan, now_ms: int) -> list[Command]:
        batch = self._running.popleft()
        self._deaths = 0
        batch.model.pace.learn(batch.rows, event.compute_ms, sum(each.nbytes for each in event.outputs.values()))
        pieces = _living(batch.pieces)
        return self._gather(pieces, batch.rows, event, now_ms) if pieces else []

    def _gather(self, pieces: list[Piece], batch_rows: int, event: BatchRan, now_ms: int) -> list[Command]:
        job = pieces[0].holding.job
        commands: list[Command] = []
        outputs = _outputs_of(pieces, batch_rows, event.outputs)
        gathered = self._gathered.get(job)
        if gathered is not None and not gathered.takes(outputs):
            commands += self._flush(job)
            gathered = None
        if gathered is None:
            gathered = self._gathered[job] = Gathered(now_ms)
        rows = sum(piece.rows for piece in pieces)
        gathered.add(
            [span for piece in pieces for span in piece.holding.spans(piece.start, piece.stop)],
            outputs,
            compute_ms=event.compute_ms * rows / batch_rows,
            energy_nj=self._energy_nj(event) * rows // batch_rows,
        )
        self._end_rows(job, pieces)
        idle = job not in self._jobs or not (self._jobs[job].waiting or self._running)
        if idle or gathered.bytes_held >= self.max_bytes or event.compute_ms >= self.limits.gather_ms:
            commands += self._flush(job)
        return commands

    def _energy_nj(self, event: BatchRan) -> int:
        """What a batch took above what the car would have used anyway; W times ms are mJ."""
        # Waiting for a processor that others use draws no power for us, but the car is awake all the while.
        taken_mj = event.processor_ms * self._compute_w + event.compute_ms * self._awake_w
        return round(taken_mj * _NJ_PER_MJ)

    def _batch_failed(self, error: str, *, by_row: bool) -> list[Command]:
        """Run the rows of a failed batch one by one; fail the one that failed by itself."""
        batch = self._running.popleft()
        self._deaths = 0
        pieces = _living(batch.pieces)
        if by_row and batch.rows > 1:
            self._requeue(pieces, alone=True)
            return []
        return self._fail(pieces, error)

    def _worker_died(self, detail: str) -> list[Command]:
        """Run again what the worker had; a row that was alone in a worker that died twice has failed."""
        suspects, *others = self._forget_worker() or [[]]
        self._deaths += 1
        self.counters["worker_died"] += 1
        if self._deaths >= _DEATHS_IN_A_ROW:
            self._deaths = 0
            return self._refuse_all(RefusalReason.WORKER_LOST, detail)
        for pieces in reversed(others):
            self._requeue(pieces)
        if any(piece.deaths for piece in suspects):
            self._deaths = 0
            return self._fail(suspects, f"the worker died while computing it, twice: {detail}")
        self._requeue(suspects, alone=True, deaths=1)
        return []

    def _kill_worker(self) -> list[Command]:
        """End the worker now; what it had and is still held will run again."""
        if not self._worker_up:
            return []
        for pieces in reversed(self._forget_worker()):
            self._requeue(pieces)
        return [KillWorker()]

    def _forget_worker(self) -> list[list[Piece]]:
        """Note that the worker is gone; return the living pieces of each batch that it had."""
        self._worker_up = False
        for model in self._models.values():
            if model.stage in {_Stage.LOADING, _Stage.LOADED}:
                model.stage = _Stage.ABSENT
        batches = [_living(batch.pieces) for batch in self._running]
        self._running.clear()
        return batches

    def _requeue(self, pieces: list[Piece], *, alone: bool = False, deaths: int = 0) -> None:
        for piece in reversed(pieces):
            waiting = self._jobs[piece.holding.job].waiting
            if alone:
                waiting.extendleft(reversed(piece.rows_alone(deaths=deaths)))
            else:
                waiting.appendleft(piece)

    # Ends ------------------------------------------------------------------------------------------------------------

    def _judged(self, reason: IneligibleReason | None, level: Level, now_ms: int) -> list[Command]:
        before, self.reason = self.reason, reason
        if reason is None:
            self._finish_by_ms = None
            return []
        if level is Level.FINISH:
            if before is None:
                self._finish_by_ms = now_ms + self.limits.finish_ms
            return []
        self._finish_by_ms = None
        return [*self._kill_worker(), *self._refuse_all(refusal_reason(reason, held=True), reason.value)]

    def _finish(self, now_ms: int) -> list[Command]:
        """Give everything back once the worker has finished what it had; it is killed when that takes too long."""
        if self._finish_by_ms is None:
            return []
        assert self.reason is not None
        is_busy = self._running or any(each.stage is _Stage.LOADING for each in self._models.values())
        if is_busy and now_ms < self._finish_by_ms:
            return []
        self._finish_by_ms = None
        ending = self._kill_worker() if is_busy else []
        return [*ending, *self._refuse_all(refusal_reason(self.reason, held=True), self.reason.value)]

    def _tick(self, now_ms: int) -> list[Command]:
        commands: list[Command] = []
        late = [holding for holding in self._holdings.values() if holding.deadline_ms <= now_ms]
        if late:
            commands += self._refuse_where(lambda each: each.deadline_ms <= now_ms, RefusalReason.EXPIRED)
        is_loading = any(self._models[holding.model].stage is _Stage.LOADING for holding in late)
        if is_loading or (self._running and self._running[0].deadline_ms <= now_ms):
            self.counters["worker_stuck"] += 1
            commands += self._kill_worker()
        due = [job for job, each in self._gathered.items() if now_ms - each.since_ms >= self.limits.gather_ms]
        for job in due:
            commands += self._flush(job)
        idle = not self._holdings and not self._running
        if idle and self._worker_up and now_ms - self._worker_used_ms >= self.limits.worker_idle_ms:
            commands += self._kill_worker()
        return commands

    def _flush(self, job: str) -> list[Command]:
        gathered = self._gathered.pop(job, None)
        if gathered is None:
            return []
        messages = gathered.messages(job, self.epoch, self.max_bytes, self._spare_nj)
        self._spare_nj = (self._spare_nj + gathered.energy_nj) % NJ_PER_MWH
        return [Send(message) if isinstance(message, Rows) else message for message in messages]

    def _fail_model(self, digest: str, error: str) -> list[Command]:
        commands: list[Command] = []
        for each in list(self._jobs.values()):
            holdings = dict.fromkeys(holding for holding, _ in each.held.values() if holding.model == digest)
            pieces = [piece for piece in each.waiting if piece.holding in holdings]
            pieces += [Piece(holding, 0, holding.rows) for holding in holdings if not holding.inputs]
            commands += self._fail(_living(pieces), error)
        return commands

    def _fail(self, pieces: list[Piece], error: str) -> list[Command]:
        """Fail rows of one job."""
        if not pieces:
            return []
        job = pieces[0].holding.job
        spans = [span for piece in pieces for span in piece.holding.spans(piece.start, piece.stop)]
        self._end_rows(job, pieces)
        return [*self._flush(job), Send(Failure(job, self.epoch, spans, error[:_MAX_ERROR]))]

    def _end_rows(self, job: str, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._models[piece.holding.model].rows -= piece.rows
            self._let_go(job, piece.holding.finish(piece.start, piece.stop))

    def _let_go(self, job: str, chunks: Iterable[int]) -> None:
        """Close leases that have no rows left."""
        held = self._jobs[job].held
        ended = dict.fromkeys(held.pop(chunk)[0] for chunk in chunks)
        self.open_leases = sum(len(each.held) for each in self._jobs.values())
        if not held:
            del self._jobs[job]
        for holding in ended:
            if not holding.left.any():
                del self._holdings[holding.number]
                self._bytes_held -= holding.bytes_held

    def _give_back(self, rows: Rows, detail: str) -> list[Command]:
        chunks = list(dict.fromkeys(span.chunk for span in rows.spans))
        held = self._jobs[rows.job].held if rows.job in self._jobs and rows.epoch == self.epoch else {}
        self._drop(rows.job, [chunk for chunk in chunks if chunk in held])
        # What else was computed of these chunks goes before the refusal, which ends their leases.
        return [
            *self._flush(rows.job),
            *self._refusals(rows.job, rows.epoch, chunks, RefusalReason.INELIGIBLE, detail),
        ]

    def _refuse_all(self, reason: RefusalReason, detail: str = "") -> list[Command]:
        commands: list[Command] = []
        for job in list(self._gathered.keys() - self._jobs.keys()):
            commands += self._flush(job)
        for job, each in list(self._jobs.items()):
            commands += self._refuse(job, list(each.held), reason, detail)
        return commands

    def _refuse_where(
        self, is_meant: Callable[[Holding], bool], reason: RefusalReason, detail: str = ""
    ) -> list[Command]:
        commands: list[Command] = []
        for job, each in list(self._jobs.items()):
            chunks = [chunk for chunk, (holding, _) in each.held.items() if is_meant(holding)]
            commands += self._refuse(job, chunks, reason, detail)
        return commands

    def _refuse(self, job: str, chunks: list[int], reason: RefusalReason, detail: str = "") -> list[Command]:
        """Give held leases back, after what was computed under them."""
        if not chunks:
            return []
        self._drop(job, chunks)
        return [*self._flush(job), *self._refusals(job, self.epoch, chunks, reason, detail)]

    def _drop(self, job: str, chunks: list[int]) -> None:
        for chunk in chunks:
            holding, place = self._jobs[job].held[chunk]
            self._models[holding.model].rows -= int(holding.left[place])
            holding.left[place] = 0
        if chunks:
            self._let_go(job, chunks)

    def _refusals(
        self, job: str, epoch: int, chunks: list[int], reason: RefusalReason, detail: str = ""
    ) -> Iterator[Command]:
        self.counters[f"refused_{reason.value}"] += len(chunks)
        for first in range(0, len(chunks), _CHUNKS_IN_REFUSAL):
            some = chunks[first : first + _CHUNKS_IN_REFUSAL]
            yield Send(Refusal(job, epoch, reason, some, detail[:_MAX_DETAIL]))


def _holding_of(task: Task) -> Holding:
    """Check a task's leases and inputs against each other. Raise WireError."""
    if task.inputs is None:
        if task.inputs_ref is None:
            raise WireError(WireFault.MALFORMED, "no inputs")
        return Holding.of(task, task.inputs_ref.size)
    holding = Holding.of(task, sum(len(tensor.data) for tensor in task.inputs))
    holding.inputs = decode_tensors(task.inputs)
    holding.layout = layout_of(holding.inputs, holding.rows)
    return holding


def _living(pieces: Iterable[Piece]) -> list[Piece]:
    return [part for piece in pieces for part in piece.living()]


def _inputs_of(pieces: list[Piece]) -> dict[str, Array]:
    first = pieces[0].holding.inputs
    if len(pieces) == 1:
        return {name: array[pieces[0].start : pieces[0].stop] for name, array in first.items()}
    return {
        name: np.concatenate([piece.holding.inputs[name][piece.start : piece.stop] for piece in pieces])
        for name in first
    }


def _outputs_of(pieces: list[Piece], batch_rows: int, outputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs of these pieces only."""
    if sum(piece.rows for piece in pieces) == batch_rows:
        return outputs
    return {
        name: np.concatenate([array[piece.at : piece.at + piece.rows] for piece in pieces])
        for name, array in outputs.items()
    }
