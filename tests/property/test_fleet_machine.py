"""The core and cars' sessions under any order of events and every fault: see `fleet_world` for what is real.

`make test` and CI run a hundred examples, always the same in CI. To search for long:
`pytest tests/property/test_fleet_machine.py --hypothesis-profile=long` (thousands of examples, see tests/conftest.py).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import event, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core import CorePolicy
from coordinator.events import JobCancelled, JobSubmitted, ModelAdded, PolicySet
from coordinator.events import Tick as CoreTick
from coordinator.model import LeaseRecord
from coordinator.ports import ReceiptFilter
from coordinator.progress import row_range
from coordinator.rules.eligibility import Reason
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import SchedulingLimits, share_cap
from coordinator.rules.sizing import SizingLimits
from coordinator.rules.tariff import flat_tariffs
from coordinator.rules.verification import VerificationLimits
from fleet_wire.api import JobTerms, Verification
from fleet_wire.bundle import decode_bundle
from fleet_wire.codec import RESULT
from fleet_wire.messages import Failure, Refusal, RefusalReason, Rows, Span
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Array, encode_tensors
from tests.property.fleet_world import (
    LIES,
    MODELS,
    SLOTS,
    TOPICS,
    TROUBLES,
    Car,
    Packet,
    World,
    computed,
    corrupted,
    inputs_of,
    new_job,
)
from tests.property.test_core_machine import assert_copies_repeat_others
from tests.property.test_restart_equality import assert_equal_as_promised
from vehicle_agent.events import (
    Drained,
    InputsArrived,
    InputsUnavailable,
    LoadModel,
    ModelArrived,
    ModelLoaded,
    ModelUnavailable,
    ModelUnusable,
    Tick,
    WorkerDied,
)
from vehicle_agent.results import Gathered

NAMES = ("car-1", "car-2", "car-3")
MOST_JOBS = 3
POLICY = CorePolicy(
    sizing=SizingLimits(probe_rows=3, lease_floor_ms=500, lease_factor=1, restored_grace_ms=300),
    scheduling=SchedulingLimits(
        copied_share=0.5, least_gain_ms=1, copy_factor=1.0, cold_ms=1, copies_every_ms=0, patience_ms=1_000
    ),
    quarantine=QuarantineLimits(free_strikes=1, first_ms=500, longest_ms=4_000),
    verification=VerificationLimits(
        floor=0.25, trusted_after=2, canaries=2, audit_wait_ms=300, first_conviction_ms=500, longest_conviction_ms=4_000
    ),
    tariffs=flat_tariffs(150_000),
    rebirth_every_ms=500,
    policy_every_ms=1_000,
    back_off_ms=5,
)
CONSENTS: dict[str, dict[str, Any]] = {
    "general": {"purposes": ["general"]},
    "both": {"purposes": ["general", "research"]},
    "for a price": {"purposes": ["general"], "price_ceiling_micro_per_kwh": 200_000},
    "revoked": {"purposes": [], "revoked": True},
}

cars = st.sampled_from(NAMES)
seldom = st.sampled_from([False] * 5 + [True])
some = st.integers(1, 8)
jobs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(sorted(MODELS)),
        "rows": st.sampled_from([40, 9, 1]),
        "bad": st.sampled_from([[], [], [], [0], [5, 6]]),
        "by_reference": seldom,
        "terms": st.builds(
            JobTerms,
            priority=st.sampled_from([0, -50, 20]),
            chunk_rows=st.sampled_from([None, None, 1, 7]),
            deadline_s=st.sampled_from([None, None, None, 2.0]),
            max_attempts=st.integers(1, 3),
            purpose=st.sampled_from(["general", "general", "research"]),
            price_ceiling_micro_per_kwh=st.sampled_from([None, None, 200_000]),
            vehicle_share=st.sampled_from([1.0, 1.0, 1.0, 0.5]),
            verification=st.sampled_from(
                [
                    Verification("adaptive"),
                    Verification("adaptive", wrong_share=0.1),
                    Verification("canaries", canary_share=0.2),
                    Verification(),
                    Verification(),
                    Verification("quorum", 2),
                    Verification("quorum", 3),
                ]
            ),
        ),
    }
)
# What goes on all the time: somebody's next message, answer or batch.
moves = st.tuples(
    st.sampled_from(["up", "take", "send", "down", "transfer", "work", "work", "wait", "find out"]),
    st.sampled_from(NAMES),
)


class Fleet(RuleBasedStateMachine):
    """Rules are what may happen; `World` and `Car` check as they go, invariants after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICY, NAMES)
        self.world.on_grant = self.assert_lease_breaks_no_rule
        self.submitted = 0
        self.seq = -1

    def car(self, name: str) -> Car:
        return self.world.cars[name]

    def tell_core(self, event: Any) -> None:
        self.world.happened.append(event)
        self.world.round()

    @initialize(
        names_nobody=st.booleans(),
        first=jobs,
        trusted=st.sampled_from([True, True, False]),
        lies=st.sampled_from([*LIES, None]),
        begun=st.integers(0, 4),
    )
    def start(self, names_nobody: bool, first: dict[str, Any], trusted: bool, lies: str | None, begun: int) -> None:
        self.world.broker.names_nobody = names_nobody
        for model in MODELS.values():
            self.tell_core(ModelAdded(model))
        for name in NAMES:
            self.consent(name, "both")
            self.car(name).connect()
            if trusted:
                self.world.trust(name, 2)
        self.world.flow(10)
        self.lie(NAMES[1], lies)
        self.submit(first)
        self.flow(begun, 5)

    # What clients and owners do

    @precondition(lambda self: self.submitted < MOST_JOBS)
    @rule(new=jobs)
    def submit(self, new: dict[str, Any]) -> None:
        self.submitted += 1
        name = f"j{self.submitted}"
        self.world.bad_values |= {int(inputs_of(name, row, row + 1)[0, 0]) for row in new["bad"]}
        if new["by_reference"]:
            self.world.by_reference.add(name)
        made = new_job(name, new["model"], new["rows"], new["terms"], self.world.coordinator_ms)
        self.tell_core(JobSubmitted(made))

    @precondition(lambda self: self.submitted == MOST_JOBS)
    @rule(job=st.integers(1, MOST_JOBS))
    def cancel(self, job: int) -> None:
        self.tell_core(JobCancelled(f"j{job}"))

    @rule(name=cars, kind=st.sampled_from(["general", "both", "both", "for a price", "revoked"]))
    def consent(self, name: str, kind: str) -> None:
        version = self.world.core.fleet.next_policy_version(name)
        self.tell_core(PolicySet(name, OwnerPolicy(version=version, owner="ada", **CONSENTS[kind]), "ada"))

    @rule(name=cars, trouble=st.sampled_from([None, None, *TROUBLES]))
    def feel(self, name: str, trouble: str | None) -> None:
        self.car(name).feel(**({} if trouble is None else TROUBLES[trouble]))

    @rule(name=cars, price=st.sampled_from([100_000, 300_000]), stay_ms=st.sampled_from([math.nan, 50.0]))
    def foresee(self, name: str, price: int, stay_ms: float) -> None:
        fleet = self.world.core.fleet
        row = fleet.row(name)
        fleet.column["energy_micro_per_kwh"][row], fleet.column["stay_ms"][row] = price, stay_ms

    # Time

    @rule(pass_ms=st.sampled_from([0, 30, 200, 600, 3_000]))
    def pass_time(self, pass_ms: int) -> None:
        """No message arrives meanwhile."""
        self.world.now_ms += pass_ms
        for name in NAMES:
            self.car(name).tell(Tick())
        self.world.happened.append(CoreTick())
        self.world.round()

    @rule(times=st.integers(1, 3), pass_ms=st.sampled_from([5, 100, 600]))
    def flow(self, times: int, pass_ms: int) -> None:
        for _ in range(times):
            self.world.flow(pass_ms)

    @rule(step_ms=st.sampled_from([-5_000, -200, 200, 5_000]))
    def step_coordinator_clock(self, step_ms: int) -> None:
        self.world.clock_ms += step_ms

    @rule(name=cars, skew_ms=st.sampled_from([0, -400, 400, 60_000]))
    def step_car_clock(self, name: str, skew_ms: int) -> None:
        self.car(name).skew_ms = skew_ms

    # Messages

    @rule(these=st.lists(moves, min_size=3, max_size=20))
    def go_on(self, these: list[tuple[str, str]]) -> None:
        """Here and there something moves on, in any order."""
        for what, name in these:
            self.move(what, self.car(name))

    def move(self, what: str, car: Car) -> None:
        match what:
            case "up":
                car.broker_takes(4)
            case "take":
                self.world.round(self.world.broker.inbox[:4])
            case "send":
                self.world.send(2)
            case "down":
                for packet in self.world.broker.down.get(car.name, [])[:2]:
                    self.world.broker.down[car.name].remove(packet)
                    car.hear(packet)
            case "transfer":
                for what_kind in ("model", "inputs", "upload"):
                    self.transfer(car.name, what_kind, well=True)
            case "work":
                self.work(car.name, "well", 5.0)
            case "find out":
                self.find_out(4)
            case _:
                self.world.now_ms += 20
                car.tell(Tick())

    @rule(count=some, when=st.sampled_from(["before", "after"]))
    def coordinator_dies(self, count: int, when: str) -> None:
        """In the middle of a round: what it had taken comes again, what it had sent is lost."""
        self.world.round(self.world.broker.inbox[:count], dies=when)

    @precondition(lambda self: self.world.sending)
    @rule(count=some)
    def link_of_coordinator_breaks(self, count: int) -> None:
        """Nobody knows whether these tasks were taken."""
        self.world.send(count, unsure=True)

    @rule(
        data=st.data(),
        what=st.sampled_from(
            ["duplicate", "swap", "late", "flipped", "truncated", "no MessagePack", "too large", "type"]
        ),
        where=st.sampled_from(["inbox", *NAMES]),
    )
    def tamper(self, data: st.DataObject, what: str, where: str) -> None:
        broker = self.world.broker
        queue = broker.inbox if where == "inbox" else broker.down.get(where, [])
        if queue:
            place = data.draw(st.integers(0, len(queue) - 1))
            match what:
                case "duplicate":
                    queue.insert(place, queue[place])
                case "swap":
                    queue[place], queue[place - 1] = queue[place - 1], queue[place]
                case "late":
                    queue.append(queue.pop(place))
                case _:
                    queue[place] = corrupted(queue[place], what)

    @rule(name=cars)
    def message_expires(self, name: str) -> None:
        if down := self.world.broker.down.get(name):
            down.pop(0)

    # Links and processes

    @rule(name=cars, count=st.integers(0, 6), unheard=st.booleans())
    def cut(self, name: str, count: int, unheard: bool) -> None:
        if self.car(name).connected:
            self.car(name).cut(count, unheard=unheard)

    @rule(name=cars, max_bytes=st.sampled_from([60_000, 60_000, 560, 300]))
    def connect(self, name: str, max_bytes: int) -> None:
        car = self.car(name)
        if not car.connected:
            car.max_bytes = max_bytes
            car.connect()

    @precondition(lambda self: self.world.broker.wills)
    @rule(data=st.data())
    def publish_will(self, data: st.DataObject) -> None:
        self.world.broker.publish_will(data.draw(st.integers(0, len(self.world.broker.wills) - 1)))

    @rule(name=cars, count=st.integers(0, 6), in_order=seldom)
    def end_agent(self, name: str, count: int, in_order: bool) -> None:
        if in_order:
            self.car(name).stop()
        else:
            self.car(name).kill(count)

    @rule(name=cars, told=seldom)
    def drain(self, name: str, told: bool) -> None:
        if told:
            self.car(name).tell(Drained())

    @rule()
    def restart_coordinator(self) -> None:
        self.world.restart()

    # Workers and blobs

    @rule(name=cars, how=st.sampled_from(["well", "unusable", "fatally"]), ms=st.sampled_from([0.0, 900.0]))
    def work(self, name: str, how: str, ms: float) -> None:
        car = self.car(name)
        if not car.pipe:
            return
        if how == "fatally":
            car.pipe.clear()
            car.tell(WorkerDied("SIGSEGV"))
            return
        order = car.pipe.popleft()
        if not isinstance(order, LoadModel):
            car.tell(car.compute(order, ms))
        elif how == "unusable":
            car.tell(ModelUnusable(order.digest, "unusable"))
        else:
            car.tell(ModelLoaded(order.digest, MODELS[order.digest].batch_rows))

    @rule(name=st.sampled_from([*NAMES, ""]))
    def break_computer(self, name: str) -> None:
        """Every batch of one car fails, or of none."""
        for each in NAMES:
            self.car(each).broken = each == name

    @rule(name=st.sampled_from(NAMES[1:]), lies=st.sampled_from([None, *LIES]))
    def lie(self, name: str, lies: str | None) -> None:
        """The first car is honest always."""
        self.car(name).lies = lies
        self.world.liars |= {name} if lies else set()

    @precondition(lambda self: self.world.asked)
    @rule(count=some)
    def find_out(self, count: int) -> None:
        self.world.find_out(count)
        self.world.round()

    @rule(name=cars, what=st.sampled_from(["model", "inputs", "upload"]), well=st.booleans())
    def transfer(self, name: str, what: str, well: bool) -> None:
        car = self.car(name)
        match what:
            case "model" if car.fetching:
                ref = car.fetching.pop(0)
                car.tell(ModelArrived(ref.digest) if well else ModelUnavailable(ref.digest, "gone"))
            case "inputs" if car.fetching_inputs:
                number = next(iter(car.fetching_inputs))
                ref = car.fetching_inputs.pop(number)
                car.tell(
                    InputsArrived(number, decode_bundle(self.world.blobs[ref.digest]))
                    if well
                    else InputsUnavailable(number, "gone")
                )
            case "upload" if car.uploads and well:
                self.world.upload(car, car.uploads[0])
            case "upload" if car.uploads:
                car.fail_upload(car.uploads.pop(0))

    # What no agent of ours says

    @precondition(lambda self: self.world.granted)
    @rule(
        data=st.data(),
        what=st.sampled_from(["rows", "rows of another", "wrong type", "too few", "refusal", "refuses all", "failure"]),
    )
    def invent(self, data: st.DataObject, what: str) -> None:
        """A car says anything about a lease that it was granted once; its values are right, else see verification."""
        lease = data.draw(st.sampled_from(self.world.granted))
        start = data.draw(st.integers(lease.start, lease.stop - 1))
        stop = data.draw(st.integers(start + 1, lease.stop))
        name = lease.vehicle if what != "rows of another" else next(each for each in NAMES if each != lease.vehicle)
        spans, y = [Span(lease.chunk, start, stop)], self.computed(lease, start, stop)
        message: Rows | Refusal | Failure
        match what:
            case "refusal" | "refuses all":
                reason = data.draw(st.sampled_from(list(RefusalReason)))
                message = Refusal(lease.job, lease.epoch, reason, [lease.chunk] if what == "refusal" else [])
            case "failure":
                message = Failure(lease.job, lease.epoch, spans, "no")
            case _:
                y = y.astype(np.float32) if what == "wrong type" else y[1:] if what == "too few" else y
                energy_mwh, compute_ms = data.draw(st.sampled_from([(0, 0.0), (5, 10.0), (1 << 50, 1e12)]))
                tensors = encode_tensors({"y": y})
                message = Rows(lease.job, lease.epoch, spans, tensors, compute_ms=compute_ms, energy_mwh=energy_mwh)
        self.world.broker.take(Packet.of(RESULT, TOPICS.result(lease.job, name), message))

    def computed(self, lease: LeaseRecord, start: int, stop: int) -> Array:
        job = self.world.plain.jobs[lease.job].job
        return computed(job.model, inputs_of(job.id, *row_range(job, start, stop)))

    # What must hold

    def assert_lease_breaks_no_rule(self, lease: LeaseRecord) -> None:
        """To be asked before the plain ledger knows of the lease."""
        world, core, now_ms = self.world, self.world.core, self.world.coordinator_ms
        kept, fleet = world.plain.jobs[lease.job], core.fleet
        terms, row, slots = kept.job.terms, fleet.row(lease.vehicle), set(range(lease.start, lease.stop))
        rows = {slot % kept.job.rows for slot in slots}
        consent = world.plain.policies[lease.vehicle]
        assert lease.consent_version == consent.version
        assert not consent.revoked
        assert terms.purpose in consent.purposes
        assert core.reasons(now_ms)[row] == Reason.ELIGIBLE
        assert lease.epoch == fleet.column["epoch"][row]
        assert fleet.column["quarantined_until_ms"][row] <= now_ms
        assert fleet.column["rest_until_ms"][row] <= now_ms
        assert (
            sum(held.vehicle == lease.vehicle for each in world.plain.running.values() for held in each.leases) < SLOTS
        )
        price = fleet.column["energy_micro_per_kwh"][row]
        for ceiling in (terms.price_ceiling_micro_per_kwh, consent.price_ceiling_micro_per_kwh):
            assert ceiling is None or price <= ceiling
        cap = share_cap(kept.job.rows, terms.vehicle_share)
        assert terms.vehicle_share == 1 or kept.seen(lease.vehicle) + len(rows) <= cap
        assert not rows & kept.failed.keys()
        if terms.is_verified:
            assert len(rows) == len(slots)
            assert not [row for row in rows if lease.vehicle in kept.standing(row)], "a car got a row twice"
            own = [held for held in kept.leases if held.vehicle == lease.vehicle]
            assert not rows & {slot % kept.job.rows for held in own for slot in range(held.start, held.stop)}
        else:
            assert not rows <= set(kept.done)
        shared = [held for held in kept.leases if slots & set(range(held.start, held.stop))]
        if lease.copy_of is None:
            assert not shared, "rows were leased twice"
            return
        (original,) = shared
        assert original.chunk == lease.copy_of
        assert original.vehicle != lease.vehicle
        assert original.start <= lease.start < lease.stop <= original.stop
        assert kept.copied + len(rows) <= POLICY.scheduling.copied_share * kept.job.rows

    @invariant()
    def all_books_agree(self) -> None:
        self.every_row_is_settled_or_leased_or_free()
        self.only_liars_are_convicted()
        self.no_row_counts_by_the_word_of_convicted_cars_alone()
        self.a_copy_repeats_rows_of_one_other_lease()
        self.columns_agree_with_the_leases()
        self.sessions_keep_their_books()
        self.the_ledger_promises_the_same_core()

    def every_row_is_settled_or_leased_or_free(self) -> None:
        core, plain = self.world.core, self.world.plain
        assert core.jobs.keys() == plain.running.keys()
        for name, progress in core.jobs.items():
            kept = plain.jobs[name]
            settled = {*kept.done, *kept.failed}
            if progress.is_verified:
                assert set(np.flatnonzero(core.verifying.jobs[name].source >= 0).tolist()) == set(kept.done)
                settled = set(np.flatnonzero(progress.settled).tolist())
            else:
                assert set(np.flatnonzero(progress.settled).tolist()) == settled
            assert progress.rows_done == len(kept.done)
            assert progress.failed == kept.failed
            assert {chunk: lease.record for chunk, lease in progress.leases.items()} == {
                lease.chunk: lease for lease in kept.leases
            }
            records = [lease.record for lease in progress.leases.values() if lease.original is None]
            leased = [row for record in records for row in range(record.start, record.stop)]
            assert len(leased) == len(set(leased)) == progress.rows_leased
            lying = [row for start, stop in progress.free for row in range(start, stop)]
            free = set(lying) - settled
            assert len(lying) == len(set(lying)) == progress.rows_free
            assert not free & set(leased)
            assert free | set(leased) | settled == set(range(progress.layers * kept.job.rows))

    def only_liars_are_convicted(self) -> None:
        assert {car for car, kept in self.world.plain.conduct.items() if kept.convictions} <= self.world.liars

    def no_row_counts_by_the_word_of_convicted_cars_alone(self) -> None:
        for kept in self.world.plain.running.values():
            for row in [row for row, number in kept.shown.items() if number in kept.void]:
                said = [value.tolist() for number, value in kept.voices[row].items() if number not in kept.void]
                assert kept.values[row].tolist() in said

    def a_copy_repeats_rows_of_one_other_lease(self) -> None:
        assert_copies_repeat_others(self.world.core)

    def columns_agree_with_the_leases(self) -> None:
        core = self.world.core
        held: dict[int, dict[str, set[int]]] = {}
        for name, progress in core.jobs.items():
            for chunk, lease in progress.leases.items():
                held.setdefault(core.fleet.row(lease.record.vehicle), {}).setdefault(name, set()).add(chunk)
        assert core.fleet.held == held
        for row in range(len(core.fleet)):
            assert core.fleet.column["leases"][row] == sum(map(len, held.get(row, {}).values()))
            backlog_ms = core.fleet.column["backlog_ms"][row]
            assert 0 <= backlog_ms < math.inf
            assert row in held or backlog_ms == 0

    def sessions_keep_their_books(self) -> None:
        for car in self.world.cars.values():
            session = car.session
            held = {
                (job, chunk): holding
                for job, each in session._jobs.items()
                for chunk, (holding, _) in each.held.items()
            }
            left = car.books.without(span for each in session._gathered.items() for span in _spans(*each))
            assert held.keys() == left.keys()
            assert session.open_leases == len(held) <= SLOTS
            assert set(session._holdings.values()) == set(held.values())
            assert session._bytes_held == sum(each.bytes_held for each in session._holdings.values())
            rows: dict[str, int] = dict.fromkeys(session._models, 0)
            for (job, chunk), holding in held.items():
                place = session._jobs[job].held[chunk][1]
                assert holding.left[place] == len(left[job, chunk])
                rows[holding.model] += int(holding.left[place])
            assert {digest: model.rows for digest, model in session._models.items()} == rows

    def the_ledger_promises_the_same_core(self) -> None:
        """At any step: what a restart would find is the core that runs, and both ledgers agree. Sums are receipts."""
        world = self.world
        if world.plain.writes == self.seq:
            return
        self.seq = world.plain.writes
        assert_equal_as_promised(world.core, world.restored(), world.coordinator_ms)
        assert world.ledger.load() == world.plain.snapshot()
        everything = ReceiptFilter()
        receipts = world.ledger.receipts(everything, ("", 0), 10_000)
        for by, of in (("job", lambda each: each.job), ("vehicle", lambda each: each.vehicle)):
            for line in world.ledger.statement(by, everything):
                mine = [each for each in receipts if of(each) == line.of]
                assert line.rows == sum(each.rows for each in mine)
                assert line.energy_mwh == sum(each.energy_mwh for each in mine)
                assert line.pay_micro == sum(each.energy_pay_micro + each.fee_pay_micro for each in mine)
                kept = world.plain.jobs[line.of].sums if by == "job" else world.plain.vehicles[line.of]
                assert (line.rows, line.compute_us, line.energy_mwh, line.pay_micro) == tuple(kept)

    def the_ledger_streams_what_counts(self) -> None:
        for name, kept in self.world.plain.jobs.items():
            found: Counter[int] = Counter()
            for each in self.world.ledger.rows_after(name, 0, 10_000):
                rows = [row for piece in each.pieces for row in range(piece.start, piece.stop)]
                found.update(dict.fromkeys(rows, -1 if each.retracted else 1))
            assert sorted(found.elements()) == sorted(kept.done)

    def teardown(self) -> None:
        """When faults stop and cars are willing, every job ends soon."""
        world = self.world
        if sys.exc_info()[0] is not None:
            return
        world.clock_ms = 0
        for name, car in world.cars.items():
            car.skew_ms, car.broken, car.lies, car.max_bytes = 0, False, None, 60_000
            if car.connected:
                car.cut(0, unheard=False)
            car.feel()
            while world.broker.wills:
                world.broker.publish_will(0)
            self.consent(name, "both")
            self.foresee(name, 100_000, math.nan)
            car.connect()
        for job in [name for name, kept in world.plain.running.items() if kept.job.terms.vehicle_share < 1]:
            self.tell_core(JobCancelled(job))  # its rows may all be spent on cars that lost them
        rounds = 0
        while world.core.jobs:
            world.flow(200)
            self.all_books_agree()
            rounds += 1
            assert rounds < 200, "a job hangs"
        for _ in range(3):
            world.flow(200)
        for car in world.cars.values():
            assert (car.books.open, car.session.open_leases, car.session.busy) == ({}, 0, False)
        self.the_ledger_streams_what_counts()
        for what in sorted(world.reached):
            event(what)


def _spans(job: str, gathered: Gathered) -> Iterator[tuple[str, Span]]:
    return ((job, span) for span in gathered.spans)


Fleet.TestCase.settings = settings(stateful_step_count=40)
TestFleet: Callable[..., Any] = Fleet.TestCase
