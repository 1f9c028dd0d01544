"""The spans of an agent: which task a held lease came with, and when work on it began and ended. Never sends anything.

A task's span begins when it comes in and ends with the last answer on one of its leases; what the worker computes is
a span below it, and so is each answer, whose message carries it on.
"""

from collections import deque
from dataclasses import dataclass, field

from fleet_link import Tracer
from fleet_wire.codec import Result
from fleet_wire.messages import Refusal, Task
from fleet_wire.trace import TraceContext

__all__ = ["TaskTraces"]


@dataclass(slots=True, eq=False)
class _Traced:
    job: str
    context: TraceContext
    parent: TraceContext
    begun_ms: int
    leases: int


@dataclass(slots=True)
class TaskTraces:
    """Remembers a lease from its offer until its last row is answered, which happens once to each."""

    tracer: Tracer
    vehicle: str
    _leases: dict[tuple[str, int], tuple[_Traced, int]] = field(default_factory=dict)
    _batches: deque[tuple[_Traced | None, int]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._leases)

    def offered(self, task: Task, parent: TraceContext, now_ms: int) -> None:
        """A task came in under `parent`. To be called before it is answered."""
        rows = {lease.chunk: lease.stop - lease.start for lease in task.leases}
        traced = _Traced(task.job, self.tracer.begin(parent), parent, now_ms, len(rows))
        for chunk, count in rows.items():
            self._leases[task.job, chunk] = (traced, count)

    def answered(self, message: Result, now_ms: int) -> TraceContext | None:
        """The span of an answer that is sent now; None when its task came without a trace."""
        kind = type(message).__name__.lower()
        if isinstance(message, Refusal):
            ended = [self._leases.pop((message.job, chunk), None) for chunk in message.chunks]
            first = next((each[0] for each in ended if each is not None), None)
            for each in ended:
                if each is not None:
                    self._end_lease(each[0], now_ms)
        else:
            found = self._leases.get((message.job, message.spans[0].chunk))
            first = None if found is None else found[0]
            for span in message.spans:
                self._end_rows((message.job, span.chunk), span.stop - span.start, now_ms)
        if first is None:
            return None
        context = self.tracer.begin(first.context)
        self.tracer.end(kind, context, first.context, now_ms, now_ms, job=message.job, vehicle=self.vehicle)
        return context

    def _end_rows(self, lease: tuple[str, int], rows: int, now_ms: int) -> None:
        traced, left = self._leases.get(lease, (None, 0))
        if traced is None:
            return
        if left > rows:
            self._leases[lease] = (traced, left - rows)
            return
        del self._leases[lease]
        self._end_lease(traced, now_ms)

    def _end_lease(self, traced: _Traced, now_ms: int) -> None:
        traced.leases -= 1
        if not traced.leases:
            facts = {"job": traced.job, "vehicle": self.vehicle}
            self.tracer.end("task", traced.context, traced.parent, traced.begun_ms, now_ms, **facts)

    def batch_given(self, job: str, chunk: int, rows: int) -> None:
        """The worker was given a batch; those before it come first."""
        self._batches.append((self._leases.get((job, chunk), (None, 0))[0], rows))

    def batch_ended(self, compute_ms: float, now_ms: int) -> None:
        """The worker has computed its oldest batch, or failed to."""
        traced, rows = self._batches.popleft()
        if traced is not None:
            context = self.tracer.begin(traced.context)
            facts: dict[str, str | int] = {"job": traced.job, "vehicle": self.vehicle, "rows": rows}
            self.tracer.end("run", context, traced.context, now_ms - compute_ms, now_ms, **facts)

    def worker_gone(self) -> None:
        """What the worker had will be given to another."""
        self._batches.clear()
