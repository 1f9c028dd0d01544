"""Leased rows on the car: whole lists of commands for each event, and every row ends once in any order of events."""

from collections import deque
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet_wire.messages import BlobRef, Failure, Lease, Refusal, RefusalReason, Rows, Span, Task
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import decode_tensors, encode_tensors
from vehicle_agent.events import (
    BatchFailed,
    BatchRan,
    Command,
    Connected,
    Drained,
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
from vehicle_agent.pace import PaceLimits
from vehicle_agent.policy import IneligibleReason, Level
from vehicle_agent.results import ByReference
from vehicle_agent.session import Session, SessionLimits

MODEL = BlobRef("a" * 64, 1000, "/v1/blobs/a")
OTHER = BlobRef("b" * 64, 1000, "/v1/blobs/b")
AGREED = OwnerPolicy(version=3, owner="ada", purposes=["general"])
REVOKED = OwnerPolicy(version=4, owner="ada", purposes=[], revoked=True)
LATE = 1_000_000
START, LEASES = 0, [Lease(1, 0, 3), Lease(2, 10, 12)]


def task(leases: list[Lease] = LEASES, **fields: Any) -> Task:
    rows = np.concatenate([np.arange(lease.start, lease.stop, dtype=np.int64) for lease in leases] or [np.zeros(0)])
    given = {
        "job": "j",
        "epoch": 1,
        "model": MODEL,
        "deadline_ms": LATE,
        "consent_version": 3,
        "purpose": "general",
        "leases": leases,
        "inputs": encode_tensors({"x": rows}),
    }
    return Task(**(given | fields))


def ready(**limits: Any) -> Session:
    session = Session(SessionLimits(**limits), AGREED)
    assert session.handle(Connected(1, 10_000), START) == []
    assert session.handle(Judged(None, 36.0, 0.0), START) == []
    return session


def loaded(*, batch_rows: int | None = None, **limits: Any) -> Session:
    """A session whose worker has computed a row of the model."""
    session = ready(**limits)
    session.handle(TaskOffered(task([Lease(0, 0, 1)])), START)
    session.handle(ModelArrived(MODEL.digest), START)
    session.handle(ModelLoaded(MODEL.digest, batch_rows), START)
    session.handle(ran([0], 1.0), START)
    return session


def ran(rows: list[int], compute_ms: float = 30.0) -> BatchRan:
    return BatchRan({"y": np.array(rows, dtype=np.int64)}, compute_ms, compute_ms)


def plain(commands: list[Command]) -> list[Any]:
    """Commands in a form that compares: arrays as lists."""
    return [_plain(command) for command in commands]


def _plain(command: Command) -> Any:
    match command:
        case Run(digest, rows, inputs):
            return ("run", digest[0], rows, {name: array.tolist() for name, array in inputs.items()})
        case ByReference(rows, outputs):
            return ("by reference", rows.spans, {name: array.tolist() for name, array in outputs.items()})
        case Send(Rows() as rows):
            values = {name: array.tolist() for name, array in decode_tensors(rows.outputs or []).items()}
            return ("rows", rows.spans, values, rows.compute_ms, rows.energy_mwh)
        case Send(message):
            return message
    return command


def refusal(reason: RefusalReason, chunks: list[int], detail: str = "", epoch: int = 1) -> Refusal:
    return Refusal("j", epoch, reason, chunks, detail)


# One event after the other ----------------------------------------------------------------------------------------


def test_a_task_goes_from_offer_to_rows() -> None:
    session = ready()
    assert session.handle(TaskOffered(task()), 0) == [FetchModel(MODEL)]
    assert session.free_slots == 1022
    assert session.handle(ModelArrived(MODEL.digest), 0) == [LoadModel(MODEL.digest)]
    commands = session.handle(ModelLoaded(MODEL.digest, None), 0)
    assert plain(commands) == [("run", "a", 5, {"x": [0, 1, 2, 10, 11]})]
    assert session.working
    commands = session.handle(ran([0, 1, 2, 10, 11], 100.0), 100)
    spans = [Span(1, 0, 3), Span(2, 10, 12)]
    assert plain(commands) == [("rows", spans, {"y": [0, 1, 2, 10, 11]}, 100.0, 1)]  # 36 W for 0.1 s are 1 mWh
    assert (session.free_slots, session.working, session.busy) == (1024, False, False)


def test_inputs_by_reference_are_fetched_beside_the_model() -> None:
    session = ready()
    inputs = BlobRef("c" * 64, 80, "/v1/jobs/j/inputs/0-5")
    offered = TaskOffered(task(inputs=None, inputs_ref=inputs))
    assert session.handle(offered, 0) == [FetchInputs(0, inputs), FetchModel(MODEL)]
    session.handle(ModelArrived(MODEL.digest), 0)
    assert session.handle(ModelLoaded(MODEL.digest, None), 0) == []
    commands = session.handle(InputsArrived(0, {"x": np.arange(5)}), 0)
    assert plain(commands) == [("run", "a", 5, {"x": [0, 1, 2, 3, 4]})]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"epoch": 0}, RefusalReason.STALE_EPOCH),
        ({"consent_version": 2}, RefusalReason.CONSENT_MISSING),
        ({"purpose": "research"}, RefusalReason.PURPOSE_NOT_AGREED),
        ({"deadline_ms": 5}, RefusalReason.EXPIRED),
    ],
)
def test_what_speaks_against_a_task_is_told(fields: dict[str, Any], reason: RefusalReason) -> None:
    commands = ready().handle(TaskOffered(task(**fields)), 5)
    assert plain(commands) == [refusal(reason, [1, 2], epoch=fields.get("epoch", 1))]


