"""Who gets work, of which job, and who does not: shares, deadlines, the best car, copies, strikes, rows given up."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.commands import AddFailedRow, EndJob, EndLease, GrantLease, KeepConduct, SendControl
from coordinator.core import Core, CorePolicy
from coordinator.events import JobSubmitted, ModelAdded, RowsFailed, TaskRefused, Tick, VehicleCaps, VehicleState
from coordinator.explain import explain_job
from coordinator.fleet_view import FleetView
from coordinator.model import JobState, LeaseEnd, LeaseRecord
from coordinator.ports import LedgerJob, LedgerSnapshot
from coordinator.rules.eligibility import Reason
from coordinator.rules.failures import FailureLimits, is_lost
from coordinator.rules.quarantine import QuarantineLimits, is_beyond_hope, quarantine_ms, reliability
from coordinator.rules.scheduling import (
    SchedulingLimits,
    car_order,
    copy_gains,
    share_cap,
    time_left_ms,
    turn_key,
    weight,
)
from coordinator.rules.sizing import SizingLimits, rows_in
from fleet_wire.messages import Cancel, Caps, Failure, Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import AGREED, MODEL, arrival, job, rows_of, telemetry

LIMITS = SchedulingLimits()
MEASURED_MS = 100.0


def core_with(*events: object, row_ms: float | None = MEASURED_MS, policy: CorePolicy | None = None) -> Core:
    core = Core(policy or CorePolicy(sizing=SizingLimits(lease_floor_ms=1_000_000)))
    for event in [ModelAdded(MODEL), *events]:
        core.handle(event, 0)  # type: ignore[arg-type]
    if row_ms is not None:
        core.speeds.learn("measured elsewhere", MODEL.digest, row_ms)
    return core


def fleet(count: int, slots: int = 4) -> list[object]:
    return [event for number in range(count) for event in arrival(f"car-{number}", slots=slots)]


def leases(commands: list[object]) -> list[LeaseRecord]:
    return [command.lease for command in commands if isinstance(command, GrantLease)]


def taken(commands: list[object]) -> list[tuple[str, int, int]]:
    return [(lease.vehicle, lease.start, lease.stop) for lease in leases(commands)]


def answer(core: Core, lease: LeaseRecord, now_ms: int, row_ms: float = MEASURED_MS) -> list[object]:
    span = Span(lease.chunk, lease.start, lease.stop)
    compute_ms = row_ms * (lease.stop - lease.start)
    return core.handle(rows_of(lease.vehicle, lease.job, span, compute_ms=compute_ms), now_ms)  # type: ignore[return-value]


def fail(core: Core, lease: LeaseRecord, now_ms: int, start: int | None = None) -> list[object]:
    span = Span(lease.chunk, lease.start if start is None else start, lease.stop if start is None else start + 1)
    return core.handle(RowsFailed(lease.vehicle, Failure(lease.job, 1, [span], "no")), now_ms)  # type: ignore[return-value]


# Shares -------------------------------------------------------------------------------------------------------------


def work_until(core: Core, end_ms: int, begin_ms: int = 0, row_ms: float = MEASURED_MS) -> Counter[str]:
    """Cars compute what they hold, at the speed that was measured; returns the rows of each job."""
    rows: Counter[str] = Counter()
    busy: dict[str, list[tuple[float, LeaseRecord]]] = {}
    for lease in [each.record for progress in core.jobs.values() for each in progress.leases.values()]:
        queue = busy.setdefault(lease.vehicle, [])
        queue.append(((queue[-1][0] if queue else begin_ms) + row_ms * (lease.stop - lease.start), lease))
    for now_ms in range(begin_ms, end_ms, 100):
        for vehicle, queue in busy.items():
            while queue and queue[0][0] <= now_ms:
                lease = queue.pop(0)[1]
                rows[lease.job] += lease.stop - lease.start
                answer(core, lease, now_ms, row_ms)
            busy[vehicle] = queue
        for lease in leases(core.assign(now_ms)):  # type: ignore[arg-type]
            queue = busy.setdefault(lease.vehicle, [])
            begins_ms = queue[-1][0] if queue else now_ms
            queue.append((begins_ms + row_ms * (lease.stop - lease.start), lease))
    return rows


@settings(max_examples=8, deadline=None)
@given(
    cars=st.integers(1, 4),
    priorities=st.lists(st.integers(-20, 20), min_size=2, max_size=4),
    chunk_rows=st.sampled_from([None, 1, 5]),
)
def test_jobs_get_the_fleet_in_proportion_to_their_weights(
    cars: int, priorities: list[int], chunk_rows: int | None
) -> None:
    jobs = [job(f"j{n}", 100_000, priority=p, chunk_rows=chunk_rows) for n, p in enumerate(priorities)]
    core = core_with(*fleet(cars), *map(JobSubmitted, jobs))
    rows = work_until(core, 60_000)
    weights = [weight(priority, LIMITS) for priority in priorities]
    done = sum(rows.values())
    assert done >= 0.9 * cars * 60_000 / MEASURED_MS - 40 * cars
    for number, own in enumerate(weights):
        share = own / sum(weights)
        assert rows[f"j{number}"] >= share * done - 30 * cars - 0.1 * done


def test_a_few_rows_do_not_wait_until_a_car_has_nothing_of_another_job() -> None:
    core = core_with(*fleet(2, slots=40), JobSubmitted(job("big", rows=100_000, priority=-50, chunk_rows=1)))
    work_until(core, 5_000)
    core.handle(JobSubmitted(job("small", rows=2)), 5_000)
    assert work_until(core, 8_000, 5_000)["small"] == 2


def test_ten_steps_of_priority_double_the_weight() -> None:
    assert [weight(priority, LIMITS) for priority in (-20, 0, 10, 30)] == [0.25, 1, 2, 8]


def test_a_job_of_the_lowest_priority_does_not_starve() -> None:
    core = core_with(
        *fleet(1), JobSubmitted(job("low", 100, priority=-100)), JobSubmitted(job("high", 10**6, priority=100))
    )
    rows = work_until(core, LIMITS.patience_ms + 10_000)
    assert 0 < rows["low"] <= 20
    assert rows["high"] > 2_900


def test_a_job_that_comes_later_does_not_make_up_for_the_time_before_it_came() -> None:
    core = core_with(*fleet(2), JobSubmitted(job("first", 10**6)))
    assert work_until(core, 60_000)["first"] > 1_100
    core.handle(JobSubmitted(job("second", 10**6)), 60_000)
    rows = work_until(core, 120_000, 60_000)
    assert abs(rows["first"] - rows["second"]) <= 80
    assert rows["second"] > 500


def test_what_starves_goes_first_then_what_is_late_then_by_work_given() -> None:
    def key(**changes: object) -> tuple[int, float]:
        facts = {"virtual_ms": 5.0, "unserved_ms": 0, "needs_ms": None, "share": 0.5, "left_ms": None}
        return turn_key(**{**facts, **changes}, limits=LIMITS)  # type: ignore[arg-type]

    starved, longer = key(unserved_ms=LIMITS.patience_ms), key(unserved_ms=LIMITS.patience_ms + 1)
    tight, tighter = key(needs_ms=600.0, left_ms=1_000.0), key(needs_ms=900.0, left_ms=1_000.0)
    assert longer < starved < tighter < tight < key()
    assert key(needs_ms=400.0, left_ms=1_000.0) == key()  # its fair share is enough
    assert key(needs_ms=2_001.0, left_ms=1_000.0) == key()  # twice the fleet would not be
    assert key(virtual_ms=4.0) < key()
    assert key(needs_ms=2_000.0, left_ms=1_000.0) < key()  # twice the fleet would just do
    assert key(needs_ms=500.0, left_ms=1_000.0) == key()  # its fair share just does
    assert key(needs_ms=600.0) == key(left_ms=1_000.0) == key()  # no deadline, or no car has been measured
    assert key(needs_ms=600.0, left_ms=1_000.0, share=1.0) == key()  # alone it has the whole fleet


def test_a_job_in_danger_of_missing_its_deadline_goes_before_one_of_higher_priority() -> None:
    late, other = job("late", 50, deadline_s=6.0, priority=-50), job("other", 10**6, priority=50)
    core = core_with(*fleet(1), JobSubmitted(other), JobSubmitted(late))
    assert {lease.job for lease in leases(core.assign(0))} == {"late"}  # type: ignore[arg-type]


def test_a_pass_ends_after_so_many_leases_and_the_next_goes_on() -> None:
    policy = CorePolicy(scheduling=SchedulingLimits(most_leases=3))
    core = core_with(*fleet(4, slots=1), JobSubmitted(job(rows=8, chunk_rows=2)), policy=policy)
    assert taken(core.assign(0)) == [("car-0", 0, 2), ("car-1", 2, 4), ("car-2", 4, 6)]  # type: ignore[arg-type]
    assert taken(core.assign(0)) == [("car-3", 6, 8)]  # type: ignore[arg-type]


# The best car -------------------------------------------------------------------------------------------------------


def chosen(*setting: tuple[str, list[float]], warm: int | None = None) -> str:
    core = core_with(*fleet(3), JobSubmitted(job(rows=1)))
    for name, values in setting:
        core.fleet.live(name)[:] = values
    if warm is not None:
        caps = Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 4, 1, models=[MODEL.digest])
        core.handle(VehicleCaps(f"car-{warm}", caps), 0)
    (lease,) = leases(core.assign(0))  # type: ignore[arg-type]
    return lease.vehicle


def test_the_best_car_gets_the_rows() -> None:
    charging = ("charging", [0, 1, 1])
    cheap = ("energy_micro_per_kwh", [100_000, 300_000, 200_000])
    assert chosen() == "car-0"
    assert chosen(charging) == "car-1"
    assert chosen(charging, cheap) == "car-2"
    assert chosen(charging, cheap, warm=0) == "car-0"
    assert chosen(("leases_ended", [20, 20, 20]), ("leases_kept", [2, 19, 10])) == "car-1"
    assert chosen(("stay_ms", [60_000, math.nan, 7_200_000])) == "car-2"
    assert chosen(("energy_micro_per_kwh", [math.nan, math.nan, 400_000])) == "car-2"


def test_a_car_that_computed_rows_of_a_model_has_it() -> None:
    core = core_with(*fleet(2), JobSubmitted(job(rows=1)))
    core.fleet.live("charging")[:] = [0, 1]
    (lease,) = leases(core.assign(0))  # type: ignore[arg-type]
    assert lease.vehicle == "car-1"
    core.handle(JobSubmitted(job("j2", rows=1)), 1)
    answer(core, lease, 1)
    core.fleet.live("charging")[:] = [1, 0]
    (lease,) = leases(core.assign(2))  # type: ignore[arg-type]
    assert lease.vehicle == "car-1"


def test_a_car_gets_no_more_than_it_has_time_for() -> None:
    core = core_with(*fleet(1), JobSubmitted(job(rows=1_000)))
    core.fleet.live("stay_ms")[:] = 450.0
    assert taken(core.assign(0)) == [("car-0", 0, 4)]  # type: ignore[arg-type]
    assert (rows_in(math.nan, 10.0, idle=False), rows_in(5.0, None, idle=False)) == (1 << 62, 1 << 62)
    assert (rows_in(-5.0, 10.0, idle=True), rows_in(5.0, 10.0, idle=False)) == (1, 0)


def test_no_car_sees_more_than_its_share_of_a_job() -> None:
    core = core_with(*fleet(2), JobSubmitted(job(rows=10, vehicle_share=0.35)), row_ms=1.0)
    first = leases(core.assign(0))  # type: ignore[arg-type]
    for now_ms in range(1, 20):
        for lease in first:
            answer(core, lease, now_ms, row_ms=1.0)
        first = leases(core.assign(now_ms))  # type: ignore[arg-type]
    assert core.jobs["j1"].seen == {"car-0": 3, "car-1": 3}
    explanation = explain_job(core, core.jobs["j1"], 20)
    assert (explanation.rows_waiting, explanation.cars) == (4, {"job_share_reached": 2})
    assert explanation.advice == [
        "2 cars job_share_reached: each has had its 3 rows: other cars are needed, or a greater vehicle share"
    ]
    assert (share_cap(10, 1.0), share_cap(3, 0.1)) == (10, 1)


def test_a_price_above_the_jobs_ceiling_keeps_cars_from_it() -> None:
    core = core_with(*fleet(2), JobSubmitted(job(price_ceiling_micro_per_kwh=200_000)))
    core.fleet.live("energy_micro_per_kwh")[:] = [300_000, 100_000]
    assert {lease.vehicle for lease in leases(core.assign(0))} == {"car-1"}  # type: ignore[arg-type]
    explanation = explain_job(core, core.jobs["j1"], 0)
    assert explanation.cars == {"busy": 1, "job_price_ceiling": 1}
    assert "a kWh would have to cost 0.2 at most" in explanation.advice[1]


def test_a_job_that_no_car_may_do_says_so_and_has_no_end_in_sight() -> None:
    core = core_with(*fleet(2), JobSubmitted(job(price_ceiling_micro_per_kwh=200_000)), row_ms=1.0)
    core.fleet.live("energy_micro_per_kwh")[:] = 100_000
    view = explain_job(core, core.jobs["j1"], 0).job
    assert view.waiting_for == "all cars that may work for it are busy"
    assert view.estimate_s is not None
    core.fleet.live("energy_micro_per_kwh")[:] = 300_000
    view = explain_job(core, core.jobs["j1"], 0).job
    assert (view.waiting_for, view.estimate_s) == ("no car may work for it: 2 job_price_ceiling", None)


# Late leases --------------------------------------------------------------------------------------------------------


def late_scene() -> tuple[Core, LeaseRecord]:
    """A job of 100 rows whose last five are with a car that is silent; another car is idle and has the model."""
    core = core_with(*arrival("slow", slots=1), JobSubmitted(job(rows=100, chunk_rows=5)), row_ms=10.0)
    core.handle(rows_of("slow", "none", Span(0, 0, 1)), 0)
    (lease,) = leases(core.assign(0))  # type: ignore[arg-type]
    for event in arrival("quick", slots=4):
        core.handle(event, 0)  # type: ignore[arg-type]
    now_ms = 1
    while core.jobs["j1"].rows_done != 95:
        for other in [each.record for each in core.jobs["j1"].leases.values() if each.record.vehicle == "quick"]:
            answer(core, other, now_ms, row_ms=10.0)
        core.assign(now_ms)
        now_ms += 1
    return core, lease


def test_a_late_lease_is_given_to_an_idle_car_too_and_the_first_rows_win() -> None:
    core, lease = late_scene()
    assert leases(core.assign(400)) == []  # type: ignore[arg-type]
    (copy,) = leases(core.assign(5_000))  # type: ignore[arg-type]
    assert (copy.vehicle, copy.start, copy.stop, copy.copy_of) == ("quick", lease.start, lease.stop, lease.chunk)
    explanation = explain_job(core, core.jobs["j1"], 5_000)
    assert (explanation.rows_copied, explanation.copies_left) == (5, 0)
    assert answer(core, copy, 5_100, row_ms=10.0)[-4:] == [
        EndLease("j1", copy.chunk, LeaseEnd.DONE, 0, 5_100),
        EndLease("j1", lease.chunk, LeaseEnd.CANCELLED, 0, 5_100),
        SendControl("slow", Cancel("j1", [lease.chunk])),
        EndJob("j1", JobState.DONE, 5_100),
    ]
    assert core.counters["rows_copied"] == 5
    assert core.fleet.live("leases").tolist() == [0, 0]


def test_a_late_lease_of_which_nothing_is_missing_gets_no_copy() -> None:
    core = core_with(
        *arrival("gone", slots=1), *arrival("late", slots=1), JobSubmitted(job(rows=100, chunk_rows=50)), row_ms=10.0
    )
    first, _ = leases(core.assign(0))  # type: ignore[arg-type]
    core.handle(VehicleState(first.vehicle, State(False, 1)), 1)
    for event in [*arrival("heir"), *arrival("idle-1"), *arrival("idle-2"), *arrival("idle-3")]:
        core.handle(event, 1)  # type: ignore[arg-type]
    (again,) = leases(core.assign(1))  # type: ignore[arg-type]
    assert (again.start, again.stop) == (first.start, first.stop)
    answer(core, first, 2, row_ms=10.0)  # what was on its way settles what the heir holds
    copies = leases(core.assign(60_000))  # type: ignore[arg-type]
    assert all(copy.copy_of != again.chunk for copy in copies)


def test_when_the_late_car_leaves_its_copy_goes_on_and_no_row_is_free() -> None:
    core, lease = late_scene()
    (copy,) = leases(core.assign(5_000))  # type: ignore[arg-type]
    refusal = TaskRefused("slow", Refusal("j1", 1, RefusalReason.LEAVING, [lease.chunk]))
    assert core.handle(refusal, 5_001) == [EndLease("j1", lease.chunk, LeaseEnd.RELEASED, 0, 5_001)]
    progress = core.jobs["j1"]
    assert (list(progress.free), progress.rows_leased, progress.leases[copy.chunk].original) == ([], 5, None)
    assert answer(core, copy, 5_002, row_ms=10.0)[-1] == EndJob("j1", JobState.DONE, 5_002)


@pytest.mark.parametrize(
    ("copy_ms", "left_ms", "gains"),
    [
        (400, 1_000, True),
        (600, 1_000, False),
        (300, 700, False),
        (5_000, 60_000, True),
        (500, 1_000, True),
        (501, 1_001, False),
        (9_000, 10_000, False),
        (499, 1_000, True),
        (300, 799, False),
    ],
)
def test_a_copy_is_made_only_where_it_gains(copy_ms: float, left_ms: float, gains: bool) -> None:
    assert copy_gains(copy_ms=copy_ms, left_ms=left_ms, limits=LIMITS) is gains


def test_what_is_late_goes_on_at_its_rate() -> None:
    def left(now_ms: int, missing: int) -> float:
        return time_left_ms(granted_ms=1_000, expected_ms=2_000.0, rows=10, missing=missing, now_ms=now_ms)

    assert (left(1_500, 10), left(2_000, 10)) == (500, 0)
    assert left(3_000, 10) == 2_000  # nothing came in two seconds
    assert left(3_000, 2) == 500  # eight rows came in two seconds


CAR = st.fixed_dictionaries(
    {
        "charging": st.sampled_from([-1, 0, 1]),
        "energy_micro_per_kwh": st.sampled_from([math.nan, 100_000.0, 200_000.0, 300_000.0]),
        "leases_kept": st.sampled_from([0.0, 5.0, 20.0]),
        "leases_ended": st.sampled_from([20.0, 40.0]),
        "stay_ms": st.sampled_from([math.nan, 0.0, 900_000.0, 3_600_000.0, 10_000_000.0]),
        "backlog_ms": st.sampled_from([0.0, 250.0, 999.0, 1_000.0, 5_000.0]),
    }
)


@given(st.lists(CAR, max_size=6))
def test_cars_stand_in_the_order_of_the_points_that_the_document_names(cars: list[dict[str, float]]) -> None:
    view = FleetView()
    for number, columns in enumerate(cars):
        row = view.row(f"car-{number}")
        for name, value in columns.items():
            view.column[name][row] = value
    known = [car["energy_micro_per_kwh"] for car in cars if not math.isnan(car["energy_micro_per_kwh"])]

    def points(car: dict[str, float]) -> float:
        price, stay_h = car["energy_micro_per_kwh"], car["stay_ms"] / 3_600_000
        cheap = 0.0 if math.isnan(price) else 1.0
        if cheap and min(known) < max(known):
            cheap = (max(known) - price) / (max(known) - min(known))
        reliability = (car["leases_kept"] + 4.5) / (car["leases_ended"] + 5)
        stay = 0.5 if math.isnan(stay_h) else min(stay_h, 1)
        return 3 * (car["charging"] == 1) + 2 * cheap + 3 * reliability + stay - 2 * min(car["backlog_ms"] / 1000, 1)

    order = car_order(view, np.arange(len(cars)), 1_000.0, LIMITS.cars, QuarantineLimits()).tolist()
    assert sorted(order) == list(range(len(cars)))
    for better, worse in pairwise(order):
        gap = points(cars[better]) - points(cars[worse])
        assert gap > -0.002  # as fine as they are sorted
        assert gap > 1e-9 or cars[better] != cars[worse] or better < worse


# Faults -------------------------------------------------------------------------------------------------------------


def test_quarantine_doubles_to_a_longest_time() -> None:
    limits = QuarantineLimits(free_strikes=2, first_ms=100, longest_ms=1_000)
    assert [quarantine_ms(strikes, limits) for strikes in range(9)] == [0, 0, 0, 100, 200, 400, 800, 1_000, 1_000]
    assert quarantine_ms(10_000, limits) == 1_000


def test_reliability_is_what_is_usual_until_more_is_known() -> None:
    kept, ended = np.array([0.0, 0.0, 50.0]), np.array([0.0, 50.0, 50.0])
    unknown, bad, good = reliability(kept, ended, QuarantineLimits())
    assert unknown == pytest.approx(0.9)
    assert bad < 0.1
    assert 0.98 < good < 1


def test_a_car_that_fails_rows_which_others_compute_is_quarantined_and_clears_itself_by_good_work() -> None:
    policy = CorePolicy(quarantine=QuarantineLimits(free_strikes=0, first_ms=10_000))
    core = core_with(*arrival("bad", slots=1), JobSubmitted(job(rows=1)), policy=policy)
    (lease,) = leases(core.assign(0))  # type: ignore[arg-type]
    assert fail(core, lease, 1)[0] == EndLease("j1", lease.chunk, LeaseEnd.FAILED, 1, 1)
    assert core.fleet.live("strikes").tolist() == [0]  # nobody knows yet whose fault it is
    for event in arrival("good"):
        core.handle(event, 2)  # type: ignore[arg-type]
    (lease,) = leases(core.assign(2))  # type: ignore[arg-type]
    assert lease.vehicle == "good"
    kept = [command.conduct for command in answer(core, lease, 3) if isinstance(command, KeepConduct)]
    assert [(each.vehicle, each.strikes, each.quarantined_until_ms) for each in kept] == [("bad", 1, 10_003)]
    core.handle(JobSubmitted(job("j2", rows=100)), 4)
    assert {lease.vehicle for lease in leases(core.assign(300))} == {"good"}  # type: ignore[arg-type]
    assert core.reasons(600)[0] == Reason.QUARANTINED
    core.handle(telemetry(["bad", "good"], seq=2, now_ms=10_003), 10_003)
    (lease,) = [each for each in leases(core.assign(10_003)) if each.vehicle == "bad"][:1]  # type: ignore[arg-type]
    assert any(isinstance(command, KeepConduct) for command in answer(core, lease, 10_004))
    assert core.fleet.live("strikes").tolist() == [0, 0]


def test_leases_that_run_out_are_a_strike_and_leaving_is_none() -> None:
    core = core_with(*arrival("car-0"), JobSubmitted(job(rows=2)), policy=CorePolicy())
    (lease,) = leases(core.assign(0))[:1]  # type: ignore[arg-type]
    core.handle(TaskRefused("car-0", Refusal("j1", 1, RefusalReason.LEAVING, [lease.chunk])), 1)
    assert (core.fleet.live("strikes")[0], core.fleet.live("leases_ended")[0]) == (0, 1)
    core.assign(2)
    core.handle(Tick(), 1_000_000)
    assert core.fleet.live("strikes")[0] == 1


def test_one_bad_row_takes_no_neighbours_along_and_is_reported_with_its_error() -> None:
    core = core_with(*fleet(3), JobSubmitted(job(rows=8, chunk_rows=8)), row_ms=1.0)
    ended: list[object] = []
    now_ms = 0
    while core.jobs:
        now_ms += 1
        for lease in leases(core.assign(now_ms)):  # type: ignore[arg-type]
            bad = lease.start <= 5 < lease.stop
            ended += fail(core, lease, now_ms) if bad else answer(core, lease, now_ms, row_ms=1.0)
    (row,) = [command.row for command in ended if isinstance(command, AddFailedRow)]
    assert (row.row, row.attempts, row.error) == (5, 3, "no")
    end = next(command for command in ended if isinstance(command, EndJob))
    assert (end.state, end.error) == (JobState.FAILED, "row 5 failed on 3 attempts: no")
    assert core.fleet.live("strikes").tolist() == [0, 0, 0]


def test_a_row_is_given_up_after_so_many_different_cars_or_when_all_have_tried() -> None:
    assert not is_beyond_hope(["a", "b"], 3, others_left=lambda: False)
    assert is_beyond_hope(["a", "b", "c"], 3, others_left=lambda: True)
    assert not is_beyond_hope(["a", "a", "a"], 3, others_left=lambda: True)
    assert is_beyond_hope(["a", "b", "a"], 3, others_left=lambda: False)


def test_a_model_that_fails_on_every_row_is_given_up_early() -> None:
    core = core_with(*fleet(3), JobSubmitted(job(rows=10_000, chunk_rows=8)), row_ms=1.0)
    ended: list[object] = []
    now_ms = 0
    while core.jobs:
        now_ms += 2_000
        core.handle(telemetry([f"car-{n}" for n in range(3)], seq=now_ms, now_ms=now_ms), now_ms)
        for lease in leases(core.assign(now_ms)):  # type: ignore[arg-type]
            ended += fail(core, lease, now_ms)
    end = next(command for command in ended if isinstance(command, EndJob))
    assert end.error is not None
    assert end.error.startswith("given up early: rows ")
    assert len([command for command in ended if isinstance(command, AddFailedRow)]) == 32
    assert np.all(core.fleet.live("quarantined_until_ms") == 0)
    assert is_lost(1000, 5, FailureLimits())
    assert not is_lost(999, 1, FailureLimits())


def test_nobody_is_blamed_for_leases_from_before_a_restart_that_run_out() -> None:
    core = Core(CorePolicy())
    held = tuple(LeaseRecord("j1", chunk, chunk, chunk + 1, "car-0", 1, 0, 1_000 * chunk) for chunk in range(1, 6))
    running = LedgerJob(job(rows=9), (), held, 6, 0, 0, 0, 0)
    core.restore(LedgerSnapshot((MODEL,), (running,), 1, policies=(("car-0", AGREED),)), 0)
    for event in arrival("car-0")[:-1]:  # but for the consent
        core.handle(event, 0)  # type: ignore[arg-type]
    for now_ms in range(0, 60_000, 500):
        core.handle(Tick(), now_ms)
    assert core.counters["lease_expired"] == 5
    assert core.fleet.live("strikes").tolist() == [0]
