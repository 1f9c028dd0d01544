"""An agent's spans: one a task, one a batch, one an answer; nothing is remembered of leases that have ended."""

import random

import numpy as np

from fleet_link import Tracer
from fleet_wire.messages import BlobRef, Failure, Lease, Refusal, RefusalReason, Rows, Span, Task
from fleet_wire.tensors import encode_tensors
from fleet_wire.trace import Span as TraceSpan
from fleet_wire.trace import TraceContext
from vehicle_agent.tracing import TaskTraces

SENT = TraceContext("a" * 32, "b" * 16, sampled=True, state="vendor=1")


class Recorded:
    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def record(self, span: TraceSpan) -> None:
        self.spans.append(span)

    def samples(self, trace_id: str) -> bool:
        return True

    def close(self) -> None: ...


def task(*leases: Lease) -> Task:
    inputs = encode_tensors({"x": np.zeros((1, 1), np.float32)})
    return Task("j1", 1, BlobRef("a" * 64, 1, "/m"), 9_000, 1, list(leases), inputs=inputs)


def traces() -> tuple[TaskTraces, Recorded]:
    recorded = Recorded()
    return TaskTraces(Tracer(random.Random(1), recorded), "car-1"), recorded


def test_a_task_ends_with_the_last_answer_on_one_of_its_leases() -> None:
    held, recorded = traces()
    held.offered(task(Lease(0, 0, 10), Lease(1, 10, 20)), SENT, 100)
    held.batch_given("j1", 0, 8)
    held.batch_ended(5.0, 150)
    first = held.answered(Rows("j1", 1, [Span(0, 0, 8)]), 160)
    second = held.answered(Rows("j1", 1, [Span(0, 8, 10), Span(1, 10, 15)]), 170)
    assert [span.name for span in recorded.spans] == ["run", "rows", "rows"]
    last = held.answered(Refusal("j1", 1, RefusalReason.LEAVING, [1]), 180)
    assert len(held) == 0
    *_, whole, refusal = recorded.spans
    assert (whole.name, whole.parent, whole.start_ms, whole.end_ms) == ("task", SENT, 100, 180)
    assert (refusal.name, refusal.parent) == ("refusal", whole.context)
    assert {span.parent for span in recorded.spans[:3]} == {whole.context}
    assert (recorded.spans[0].start_ms, recorded.spans[0].end_ms) == (145, 150)
    answers = [first, second, last]
    assert None not in answers
    assert {each.trace_id for each in answers if each} == {SENT.trace_id}
    assert {each.state for each in answers if each} == {"vendor=1"}
    assert len({span.context.span_id for span in recorded.spans}) == len(recorded.spans)


def test_a_failure_ends_its_rows_too() -> None:
    held, recorded = traces()
    held.offered(task(Lease(0, 0, 10)), SENT, 100)
    assert held.answered(Failure("j1", 1, [Span(0, 0, 10)], "no"), 110) is not None
    assert [span.name for span in recorded.spans] == ["task", "failure"]
    assert len(held) == 0


def test_answers_to_a_task_without_a_trace_have_none() -> None:
    held, recorded = traces()
    assert held.answered(Rows("j1", 1, [Span(0, 0, 8)]), 1) is None
    assert held.answered(Refusal("j1", 1, RefusalReason.BUSY, [0]), 1) is None
    assert held.answered(Refusal("j1", 1, RefusalReason.BUSY), 1) is None
    held.batch_given("j1", 0, 8)
    held.batch_ended(5.0, 9)
    assert recorded.spans == []


def test_batches_of_a_worker_that_is_gone_are_forgotten() -> None:
    held, recorded = traces()
    held.offered(task(Lease(0, 0, 10)), SENT, 100)
    held.batch_given("j1", 0, 4)
    held.worker_gone()
    held.batch_given("j1", 0, 6)
    held.batch_ended(5.0, 9)
    assert [span.attributes["idlewheel.rows"] for span in recorded.spans] == [6]


def test_without_a_sink_answers_carry_the_trace_all_the_same() -> None:
    held = TaskTraces(Tracer(random.Random(1)), "car-1")
    held.offered(task(Lease(0, 0, 10)), SENT, 100)
    answer = held.answered(Rows("j1", 1, [Span(0, 0, 10)]), 1)
    assert answer is not None
    assert (answer.trace_id, answer.sampled, answer.state) == (SENT.trace_id, True, "vendor=1")
    assert answer.span_id != SENT.span_id