def test_a_task_that_contradicts_itself_is_malformed() -> None:
    for bad, detail in (
        (task(inputs=encode_tensors({"x": np.zeros((4, 2))})), "input 'x' of shape (4, 2) for 5 leased rows"),
        (task(inputs=[]), "no inputs"),
        (task(inputs=None), "no inputs"),
    ):
        assert plain(ready().handle(TaskOffered(bad), 0)) == [refusal(RefusalReason.MALFORMED, [1, 2], detail)]
    empty = task([Lease(1, 4, 4)])
    detail = "leases without rows, or on one chunk twice"
    assert plain(ready().handle(TaskOffered(empty), 0)) == [refusal(RefusalReason.MALFORMED, [1], detail)]


def test_leases_above_the_slots_are_refused_one_by_one() -> None:
    session = ready(slots=1)
    assert plain(session.handle(TaskOffered(task()), 0)) == [refusal(RefusalReason.BUSY, [2]), FetchModel(MODEL)]
    assert session.free_slots == 0


def test_a_lease_that_comes_twice_is_held_once() -> None:
    session = ready()
    session.handle(TaskOffered(task()), 0)
    assert session.handle(TaskOffered(task()), 0) == []
    assert (session.free_slots, session.counters["lease_twice"]) == (1022, 2)


def test_a_task_that_would_not_end_in_time_is_refused() -> None:
    session = loaded()  # which takes 1 ms a row
    commands = session.handle(TaskOffered(task([Lease(1, 0, 100)], deadline_ms=99)), 0)
    assert plain(commands) == [refusal(RefusalReason.EXPIRED, [1], "it would not end before its deadline")]
    assert len(session.handle(TaskOffered(task([Lease(1, 0, 100)], deadline_ms=101)), 0)) == 2


def test_unplugging_kills_the_worker_and_gives_back_what_is_missing_after_what_is_ready() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 20)])), 0)
    assert session.handle(ran(list(range(8)), 1.0), 0)[1:] == []  # gathered; the next batch starts
    commands = session.handle(Judged(IneligibleReason.NOT_PLUGGED_IN, 36.0, 0.0), 1)
    assert plain(commands) == [
        KillWorker(),
        ("rows", [Span(1, 0, 8)], {"y": list(range(8))}, 1.0, 0),
        refusal(RefusalReason.LEAVING, [1], "not_plugged_in"),
    ]
    assert (session.working, session.busy) == (False, False)
    assert plain(session.handle(TaskOffered(task()), 2)) == [refusal(RefusalReason.INELIGIBLE, [1, 2])]


def finishing() -> Session:
    """A session that has sent a batch of eight rows and may finish the two that the worker has."""
    session = loaded(finish_ms=500)
    session.handle(TaskOffered(task([Lease(1, 0, 40)])), 0)
    session.handle(ran(list(range(8)), 100.0), 0)
    assert session.handle(Judged(IneligibleReason.OUTSIDE_HOURS, 36.0, 0.0, Level.FINISH), 1000) == []
    return session


