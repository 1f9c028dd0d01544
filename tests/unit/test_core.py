"""The core, told as scenes: events in, the whole list of commands out."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from coordinator.commands import (
    AddFailedRow,
    AddJob,
    AddModel,
    AddRows,
    CheckBlob,
    EndJob,
    EndLease,
    GrantLease,
    KeepConduct,
    SendControl,
    SendTask,
)
from coordinator.core import Core, CorePolicy
from coordinator.events import (
    BlobLost,
    JobCancelled,
    JobSubmitted,
    ModelAdded,
    RowsFailed,
    TaskRefused,
    TaskUndelivered,
    Tick,
    VehiclesRemembered,
    VehicleState,
)
from coordinator.model import (
    AcceptedRows,
    FailedRow,
    JobState,
    LeaseEnd,
    LeaseRecord,
    Piece,
    ReceiptPart,
    VehicleConduct,
)
from coordinator.rules.eligibility import Reason
from coordinator.rules.sizing import SizingLimits
from coordinator.scheduler import Scheduler
from coordinator.totals import Totals, Waste
from fleet_wire.messages import Cancel, Failure, Rebirth, Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of, telemetry

POLICY = CorePolicy(sizing=SizingLimits(probe_rows=8, lease_floor_ms=1000, lease_factor=1))


def core_with(*events: object, now_ms: int = 0) -> Core:
    core = Core(POLICY)
    for event in [ModelAdded(MODEL), *events]:
        core.handle(event, now_ms)  # type: ignore[arg-type]
    return core


def grants(commands: list[object]) -> list[tuple[str, int, int]]:
    return [(c.lease.vehicle, c.lease.start, c.lease.stop) for c in commands if isinstance(c, GrantLease)]


def test_new_model_and_job_are_written_before_anything_else() -> None:
    core = Core(POLICY)
    assert core.handle(ModelAdded(MODEL), 0) == [AddModel(MODEL)]
    assert core.handle(JobSubmitted(job()), 0) == [AddJob(job())]
    assert core.assign(0) == []


def test_an_unmeasured_car_gets_one_small_chunk() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job()))
    lease = LeaseRecord("j1", 0, 0, 8, "car-1", 1, 5, 5 + 1000 + 2000, 1, 250_000, 20_000, 197001)
    assert core.assign(5) == [
        GrantLease(lease),
        SendTask("car-1", 1, 1, "j1", (lease,), lease.deadline_ms, 250_000, 20_000),
    ]
    assert core.assign(6) == []


def test_rows_are_kept_and_the_measured_speed_sets_the_next_chunk() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=10_000)))
    (lease,) = [c.lease for c in core.assign(0) if isinstance(c, GrantLease)]
    assert core.handle(rows_of("car-1", "j1", Span(0, 0, 8), compute_ms=80.0, energy_mwh=4_000), 50) == [
        AddRows(
            AcceptedRows(1, "j1", "car-1", (Piece(0, 8, 0),), b"payload", None, 50, 80.0, 4_000, 1_000),
            (ReceiptPart(lease, 8, 80_000, 4_000, 1_000, 0),),
        ),
        EndLease("j1", 0, LeaseEnd.DONE, 0, 50),
    ]
    # 10 ms a row: a chunk of one second is 100 rows, and two of them are held at once
    assert grants(core.assign(50)) == [("car-1", 8, 108), ("car-1", 108, 208)]


def test_a_job_ends_with_its_last_row_and_other_cars_are_told_to_stop() -> None:
    core = core_with(*arrival("car-1"), *arrival("car-2"), JobSubmitted(job(rows=8, chunk_rows=4)))
    core.assign(0)
    core.handle(VehicleState("car-2", State(False, 1)), 1)  # its rows go to car-1 at once
    assert grants(core.assign(1)) == [("car-1", 4, 8)]
    core.handle(rows_of("car-1", "j1", Span(0, 0, 4)), 2)
    late = core.handle(rows_of("car-2", "j1", Span(1, 4, 8)), 3)  # but car-2's answer was still on its way
    assert late[1:] == [
        EndLease("j1", 2, LeaseEnd.CANCELLED, 0, 3),
        EndJob("j1", JobState.DONE, 3),
        SendControl("car-1", Cancel("j1")),
    ]
    assert core.jobs == {}


def test_only_missing_rows_are_leased_again_when_a_car_leaves() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    core.handle(rows_of("car-1", "j1", Span(0, 0, 3)), 1)
    leaving = TaskRefused("car-1", Refusal("j1", 1, RefusalReason.LEAVING, [0]))
    assert core.handle(leaving, 2) == [EndLease("j1", 0, LeaseEnd.RELEASED, 5, 2)]
    for event in arrival("car-2"):
        core.handle(event, 3)  # type: ignore[arg-type]
    core.handle(telemetry(["car-1"], seq=2, plugged=0), 3)
    assert grants(core.assign(3)) == [("car-2", 3, 8)]
    assert core.jobs["j1"].rows_released_again == 5
    assert core.refusals == {"vehicle_leaving": 1}


def test_duplicates_are_counted_and_never_kept_twice() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=100, chunk_rows=8)))
    core.assign(0)
    core.handle(rows_of("car-1", "j1", Span(0, 0, 8)), 1)
    assert core.handle(rows_of("car-1", "j1", Span(0, 0, 8)), 2) == []
    assert core.refusals == {"result_duplicate_rows": 8}
    assert core.jobs["j1"].rows_done == 8


def test_work_that_does_not_count_is_summed_by_cause() -> None:
    core = core_with(*arrival("car-1"), *arrival("car-2"), JobSubmitted(job(rows=100)))
    core.assign(0)
    core.handle(rows_of("car-1", "j1", Span(0, 0, 6), compute_ms=60.0, energy_mwh=4_000), 1)
    core.handle(rows_of("car-1", "j1", Span(0, 4, 8), compute_ms=40.0, energy_mwh=2_001), 2)
    core.handle(VehicleState("car-2", State(False, 1)), 3)
    core.handle(rows_of("car-3", "j1", Span(0, 0, 8), energy_mwh=1 << 53), 4)  # claims that nobody can check
    assert core.totals == Totals(
        leases_granted=core.totals.leases_granted,
        rows=8,
        compute_ms=80.0,
        energy_mwh=5_000,
        energy_cost_micro=1_250,
        pay_micro=1_250,
        waste=defaultdict(
            Waste,
            duplicate=Waste(rows=2, compute_ms=20.0, energy_mwh=1_001),
            lost=Waste(rows_released=8),
        ),
    )
    assert core.totals.wasted_energy_mwh == 1_001


def test_rows_that_were_never_leased_to_the_sender_change_nothing() -> None:
    core = core_with(*arrival("car-1"), *arrival("car-2"), JobSubmitted(job(rows=100, chunk_rows=8)))
    core.assign(0)
    before = core.jobs["j1"].rows_done
    for span in (Span(0, 0, 9), Span(99, 0, 8), Span(1, 8, 16), Span(0, 5, 5)):
        assert core.handle(rows_of("car-1", "j1", span), 1) == []
    assert core.handle(rows_of("car-1", "nope", Span(0, 0, 8)), 1) == []
    assert core.jobs["j1"].rows_done == before
    assert core.refusals == {"result_without_lease": 4, "result_job_not_running": 1}


def test_outputs_that_do_not_fit_the_model_are_a_failure_of_those_rows() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    bad = rows_of("car-1", "j1", Span(0, 0, 8))
    bad.outputs[0].shape[0] = 7
    assert core.handle(bad, 1) == [
        EndLease("j1", 0, LeaseEnd.FAILED, 8, 1),
        SendControl("car-1", Cancel("j1", [0])),
    ]
    assert core.refusals == {"result_malformed": 1}
    # which row it was shows only when each is computed by itself
    assert grants(core.assign(1)) == [("car-1", row, row + 1) for row in range(4)]


def test_a_row_that_fails_goes_to_another_car_and_after_its_attempts_is_given_up() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=4, chunk_rows=4, max_attempts=2)))
    core.assign(0)
    failure = RowsFailed("car-1", Failure("j1", 1, [Span(0, 2, 3)], "division by zero"))
    core.handle(rows_of("car-1", "j1", Span(0, 0, 2)), 1)
    assert core.handle(failure, 1) == [
        EndLease("j1", 0, LeaseEnd.FAILED, 2, 1),
        SendControl("car-1", Cancel("j1", [0])),
    ]
    for event in arrival("car-2"):
        core.handle(event, 3)  # type: ignore[arg-type]
    assert grants(core.assign(3)) == [("car-1", 3, 4), ("car-2", 2, 3)]
    assert core.handle(RowsFailed("car-2", Failure("j1", 1, [Span(2, 2, 3)], "again")), 4) == [
        EndLease("j1", 2, LeaseEnd.FAILED, 1, 4),
        SendControl("car-2", Cancel("j1", [2])),
        AddFailedRow("j1", FailedRow(2, 2, "again")),
    ]
    assert core.handle(rows_of("car-1", "j1", Span(1, 3, 4)), 5)[1:] == [
        EndLease("j1", 1, LeaseEnd.DONE, 0, 5),
        EndJob("j1", JobState.FAILED, 5, "row 2 failed on 2 attempts: again"),
    ]
    assert core.fleet.live("strikes").tolist() == [0, 0]  # it was the row, not the cars


def test_the_whole_fleet_is_not_looked_at_for_a_failure_that_others_will_try(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=4, chunk_rows=4)))
    core.assign(0)
    monkeypatch.delattr(Scheduler, "others_left")
    core.handle(RowsFailed("car-1", Failure("j1", 1, [Span(0, 0, 4)], "no")), 1)
    assert core.jobs["j1"].rows_free == 4


def test_a_lost_row_that_failed_at_the_only_car_with_room_waits_for_another() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=1, chunk_rows=1)))
    core.assign(0)
    core.handle(RowsFailed("car-1", Failure("j1", 1, [Span(0, 0, 1)], "no")), 0)
    for event in arrival("car-2"):
        core.handle(event, 0)
    assert grants(core.assign(0)) == [("car-2", 0, 1)]
    for event in (*arrival("car-3"), TaskRefused("car-3", Refusal("j1", 1, RefusalReason.BUSY))):
        core.handle(event, 0)
    core.handle(VehicleState("car-2", State(False, 1)), 0)
    assert core.assign(0) == []
    assert grants(core.assign(2_000)) == [("car-3", 0, 1)]


def test_a_refusal_is_the_first_that_is_heard_of_a_car() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job()))
    core.assign(0)
    core.handle(TaskRefused("unheard", Refusal("j1", 1, RefusalReason.LEAVING)), 1)
    core.assign(1)
    assert len(core.reasons(1)) == 2


def test_a_lease_that_runs_out_is_cancelled_and_its_rows_come_back() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    assert core.handle(Tick(), 2_999) == []
    assert core.handle(Tick(), 3_000) == [
        KeepConduct(VehicleConduct("car-1", 1, 0, 0.0, 0.0)),
        EndLease("j1", 0, LeaseEnd.EXPIRED, 8, 3_000),
        SendControl("car-1", Cancel("j1", [0])),
    ]
    assert core.assign(3_001) == []  # it rests after that
    assert grants(core.assign(4_001)) == [("car-1", 0, 8)]


def test_an_undelivered_task_comes_back_at_once() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    assert core.handle(TaskUndelivered("car-1", "j1", (0,)), 1) == [EndLease("j1", 0, LeaseEnd.LOST, 8, 1)]


def test_a_state_of_an_earlier_epoch_is_counted_alone_and_a_new_epoch_loses_the_leases_of_the_old() -> None:
    core = core_with(*arrival("car-1", epoch=5), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    assert core.handle(VehicleState("car-1", State(False, 4)), 1) == []
    assert core.handle(VehicleState("car-1", State(True, 4)), 1) == []
    assert core.refusals == {"state_of_another_epoch": 2}
    assert core.handle(VehicleState("car-1", State(True, 6)), 2) == [EndLease("j1", 0, LeaseEnd.LOST, 8, 2)]


def test_a_gap_in_the_sequence_asks_for_one_snapshot_with_a_cool_down() -> None:
    core = core_with(*arrival("car-1"))
    core.handle(telemetry(["car-1"], seq=2), 20_000)
    gap = telemetry(["car-1"], seq=4)
    gap.snapshot[:] = False
    assert core.handle(gap, 20_001) == [SendControl("car-1", Rebirth())]
    gap = telemetry(["car-1"], seq=6)
    gap.snapshot[:] = False
    assert core.handle(gap, 20_002) == []


def test_old_telemetry_is_counted_and_changes_nothing() -> None:
    core = core_with(*arrival("car-1"))
    core.handle(telemetry(["car-1"], seq=5, charge_percent=50), 1)
    core.handle(telemetry(["car-1", "car-1", "car-1"], seq=4, charge_percent=10), 2)
    assert core.fleet.live("charge_percent").tolist() == [50.0]
    assert core.refusals == {"telemetry_out_of_order": 3}


def test_a_car_known_only_from_a_retained_birth_is_asked_for_a_snapshot() -> None:
    core = Core(POLICY)
    assert core.handle(VehicleState("car-1", State(True, 3), retained=True), 50_000) == [
        SendControl("car-1", Rebirth())
    ]


def test_cars_that_the_store_remembers_or_that_only_report_are_asked_who_they_are() -> None:
    core = core_with(VehicleState("known", State(True, 1)))
    remembered = VehiclesRemembered(telemetry(["known", "unheard"]))
    assert core.handle(remembered, 50_000) == [SendControl("unheard", Rebirth())]
    assert core.handle(telemetry(["reports"]), 50_001) == [SendControl("reports", Rebirth())]


def test_what_the_store_remembers_is_shown_and_lets_no_car_work() -> None:
    core = core_with(VehicleState("spoke", State(True, 1)), telemetry(["spoke"], now_ms=40_000, charge_percent=70.0))
    core.handle(VehiclesRemembered(telemetry(["spoke", "silent"], now_ms=30_000, charge_percent=55.0)), 50_000)
    assert core.fleet.live("charge_percent").tolist() == [70.0, 55.0]
    assert core.fleet.live("received_ms").tolist() == [40_000, 30_000]
    reasons = []
    for event in arrival("silent", now_ms=50_001):
        core.handle(event, 50_001)  # type: ignore[arg-type]
        reasons.append(core.reasons(50_001)[1])
    assert reasons == [Reason.OFFLINE, Reason.CAPS_UNKNOWN, Reason.TELEMETRY_MISSING, Reason.ELIGIBLE]
    assert core.fleet.live("charge_percent").tolist() == [70.0, 80.0]


def test_cancelling_ends_leases_and_a_job_past_its_deadline_fails() -> None:
    core = core_with(*arrival("car-1"), JobSubmitted(job(rows=8, chunk_rows=8)))
    core.assign(0)
    assert core.handle(JobCancelled("j1"), 1) == [
        EndLease("j1", 0, LeaseEnd.CANCELLED, 0, 1),
        EndJob("j1", JobState.CANCELLED, 1),
        SendControl("car-1", Cancel("j1")),
    ]
    assert core.handle(JobCancelled("j1"), 2) == []
    core.handle(JobSubmitted(job("j2", deadline_s=2.0)), 2)
    assert core.handle(Tick(), 2_000) == [
        EndJob("j2", JobState.FAILED, 2_000, "its deadline of 2 s passed with 100 rows missing")
    ]


def test_higher_priority_goes_first_then_the_older_job() -> None:
    core = core_with(JobSubmitted(job("low", rows=4, chunk_rows=4)), *arrival("car-1"))
    core.handle(JobSubmitted(job("high", rows=4, chunk_rows=4, priority=5)), 0)
    assert [c.lease.job for c in core.assign(0) if isinstance(c, GrantLease)] == ["high"]


def test_pay_of_many_small_results_adds_up_to_that_of_the_whole() -> None:
    core = core_with(*arrival("car-1", slots=1000), JobSubmitted(job(rows=1000, chunk_rows=1)))
    paid = 0
    now_ms = 0
    while core.jobs:
        now_ms += 1
        for lease in [c.lease for c in core.assign(now_ms) if isinstance(c, GrantLease)]:
            span = Span(lease.chunk, lease.start, lease.stop)
            now_ms += 9
            for command in core.handle(rows_of("car-1", "j1", span, compute_ms=9.0, energy_mwh=1), now_ms):
                paid += command.rows.pay_micro if isinstance(command, AddRows) else 0
    assert paid == 1000 * 250_000 // 1_000_000 + 9_000 * 20_000 // 3_600_000
    assert core.fleet.live("pay_micro").tolist() == [paid]


def test_a_car_that_claims_the_same_time_for_each_of_its_leases_is_believed_it_once() -> None:
    core = core_with(*arrival("liar", slots=4), JobSubmitted(job(rows=8, chunk_rows=2)))
    core.speeds.learn("liar", MODEL.digest, 10.0)
    leases = [c.lease for c in core.assign(0) if isinstance(c, GrantLease)]
    assert len(leases) == 4
    believed = []
    for lease in leases:
        claim = rows_of("liar", "j1", Span(lease.chunk, lease.start, lease.stop), compute_ms=10_000.0, energy_mwh=10**9)
        (added,) = [c for c in core.handle(claim, 10_000) if isinstance(c, AddRows)]
        believed.append((added.rows.compute_ms, added.rows.energy_mwh))
    most_w = 1e6 * 1.1 + 20  # what it stated, and what being awake draws
    most_mwh = int(most_w * 10_000 / 3_600 + 8), int(most_w * 1_000 / 3_600)
    assert believed == [(10_000.0, most_mwh[0]), (1_000.0, most_mwh[1]), (0.0, 0), (0.0, 0)]
    assert core.refusals == {"result_time_capped": 3, "result_energy_capped": 4}


def test_rows_that_came_before_buy_no_time_for_those_of_a_later_lease() -> None:
    core = core_with(*arrival("liar", slots=4), JobSubmitted(job(rows=4, chunk_rows=2)))
    first = next(c.lease for c in core.assign(0) if isinstance(c, GrantLease))
    early = Span(first.chunk, first.start, first.stop)
    core.handle(rows_of("liar", "j1", early, compute_ms=0.0, energy_mwh=0), 0)
    (late,) = [c.lease for c in core.assign(40_000) if isinstance(c, GrantLease)]
    both = rows_of("liar", "j1", early, Span(late.chunk, late.start, late.stop), compute_ms=30_000.0, energy_mwh=10**9)
    (added,) = [c for c in core.handle(both, 40_500) if isinstance(c, AddRows)]
    most_w = 1e6 * 1.1 + 20  # what it stated, and what being awake draws
    assert (added.rows.compute_ms, added.rows.energy_mwh) == (1_500.0, int(most_w * 1_500 / 3_600 + 8))
    assert core.refusals == {"result_time_capped": 1, "result_energy_capped": 1, "result_duplicate_rows": 2}


def test_rows_that_come_after_the_clock_was_set_back_are_kept_without_pay() -> None:
    core = core_with(*arrival("car-1", slots=2, now_ms=60_000), JobSubmitted(job(rows=4, chunk_rows=2)), now_ms=60_000)
    (one,) = [c.lease for c in core.assign(60_000) if isinstance(c, GrantLease)]
    early = Span(one.chunk, one.start, one.stop)
    core.handle(rows_of("car-1", "j1", early, compute_ms=0.0, energy_mwh=0), 60_000)
    (two,) = [c.lease for c in core.assign(60_000) if isinstance(c, GrantLease)]
    both = rows_of("car-1", "j1", early, Span(two.chunk, two.start, two.stop), compute_ms=7.0)
    (added,) = [c for c in core.handle(both, 50_000) if isinstance(c, AddRows)]
    assert (added.rows.pieces, added.rows.compute_ms) == ((Piece(2, 4, 2),), 0.0)


def test_what_is_left_of_a_milliwatt_hour_is_granted_once_and_not_for_every_message() -> None:
    core = core_with(*arrival("liar"), JobSubmitted(job(rows=100, chunk_rows=100)))
    core.assign(0)
    for row in range(40):
        core.handle(rows_of("liar", "j1", Span(0, row, row + 1), compute_ms=0.0, energy_mwh=1), 1_000)
    assert core.fleet.live("energy_mwh").tolist() == [8]
    assert core.totals.energy_capped_mwh == 32


def test_results_that_waited_for_a_link_are_paid_in_full_also_where_some_came_twice() -> None:
    core = core_with(*arrival("car", slots=8), JobSubmitted(job(rows=8, chunk_rows=1)))
    core.speeds.learn("car", MODEL.digest, 10.0)
    leases = [c.lease for c in core.assign(0) if isinstance(c, GrantLease)]
    results = [
        rows_of("car", "j1", Span(lease.chunk, lease.start, lease.stop), compute_ms=1_250.0, energy_mwh=5)
        for lease in leases
    ]
    for result in [results[3], *results[:4], *results[4:]]:
        core.handle(result, 10_000)
    assert core.totals.compute_ms == core.totals.rows * 1_250.0 == 10_000.0


def test_awake_energy_of_a_car_that_began_to_charge_after_its_lease_is_believed() -> None:
    power = {"compute_power_w": 20.0, "awake_power_w": 260.0}
    consent, birth, caps, _ = arrival("car")
    core = core_with(birth, caps, telemetry(["car"], charging=0, **power), consent, JobSubmitted(job(rows=100)))
    core.assign(0)
    core.handle(telemetry(["car"], seq=2, now_ms=50_000, charging=1, **power), 50_000)
    core.handle(rows_of("car", "j1", Span(0, 0, 8), compute_ms=36_000.0, energy_mwh=2_800), 60_000)
    (second, *_) = [c.lease for c in core.assign(60_000) if isinstance(c, GrantLease)]
    core.handle(
        rows_of("car", "j1", Span(second.chunk, second.start, second.start + 1), compute_ms=36_000.0, energy_mwh=2_800),
        100_000,
    )
    assert core.fleet.live("energy_mwh").tolist() == [2_800 + 22 * 10 + 8]


def test_ten_thousand_cars_are_told_apart_by_reason() -> None:
    core = Core(POLICY)
    names = [f"car-{number}" for number in range(10_000)]
    core.handle(telemetry(names), 0)
    assert np.all(core.reasons(1) == 1)


@pytest.mark.parametrize(
    ("reason", "checked"),
    [
        (RefusalReason.MODEL_MISSING, [CheckBlob(MODEL.digest)]),
        (RefusalReason.INPUTS_MISSING, [CheckBlob("b" * 64)]),
        (RefusalReason.BUSY, []),
    ],
)
def test_a_blob_that_a_car_could_not_get_is_looked_at(reason: RefusalReason, checked: list[CheckBlob]) -> None:
    core = core_with(*arrival("v1"), JobSubmitted(job()))
    core.assign(0)
    commands = core.handle(TaskRefused("v1", Refusal("j1", 1, reason)), 10)
    assert [command for command in commands if isinstance(command, CheckBlob)] == checked


@pytest.mark.parametrize("digest", [MODEL.digest, "b" * 64])
def test_jobs_that_stand_on_a_lost_blob_end_and_no_others(digest: str) -> None:
    others_inputs = replace(job("j2"), inputs="c" * 64)
    core = core_with(*arrival("v1"), JobSubmitted(job()), JobSubmitted(others_inputs))
    commands = core.handle(BlobLost(digest, "gone: send it again"), 10)
    ended = [command for command in commands if isinstance(command, EndJob)]
    what = "model" if digest == MODEL.digest else "inputs"
    lost = ["j1", "j2"] if digest == MODEL.digest else ["j1"]
    assert ended == [EndJob(name, JobState.FAILED, 10, f"its {what}: gone: send it again") for name in lost]
    assert list(core.jobs) == [name for name in ("j1", "j2") if name not in lost]
    assert core.refusals["blob_lost"] == 1
