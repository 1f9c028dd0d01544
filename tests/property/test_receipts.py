"""Money and energy are exact: split, paid, stored in SQLite and summed up, over any order of events and restarts."""

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.commands import LedgerWrite, SendTask
from coordinator.core import Core, CorePolicy
from coordinator.events import JobCancelled, JobSubmitted, ModelAdded, RowsReceived, TaskRefused, VehicleState
from coordinator.model import LeaseRecord, Rest
from coordinator.ports import ReceiptFilter
from coordinator.rules.pay import (
    PayTerms,
    PowerLimits,
    Worked,
    most_mwh,
    most_us,
    paid,
    plausible_us,
    split,
    with_claim,
)
from coordinator.rules.sizing import SizingLimits
from coordinator.rules.tariff import Tariffs
from fleet_wire.messages import Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of

AMOUNTS = st.integers(0, 10**12)


@given(total=AMOUNTS, weights=st.lists(st.integers(0, 10**6), min_size=1).filter(any))
def test_parts_add_up_to_the_whole_and_each_is_right_to_one_unit(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1


@given(
    work=st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=30),
    tariff=st.integers(0, 10**9),
    fee=st.integers(0, 10**9),
)
def test_what_is_paid_in_parts_is_what_the_whole_earns(work: list[tuple[int, int]], tariff: int, fee: int) -> None:
    lease = LeaseRecord("j", 0, 0, 1, "v", 1, 0, 1, energy_micro_per_kwh=tariff, pay_micro_per_h=fee)
    energy_pay, fee_pay, rest = 0, 0, Rest()
    for energy_mwh, compute_us in work:
        energy, compute, rest = paid(energy_mwh, compute_us, lease, rest)
        energy_pay, fee_pay = energy_pay + energy, fee_pay + compute
    assert energy_pay == sum(energy_mwh for energy_mwh, _ in work) * tariff // 10**6
    assert fee_pay == sum(compute_us for _, compute_us in work) * fee // (3600 * 10**6)


LIMITS = PowerLimits()


@given(compute_us=AMOUNTS, stated=st.floats(0, 1e5) | st.just(float("nan")), awake=st.floats(0, 1e3))
def test_no_more_energy_is_believed_than_the_stated_power_could_use(
    compute_us: int, stated: float, awake: float
) -> None:
    power_w = (stated * LIMITS.tolerance if stated > 0 else LIMITS.unstated_w) + awake
    assert most_mwh(compute_us, stated, awake, LIMITS) == power_w * compute_us / 3.6e6


def believed(claims: list[tuple[int, int, float]]) -> list[int]:
    """What a car is believed of claims (granted, received, computing time in ms) as they come, in microseconds."""
    worked: Worked = ()
    told = []
    for granted_ms, now_ms, claimed_ms in claims:
        us = plausible_us(claimed_ms, most_us(granted_ms, now_ms, worked, LIMITS))
        worked = with_claim(worked, granted_ms, us)
        told.append(us)
        assert len(worked) <= 8
        assert sum(each for _, each in worked) == sum(told)
    return told


MOMENTS = st.integers(0, 100_000)


@given(claims=st.lists(st.tuples(MOMENTS, MOMENTS, st.floats(0, 1e6)), min_size=1, max_size=30))
def test_a_car_is_never_believed_more_time_than_has_passed(claims: list[tuple[int, int, float]]) -> None:
    """Whatever it claims for however many leases at once, of which it may have had one at any time."""
    claims = sorted(((min(pair), max(pair), claimed) for *pair, claimed in claims), key=lambda claim: claim[1])
    told = believed(claims)
    for us, (granted_ms, now_ms, claimed_ms) in zip(told, claims, strict=True):
        assert 0 <= us <= min(claimed_ms * 1_000 + 0.5, (now_ms - granted_ms + LIMITS.clock_ms) * 1_000)
    first_ms, last_ms = min(granted for granted, *_ in claims), claims[-1][1]
    assert sum(told) <= (last_ms - first_ms + LIMITS.clock_ms) * 1_000


@given(claims=st.lists(st.tuples(MOMENTS, MOMENTS, st.floats(0, 1e6)), min_size=1, max_size=8))
def test_nor_over_any_stretch_of_the_latest_leases(claims: list[tuple[int, int, float]]) -> None:
    claims = sorted(((min(pair), max(pair), claimed) for *pair, claimed in claims), key=lambda claim: claim[1])
    told = believed(claims)
    for since_ms, *_ in claims:
        for _, until_ms, _ in claims:
            within = [
                us for us, claim in zip(told, claims, strict=True) if since_ms <= claim[0] and claim[1] <= until_ms
            ]
            assert sum(within) <= max(0, until_ms - since_ms + LIMITS.clock_ms) * 1_000