LEFT = refusal(RefusalReason.LEAVING, [1], "outside_hours")


def test_at_the_end_of_the_hours_the_worker_finishes_what_it_has_and_keeps_its_model() -> None:
    session = finishing()
    assert len(session.handle(ran(list(range(8)), 100.0), 1100)) == 1
    assert session.handle(Judged(IneligibleReason.OUTSIDE_HOURS, 36.0, 0.0, Level.FINISH), 1200) == []
    rows, left = plain(session.handle(ran(list(range(4)), 100.0), 1300))
    assert (rows[1], left) == ([Span(1, 16, 20)], LEFT)
    assert (session.working, session.busy) == (False, False)
    session.handle(Judged(None, 36.0, 0.0), 2000)
    assert all(isinstance(each, Run) for each in session.handle(TaskOffered(task()), 2000))


def test_who_does_not_finish_in_time_is_killed() -> None:
    session = finishing()
    assert session.handle(Tick(), 1499) == []
    assert plain(session.handle(Tick(), 1500)) == [KillWorker(), LEFT]
    assert session.handle(Tick(), 1501) == []


def test_who_finishes_is_killed_for_a_harder_reason_and_goes_on_when_all_is_well_again() -> None:
    commands = finishing().handle(Judged(IneligibleReason.NOT_PARKED, 36.0, 0.0), 1100)
    assert plain(commands) == [KillWorker(), refusal(RefusalReason.LEAVING, [1], "not_parked")]
    session = finishing()
    assert session.handle(Judged(None, 36.0, 0.0), 1100) == []
    assert session.handle(Tick(), 1500) == []
    assert session.working


def test_a_model_that_still_loads_is_no_reason_to_go_on_for_ever() -> None:
    session = ready(finish_ms=500)
    session.handle(TaskOffered(task()), 0)
    session.handle(ModelArrived(MODEL.digest), 0)
    assert session.handle(Judged(IneligibleReason.OUTSIDE_HOURS, 36.0, 0.0, Level.FINISH), 1000) == []
    left = refusal(RefusalReason.LEAVING, [1, 2], "outside_hours")
    assert plain(session.handle(Tick(), 1500)) == [KillWorker(), left]


def test_a_model_that_arrives_while_work_is_finished_is_not_loaded_until_all_is_well_again() -> None:
    session = loaded()
    session.handle(TaskOffered(task()), 0)
    assert session.handle(TaskOffered(task([Lease(7, 50, 52)], job="k", model=OTHER)), 0) == [FetchModel(OTHER)]
    assert session.handle(Judged(IneligibleReason.OUTSIDE_HOURS, 36.0, 0.0, Level.FINISH), 1000) == []
    assert session.handle(ModelArrived(OTHER.digest), 1010) == []
    assert session.handle(Judged(None, 36.0, 0.0), 1020) == [FetchModel(OTHER)]  # which the cache has


def test_a_worker_that_keeps_its_model_ends_when_the_car_drives_off() -> None:
    session = finishing()
    session.handle(ran(list(range(8)), 100.0), 1100)
    session.handle(ran(list(range(4)), 100.0), 1200)
    assert session.handle(Judged(IneligibleReason.NOT_PARKED, 36.0, 0.0), 1300) == [KillWorker()]


def test_rows_of_a_worker_that_nobody_watched_run_again_and_are_under_no_suspicion() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 3)])), 0)
    for _ in range(5):
        assert session.handle(WorkerUnwatched(), 0) == [KillWorker(), FetchModel(MODEL)]
        assert session.handle(ModelArrived(MODEL.digest), 0) == [LoadModel(MODEL.digest)]
        assert plain(session.handle(ModelLoaded(MODEL.digest, None), 0)) == [("run", "a", 3, {"x": [0, 1, 2]})]
    assert +session.counters == {"worker_unwatched": 5}


@pytest.mark.parametrize(
    "policy",
    [
        None,
        OwnerPolicy(version=4, owner="ada", purposes=[], revoked=True),
        OwnerPolicy(version=4, owner="ada", purposes=["general"]),
    ],
)
def test_another_policy_ends_at_once_what_relied_on_the_last_one(policy: OwnerPolicy | None) -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 20)])), 0)
    session.handle(ran(list(range(8)), 1.0), 0)
    commands = session.handle(PolicyChanged(policy), 1)
    assert plain(commands) == [
        KillWorker(),
        ("rows", [Span(1, 0, 8)], {"y": list(range(8))}, 1.0, 0),
        refusal(RefusalReason.CONSENT_MISSING, [1], "the consent that it relied on does not hold any more"),
    ]
    assert (session.working, session.busy) == (False, False)
    assert plain(session.handle(TaskOffered(task()), 2)) == [refusal(RefusalReason.CONSENT_MISSING, [1, 2])]


def test_without_a_policy_no_task_is_taken() -> None:
    session = Session()
    session.handle(Connected(1, 10_000), 0)
    session.handle(Judged(None, 36.0, 0.0), 0)
    commands = session.handle(TaskOffered(task(consent_version=0)), 0)
    assert plain(commands) == [refusal(RefusalReason.CONSENT_MISSING, [1, 2])]


def test_a_failing_batch_runs_row_by_row_so_that_only_the_poison_row_fails() -> None:
    session = loaded()
    commands = session.handle(TaskOffered(task([Lease(1, 0, 3)])), 0)
    assert plain(commands) == [("run", "a", 3, {"x": [0, 1, 2]})]
    commands = session.handle(BatchFailed("bad", by_row=True), 0)
    assert plain(commands) == [("run", "a", 1, {"x": [0]}), ("run", "a", 1, {"x": [1]})]
    assert plain(session.handle(ran([0], 1.0), 0)) == [("run", "a", 1, {"x": [2]})]
    commands = session.handle(BatchFailed("bad", by_row=True), 0)
    assert plain(commands) == [
        ("rows", [Span(1, 0, 1)], {"y": [0]}, 1.0, 0),
        Failure("j", 1, [Span(1, 1, 2)], "bad"),
    ]
    assert plain(session.handle(ran([2], 1.0), 0)) == [("rows", [Span(1, 2, 3)], {"y": [2]}, 1.0, 0)]


def test_a_failure_of_the_whole_batch_is_not_tried_row_by_row() -> None:
    session = loaded()
    session.handle(TaskOffered(task()), 0)
    commands = session.handle(BatchFailed("no row axis", by_row=False), 0)
    assert plain(commands) == [Failure("j", 1, [Span(1, 0, 3), Span(2, 10, 12)], "no row axis")]


def test_a_row_that_kills_the_worker_twice_fails_and_the_others_are_computed() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 2)])), 0)
    assert session.handle(WorkerDied("SIGSEGV"), 0) == [FetchModel(MODEL)]
    session.handle(ModelArrived(MODEL.digest), 0)
    commands = session.handle(ModelLoaded(MODEL.digest, None), 0)
    assert plain(commands) == [("run", "a", 1, {"x": [0]}), ("run", "a", 1, {"x": [1]})]
    text = "the worker died while computing it, twice: SIGSEGV"
    commands = session.handle(WorkerDied("SIGSEGV"), 0)
    assert plain(commands) == [Failure("j", 1, [Span(1, 0, 1)], text), FetchModel(MODEL)]
    session.handle(ModelArrived(MODEL.digest), 0)
    assert plain(session.handle(ModelLoaded(MODEL.digest, None), 0)) == [("run", "a", 1, {"x": [1]})]


def test_a_worker_that_never_lives_gives_the_leases_back() -> None:
    session = ready()
    session.handle(TaskOffered(task()), 0)
    for _ in range(2):
        session.handle(ModelArrived(MODEL.digest), 0)
        assert session.handle(WorkerDied("exit 1"), 0) == [FetchModel(MODEL)]
    session.handle(ModelArrived(MODEL.digest), 0)
    commands = session.handle(WorkerDied("exit 1"), 0)
    assert plain(commands) == [refusal(RefusalReason.WORKER_LOST, [1, 2], "exit 1")]


def test_missing_models_and_inputs_give_the_leases_back() -> None:
    session = ready()
    session.handle(TaskOffered(task()), 0)
    commands = session.handle(ModelUnavailable(MODEL.digest, "HTTP 404"), 0)
    assert plain(commands) == [refusal(RefusalReason.MODEL_MISSING, [1, 2], "HTTP 404")]
    session.handle(TaskOffered(task(inputs=None, inputs_ref=OTHER)), 0)
    commands = session.handle(InputsUnavailable(1, "HTTP 404"), 0)
    assert plain(commands) == [refusal(RefusalReason.INPUTS_MISSING, [1, 2], "HTTP 404")]