@given(
    work=st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 5_000), st.integers(0, 50_000)), max_size=30),
    data=st.data(),
)
def test_an_honest_car_is_paid_for_all_its_time_however_late_its_results_come(
    work: list[tuple[int, float, int]], data: st.DataObject
) -> None:
    """It computes one thing after another, each under a lease that it had by then, and tells it at any later time."""
    claims, clock_ms = [], 0.0
    for idle_ms, compute_ms, late_ms in work:
        begun_ms = clock_ms + idle_ms
        clock_ms = begun_ms + compute_ms
        granted_ms = data.draw(st.integers(0, int(begun_ms)))
        claims.append((granted_ms, -int(-clock_ms // 1) + late_ms, compute_ms))
    claims.sort(key=lambda claim: claim[1])
    assert believed(claims) == [round(compute_ms * 1_000) for *_, compute_ms in claims]


class _Varying:
    """A price for each second, also below zero; now and then nobody knows it."""

    def at(self, time_ms: int) -> int | None:
        second = time_ms // 1000
        return None if second % 7 == 3 else (second * 77_777) % 500_000 - 50_000


CARS = ("car-1", "car-2", "car-3")
POLICY = CorePolicy(
    sizing=SizingLimits(probe_rows=3, lease_floor_ms=5_000, lease_factor=1),
    tariffs=Tariffs(_Varying(), {}),
    pay=PayTerms(19_999),
    back_off_ms=5,
)
COLUMNS = ("rows_done", "energy_mwh", "pay_micro")


class ReceiptsMachine(RuleBasedStateMachine):
    """The core and a SQLite ledger, as the brain joins them: what the core sums up is what the receipts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = SqliteLedger(Path(":memory:"))
        self.ledger.open()
        self.core = Core(POLICY)
        self.now_ms = 1_700_000_000_000
        self.epochs = dict.fromkeys(CARS, 0)
        self.sent: list[LeaseRecord] = []
        self.submitted = 0
        self.told_mwh = 0
        self.counted: Counter[str] = Counter()
        self.feed(ModelAdded(MODEL))

    def teardown(self) -> None:
        self.ledger.close()

    def feed(self, *events: object) -> None:
        """One round."""
        commands = []
        for event in events:
            if isinstance(event, RowsReceived) and self.is_asked_for(event):
                self.told_mwh += event.rows.energy_mwh
            commands += self.core.handle(event, self.now_ms)  # type: ignore[arg-type]
        commands += self.core.assign(self.now_ms)
        self.ledger.commit([command for command in commands if isinstance(command, LedgerWrite)])
        self.sent += [lease for command in commands if isinstance(command, SendTask) for lease in command.leases]

    def is_asked_for(self, event: RowsReceived) -> bool:
        """Whether anything of it can be checked: a car that a restarted coordinator has not met is believed nothing."""
        progress = self.core.jobs.get(event.rows.job)
        if progress is None:
            return event.vehicle in self.core.fleet.index
        return all(span.chunk in progress.granted for span in event.rows.spans)

    @precondition(lambda self: self.submitted < 3)
    @rule(chunk_rows=st.sampled_from([None, 1, 7]))
    def submit(self, chunk_rows: int | None) -> None:
        self.submitted += 1
        self.feed(JobSubmitted(job(f"j{self.submitted}", 40, chunk_rows=chunk_rows)))

    @rule(car=st.sampled_from(CARS), online=st.booleans())
    def come_or_go(self, car: str, online: bool) -> None:
        if online:
            self.epochs[car] += 1
            self.feed(*arrival(car, self.epochs[car], now_ms=self.now_ms))
        else:
            self.feed(VehicleState(car, State(False, self.epochs[car])))

    @rule(pass_ms=st.sampled_from([1, 40, 700, 40_000, 20 * 86_400_000]))
    def wait(self, pass_ms: int) -> None:
        self.now_ms += pass_ms
        for car, epoch in self.epochs.items():
            if epoch:
                self.feed(*arrival(car, epoch, now_ms=self.now_ms))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), energy_mwh=st.integers(0, 20_000), compute_ms=st.floats(0, 5_000))
    def compute(self, data: st.DataObject, energy_mwh: int, compute_ms: float) -> None:
        """Cars answer for parts of several leases of one job in one message, also twice and late."""
        lease = data.draw(st.sampled_from(self.sent))
        same = [other for other in self.sent if (other.job, other.vehicle) == (lease.job, lease.vehicle)]
        spans = []
        for one in data.draw(st.lists(st.sampled_from(same), min_size=1, max_size=4)):
            start = data.draw(st.integers(one.start, one.stop - 1))
            spans.append(Span(one.chunk, start, data.draw(st.integers(start + 1, one.stop))))
        self.feed(rows_of(lease.vehicle, lease.job, *spans, compute_ms=compute_ms, energy_mwh=energy_mwh))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        self.feed(TaskRefused(lease.vehicle, Refusal(lease.job, 1, RefusalReason.LEAVING, [lease.chunk])))

    @precondition(lambda self: self.core.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.feed(JobCancelled(data.draw(st.sampled_from(sorted(self.core.jobs)))))

    @rule()
    def restart(self) -> None:
        """What was summed up since the start begins anew; all else goes on."""
        before = self.core
        self.core = Core(POLICY)
        self.core.restore(self.ledger.load(), self.now_ms)
        for name, progress in self.core.jobs.items():
            assert progress.rests == before.jobs[name].rests
        self.counted += self.counted_by(before)
        self.sent = [lease for lease in self.sent if lease.job in self.core.jobs]

    @invariant()
    def sums_equal_the_receipts(self) -> None:
        receipts = self.rows(
            "SELECT job, vehicle, sum(rows_done), sum(energy_mwh), sum(energy_pay_micro + fee_pay_micro), "
            "sum(compute_us) FROM leases WHERE rows_done > 0 GROUP BY job, vehicle"
        )
        by_job, by_vehicle = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        compute_us = Counter[str]()
        for name, vehicle, *sums, us in receipts:
            compute_us[name] += us
            for what, value in zip(COLUMNS, sums, strict=True):
                by_job[name, what] += value
                by_vehicle[vehicle, what] += value
        for vehicle, row in self.core.fleet.index.items():
            for what in COLUMNS:
                assert self.core.fleet.column[what][row] == by_vehicle[vehicle, what]
        for number in range(1, self.submitted + 1):
            name = f"j{number}"
            view = self.ledger.job_view(name)
            assert view is not None
            for what in COLUMNS:
                assert getattr(view, what) == by_job[name, what]
            assert (view.compute_ms, view.vehicles) == (
                compute_us[name] / 1000,
                len({vehicle for owner, vehicle, *_ in receipts if owner == name}),
            )
            if (progress := self.core.jobs.get(name)) is not None:
                assert (progress.compute_us, progress.pay_micro) == (compute_us[name], by_job[name, "pay_micro"])

    @invariant()
    def a_car_is_paid_what_its_receipts_promised_to_one_unit(self) -> None:
        energy_due: Counter[tuple[str, str]] = Counter()
        fee_due: Counter[tuple[str, str]] = Counter()
        for name, vehicle, tariff, fee, us, mwh, energy_pay, fee_pay in self.rows(
            "SELECT job, vehicle, energy_micro_per_kwh, pay_micro_per_h, compute_us, energy_mwh, energy_pay_micro, "
            "fee_pay_micro FROM leases WHERE rows_done > 0"
        ):
            assert tariff >= 0
            energy_due[name, vehicle] += mwh * tariff - energy_pay * 10**6
            fee_due[name, vehicle] += us * fee - fee_pay * 3600 * 10**6
        assert all(0 <= rest < 10**6 for rest in energy_due.values())
        assert all(0 <= rest < 3600 * 10**6 for rest in fee_due.values())

    @invariant()
    def no_car_is_paid_for_more_time_than_has_passed(self) -> None:
        """Also not over restarts, while a job runs."""
        for name, since_ms, us in self.rows(
            "SELECT job, min(granted_ms), sum(compute_us) FROM leases WHERE compute_us > 0 GROUP BY job, vehicle"
        ):
            if name in self.core.jobs:
                assert us <= (self.now_ms - since_ms + LIMITS.clock_ms) * 1_000

    @invariant()
    def all_energy_that_was_told_is_paid_or_wasted_or_capped(self) -> None:
        counted = self.counted + self.counted_by(self.core)
        assert sum(counted.values()) == self.told_mwh
        assert counted["accepted"] == self.rows("SELECT coalesce(sum(energy_mwh), 0) FROM leases")[0][0]

    def counted_by(self, core: Core) -> Counter[str]:
        totals = core.totals
        return Counter(accepted=totals.energy_mwh, wasted=totals.wasted_energy_mwh, capped=totals.energy_capped_mwh)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.ledger._connection.execute(query).fetchall()


def restarted(ledger: SqliteLedger, now_ms: int) -> Core:
    core = Core(POLICY)
    core.restore(ledger.load(), now_ms)
    return core


def test_rows_of_ended_leases_count_after_a_restart_too_and_no_time_is_believed_twice() -> None:
    ledger = SqliteLedger(Path(":memory:"))
    ledger.open()
    core = Core(POLICY)
    core.speeds.learn("car", MODEL.digest, 10.0)
    commands = []
    for event in (ModelAdded(MODEL), *arrival("car"), JobSubmitted(job("j", 40, chunk_rows=8))):
        commands += core.handle(event, 0)  # type: ignore[arg-type]
    commands += core.assign(0)
    commands += core.handle(VehicleState("car", State(False, 1)), 1)  # its connection broke in mid-work
    ledger.commit([command for command in commands if isinstance(command, LedgerWrite)])
    for chunk, now_ms in enumerate((50_000, 60_000)):
        core = restarted(ledger, now_ms)
        claim = rows_of("car", "j", Span(chunk, 8 * chunk, 8 * chunk + 8), compute_ms=50_000.0)
        ledger.commit(core.handle(claim, now_ms))  # type: ignore[arg-type]
        assert core.jobs["j"].rows_done == 8 * chunk + 8
    (line,) = ledger.statement("vehicle", ReceiptFilter())
    assert (line.rows, line.compute_us) == (16, 61_000_000)
    ledger.close()


TestReceipts = ReceiptsMachine.TestCase
TestReceipts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