def test_a_model_that_the_runtime_refuses_fails_its_rows() -> None:
    session = ready()
    session.handle(TaskOffered(task()), 0)
    session.handle(ModelArrived(MODEL.digest), 0)
    commands = session.handle(ModelUnusable(MODEL.digest, "no"), 0)
    assert plain(commands) == [Failure("j", 1, [Span(1, 0, 3), Span(2, 10, 12)], "no")]


def test_a_cancelled_chunk_is_left_out_of_the_batch_that_computes_it() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 2), Lease(2, 2, 4), Lease(3, 4, 6)])), 0)
    assert plain(session.handle(JobCancelled("j", (2, 99, 2)), 0)) == [refusal(RefusalReason.CANCELLED, [2])]
    commands = session.handle(ran([0, 1, 2, 3, 4, 5], 60.0), 0)
    assert plain(commands) == [("rows", [Span(1, 0, 2), Span(3, 4, 6)], {"y": [0, 1, 4, 5]}, 40.0, 0)]
    assert session.handle(JobCancelled("j"), 0) == []


def test_leases_end_with_their_connection_and_what_was_computed_is_still_sent() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 20)])), 0)
    session.handle(ran(list(range(8)), 1.0), 0)
    commands = session.handle(Connected(2, 10_000), 5)
    assert plain(commands) == [
        ("rows", [Span(1, 0, 8)], {"y": list(range(8))}, 1.0, 0),
        refusal(RefusalReason.LEAVING, [1], "the connection that granted it has ended"),
    ]
    assert session.handle(ran(list(range(8, 20)), 1.0), 5) == []


def test_deadlines_pass_and_a_worker_that_hangs_is_killed() -> None:
    session = loaded()
    session.handle(TaskOffered(task(deadline_ms=1000)), 0)
    assert session.handle(Tick(), 999) == []
    assert plain(session.handle(Tick(), 1000)) == [refusal(RefusalReason.EXPIRED, [1, 2]), KillWorker()]


def test_after_a_drain_it_finishes_and_takes_nothing_new() -> None:
    session = loaded()
    session.handle(TaskOffered(task()), 0)
    assert session.handle(Drained(), 0) == []
    assert plain(session.handle(TaskOffered(task([Lease(5, 0, 1)])), 0)) == [refusal(RefusalReason.DRAINING, [5])]
    assert len(session.handle(ran([0, 1, 2, 10, 11]), 0)) == 1


def test_shutting_down_gives_everything_back() -> None:
    session = loaded()
    session.handle(TaskOffered(task()), 0)
    commands = session.handle(ShutDown(), 0)
    assert plain(commands) == [refusal(RefusalReason.DRAINING, [1, 2]), KillWorker()]


def test_batches_grow_while_they_are_quick_and_the_worker_always_has_a_second_one() -> None:
    session = loaded(pace=PaceLimits(first_rows=2, target_ms=100.0))
    sizes: deque[int] = deque()
    tried: list[int] = []

    def start(commands: list[Command]) -> None:
        sizes.extend(command.rows for command in commands if isinstance(command, Run))

    start(session.handle(TaskOffered(task([Lease(1, 0, 500)])), 0))
    while sizes:
        assert len(sizes) == 2 or sum(tried) + sum(sizes) == 500
        rows = sizes.popleft()
        tried.append(rows)
        start(session.handle(ran(list(range(rows)), 1.0 * rows), 0))
    assert tried[:8] == [2, 2, 4, 4, 8, 8, 16, 16]
    assert max(tried) == 64  # twice that would take longer than a batch may


def test_under_another_policy_the_size_of_batches_is_learned_anew() -> None:
    session = loaded(pace=PaceLimits(first_rows=2, target_ms=100.0))
    session.handle(TaskOffered(task([Lease(1, 0, 500)])), 0)
    for _ in range(3):
        session.handle(ran([0, 1], 2.0), 0)
    session.handle(PolicyChanged(OwnerPolicy(version=4, owner="ada", purposes=["general"], threads=1)), 1)
    session.handle(TaskOffered(task([Lease(2, 0, 500)], consent_version=4)), 1)
    session.handle(ModelArrived(MODEL.digest), 1)
    commands = session.handle(ModelLoaded(MODEL.digest, None), 1)
    assert [command.rows for command in commands if isinstance(command, Run)] == [2, 2]


def test_a_fixed_batch_is_never_exceeded() -> None:
    session = loaded(batch_rows=4)
    commands = session.handle(TaskOffered(task([Lease(1, 0, 10)])), 0)
    assert [command.rows for command in commands if isinstance(command, Run)] == [4, 4]


def test_rows_are_split_over_messages_that_fit_and_their_energy_adds_up() -> None:
    session = loaded(pace=PaceLimits(first_rows=1000, target_ms=10_000.0))
    session.handle(Connected(2, 4000), 0)
    session.handle(TaskOffered(task([Lease(1, 0, 1000)], epoch=2)), 0)
    commands = session.handle(ran(list(range(1000)), 1000.0), 0)
    messages = [command.message for command in commands if isinstance(command, Send)]
    assert len(messages) == 3
    spans = [span for message in messages for span in message.spans]
    assert [(span.start, span.stop) for span in spans] == [(0, 432), (432, 868), (868, 1000)]
    values = np.concatenate([decode_tensors(message.outputs)["y"] for message in messages])
    assert values.tolist() == list(range(1000))
    assert sum(message.energy_mwh for message in messages) == 10
    assert sum(message.compute_ms for message in messages) == pytest.approx(1000.0)


def test_being_awake_for_the_work_counts_all_the_time_that_it_takes() -> None:
    session = loaded()
    session.handle(Judged(None, 36.0, 324.0), 0)
    session.handle(TaskOffered(task([Lease(1, 0, 1)])), 0)
    (command,) = session.handle(BatchRan({"y": np.zeros(1)}, compute_ms=100.0, processor_ms=50.0), 0)
    # 36 W for 50 ms are 1.8 J, 324 W for 100 ms are 32.4 J, and 3.6 J are a milliwatt-hour.
    assert command.message.energy_mwh == 9


@given(
    batches=st.lists(
        st.tuples(st.integers(1, 40), st.floats(0, 5000), st.floats(0, 100), st.floats(0, 400)), min_size=1, max_size=12
    )
)
def test_sums_of_energy_are_exact(batches: list[tuple[int, float, float, float]]) -> None:
    session = loaded(pace=PaceLimits(first_rows=64, target_ms=1e9))
    session.handle(Connected(2, 600), 0)  # so that messages hold a few rows each
    told, spent_nj = 0, 36_000_000  # what `loaded` took
    for number, (rows, took_ms, compute_w, awake_w) in enumerate(batches):
        session.handle(Judged(None, compute_w, awake_w), 0)
        session.handle(TaskOffered(task([Lease(number, 0, rows)], epoch=2, deadline_ms=10**9)), 0)
        event = BatchRan({"y": np.zeros((rows, 3))}, compute_ms=took_ms, processor_ms=took_ms / 2)
        told += sum(each.message.energy_mwh for each in session.handle(event, 0))
        spent_nj += round((took_ms / 2 * compute_w + took_ms * awake_w) * 1_000_000)
    assert told == spent_nj // 3_600_000_000


def test_small_energies_are_not_lost() -> None:
    session = loaded()
    told = 0
    for number in range(10):
        session.handle(TaskOffered(task([Lease(number, 0, 1)])), 0)
        (command,) = session.handle(ran([0], 25.0), 0)  # a quarter of a milliwatt-hour
        told += command.message.energy_mwh
    assert told == 2


def test_an_output_row_above_a_packet_goes_by_reference_and_comes_back_when_it_cannot_be_stored() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 2)])), 0)
    commands = session.handle(BatchRan({"y": np.zeros((2, 20_000), np.uint8)}, 30.0, 30.0), 0)
    (command,) = commands
    assert isinstance(command, ByReference)
    assert command.rows.spans == [Span(1, 0, 2)]
    commands = session.handle(UploadFailed(command.rows, "HTTP 507"), 0)
    assert plain(commands) == [refusal(RefusalReason.INELIGIBLE, [1], "HTTP 507")]


def test_what_was_computed_of_a_chunk_goes_before_it_is_given_back_because_of_a_failed_upload() -> None:
    session = loaded()
    session.handle(TaskOffered(task([Lease(1, 0, 24)])), 0)
    wide = BatchRan({"y": np.zeros((8, 20_000), np.uint8)}, 100.0, 100.0)
    (upload,) = [each for each in session.handle(wide, 0) if isinstance(each, ByReference)]
    session.handle(ran(list(range(8, 16)), 1.0), 0)  # gathered
    commands = session.handle(UploadFailed(upload.rows, "HTTP 507"), 0)
    assert plain(commands) == [
        ("rows", [Span(1, 8, 16)], {"y": list(range(8, 16))}, 1.0, 0),
        refusal(RefusalReason.INELIGIBLE, [1], "HTTP 507"),
    ]


def test_a_full_outbox_holds_the_worker_back() -> None:
    session = loaded()
    session.handle(OutboxFilled(True), 0)
    assert session.handle(TaskOffered(task()), 0) == []
    assert len(session.handle(OutboxFilled(False), 0)) == 1


def test_an_idle_worker_is_let_go() -> None:
    session = loaded(worker_idle_ms=1000)
    assert session.handle(Tick(), 999) == []
    assert session.handle(Tick(), 1000) == [KillWorker()]
    assert session.handle(Tick(), 5000) == []


def test_the_worker_lets_go_of_a_model_that_nothing_needs() -> None:
    session = loaded(worker_models=1)
    session.handle(TaskOffered(task(model=OTHER, job="k")), 0)
    assert session.handle(ModelArrived(OTHER.digest), 0) == [LoadModel(OTHER.digest, (MODEL.digest,))]


# Any order of events ----------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Plays coordinator, worker and blob store against a session, and keeps account of every row."""

    def __init__(self) -> None:
        super().__init__()
        limits = SessionLimits(slots=12, worker_models=1, pace=PaceLimits(first_rows=3, max_rows=6))
        self.session = Session(limits, AGREED)
        self.now = 0
        self.epoch = 0
        self.open: dict[tuple[str, int], set[int]] = {}
        self.next_chunk = 0
        self.pipe: deque[LoadModel | Run] = deque()
        self.models: set[str] = set()
        self.inputs: dict[int, Task] = {}
        self.uploads: list[Rows] = []
        self.last_task: Task | None = None

    def tell(self, event: Any) -> None:
        for command in self.session.handle(event, self.now):
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        match command:
            case Send(Rows() as rows):
                values = decode_tensors(rows.outputs or [])["y"].tolist()
                assert values == [row for span in rows.spans for row in range(span.start, span.stop)]
                self.end_rows(rows)
            case Send(Failure() as failure):
                self.end_rows(failure)
            case Send(Refusal() as refusal):
                for chunk in refusal.chunks:
                    assert self.open.pop((refusal.job, chunk))
            case ByReference(rows, _):
                self.end_rows(rows)
                self.uploads.append(rows)
            case Run() | LoadModel():
                assert self.session.reason is None
                assert self.session.policy == AGREED
                self.pipe.append(command)
            case KillWorker():
                self.pipe.clear()
            case FetchModel(ref):
                assert ref.digest not in self.models
                self.models.add(ref.digest)
            case FetchInputs(number, _):
                assert self.last_task is not None
                self.inputs[number] = self.last_task

    def end_rows(self, message: Rows | Failure) -> None:
        for span in message.spans:
            rows = self.open[message.job, span.chunk]
            ended = set(range(span.start, span.stop))
            assert ended <= rows
            rows -= ended
            if not rows:
                del self.open[message.job, span.chunk]

    @initialize()
    def connect(self) -> None:
        self.epoch += 1
        self.tell(Connected(self.epoch, 1500))

    @initialize()
    def may_work(self) -> None:
        self.tell(Judged(None, 25.0, 0.0))

    @rule(
        trouble=st.sampled_from(["link", "policy", "policy", "consent", "cancel all", "outbox", "deadlines"]),
        data=st.data(),
    )
    def suffer(self, trouble: str, data: st.DataObject) -> None:
        match trouble:
            case "link":
                self.connect()
            case "policy":
                reason = data.draw(st.sampled_from([None, *IneligibleReason]))
                self.tell(Judged(reason, 25.0, 260.0, data.draw(st.sampled_from(Level))))
                if data.draw(st.booleans()):
                    self.may_work()
            case "consent":
                self.tell(PolicyChanged(data.draw(st.sampled_from([None, AGREED, REVOKED]))))
                assert not self.session.open_leases
                if data.draw(st.booleans()):
                    self.tell(PolicyChanged(AGREED))
            case "cancel all":
                self.tell(JobCancelled(data.draw(st.sampled_from("jk"))))
            case "outbox":
                self.tell(OutboxFilled(True))
                if data.draw(st.booleans()):
                    self.tell(OutboxFilled(False))
            case "deadlines":
                self.now += data.draw(st.sampled_from([100, 400_000]))
                self.tell(Tick())

    @rule(
        job=st.sampled_from("jk"),
        sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
        by_reference=st.booleans(),
        patience=st.sampled_from([1, 50, 5000]),
        stale=st.booleans(),
    )
    def offer(self, job: str, sizes: list[int], by_reference: bool, patience: int, stale: bool) -> None:
        leases, row = [], 100 * self.next_chunk
        for size in sizes:
            leases.append(Lease(self.next_chunk, row, row + size))
            self.open[job, self.next_chunk] = set(range(row, row + size))
            self.next_chunk += 1
            row += size + 1
        offered = task(
            leases,
            job=job,
            epoch=self.epoch - stale,
            model=MODEL if job == "j" else OTHER,
            deadline_ms=self.now + patience,
        )
        self.last_task = offered
        if by_reference:
            self.tell(TaskOffered(task(leases, **_fields(offered), inputs=None, inputs_ref=OTHER)))
        else:
            self.tell(TaskOffered(offered))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), there=st.sampled_from([True, True, True, False]))
    def fetch(self, data: st.DataObject, there: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.models)))
        self.models.discard(digest)
        self.tell(ModelArrived(digest) if there else ModelUnavailable(digest, "gone"))

    @precondition(lambda self: self.inputs)
    @rule(data=st.data(), there=st.booleans())
    def fetch_inputs(self, data: st.DataObject, there: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.inputs)))
        inputs = decode_tensors(self.inputs.pop(number).inputs or [])
        self.tell(InputsArrived(number, inputs) if there else InputsUnavailable(number, "gone"))

    @precondition(lambda self: self.pipe)
    @rule(
        how=st.sampled_from(["well", "well", "well", "well", "badly", "hopelessly", "fatally"]),
        wide=st.sampled_from([False, False, True]),
    )
    def work(self, how: str, wide: bool) -> None:
        order = self.pipe[0]
        if how == "fatally":
            self.pipe.clear()
            self.tell(WorkerDied("SIGSEGV"))
            return
        self.pipe.popleft()
        match order, how:
            case LoadModel(digest), "hopelessly":
                self.tell(ModelUnusable(digest, "unusable"))
            case LoadModel(digest), _:
                self.tell(ModelLoaded(digest, 2 if digest == OTHER.digest else None))
            case Run(_, rows, inputs), "well":
                assert len(inputs["x"]) == rows
                output = {"y": inputs["x"]} | ({"z": np.zeros((rows, 2000), np.uint8)} if wide else {})
                self.tell(BatchRan(output, 5.0, 5.0))
            case _:
                self.tell(BatchFailed("bad", by_row=how == "badly"))

    @rule(job=st.sampled_from("jk"), chunks=st.lists(st.integers(0, 30), min_size=1, max_size=3))
    def cancel(self, job: str, chunks: list[int]) -> None:
        self.tell(JobCancelled(job, tuple(chunks)))

    @rule()
    def wait(self) -> None:
        self.now += 20
        self.tell(Tick())

    @precondition(lambda self: self.uploads)
    @rule()
    def fail_upload(self) -> None:
        rows = self.uploads.pop()
        for chunk in {span.chunk for span in rows.spans}:  # given back as a whole, with what is still open of it
            self.open.setdefault((rows.job, chunk), set()).add(-1)
        self.tell(UploadFailed(rows, "full"))

    @invariant()
    def slots_are_what_is_open(self) -> None:
        held = self.session.open_leases
        assert 0 <= held <= 12
        assert self.session._bytes_held >= 0
        assert all(model.rows >= 0 for model in self.session._models.values())

    def teardown(self) -> None:
        self.tell(ShutDown())
        self.tell(Tick())
        assert self.open == {}
        assert (self.session.open_leases, self.session.busy, self.session._bytes_held) == (0, False, 0)
        assert all(model.rows == 0 for model in self.session._models.values())


def _fields(offered: Task) -> dict[str, Any]:
    return {name: getattr(offered, name) for name in ("job", "epoch", "model", "deadline_ms")}


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=80, deadline=None)
TestEveryRowEndsOnce: Callable[..., Any] = AnyOrder.TestCase
