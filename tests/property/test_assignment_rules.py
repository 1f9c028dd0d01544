"""No lease breaks a rule: every car, owner and job is judged by the rules read plainly, one by one, from what was told.

The judge knows messages, policies and prices alone: neither the fleet's columns nor any of the coordinator's rules.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from coordinator.commands import AddFailedRow, AddRows, Command, EndJob, EndLease, GrantLease, KeepConduct
from coordinator.core import Core, CorePolicy
from coordinator.events import (
    Event,
    JobSubmitted,
    ModelAdded,
    PolicySet,
    RowsFailed,
    TaskRefused,
    Tick,
    VehicleCaps,
    VehicleState,
)
from coordinator.ingest import Ingest
from coordinator.local_time import utc_offsets_ms
from coordinator.model import Job, LeaseEnd, LeaseRecord
from coordinator.rules.eligibility import Reason
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import SchedulingLimits
from coordinator.rules.sizing import SizingLimits
from coordinator.rules.tariff import Tariffs
from fleet_wire.codec import TELEMETRY
from fleet_wire.messages import Caps, Failure, Refusal, RefusalReason, Span, State, Telemetry
from fleet_wire.policy import LinkRules, OwnerPolicy
from fleet_wire.signals import Signals
from tests.property.owner_policies import owner_hours
from tests.unit.coordinator_scenes import MODEL, job, rows_of

CARS = ("car-1", "car-2", "car-3")
ROWS = 20
FEE = 20_000
PRICES = {"": 250_000, "cheap": 100_000, "dear": 300_000, "unknown": None, "paid to take it": -5}
# Two hours before the clocks of Europe are set back: 02:00 to 03:00 comes twice in Berlin.
BEGIN_MS = 1_792_882_800_000
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000

Told = dict[str, Any]
GOOD: Told = {
    **dict.fromkeys(("moving", "link_metered", "update_pending", "camp_mode", "sentry_mode"), False),
    **dict.fromkeys(("plugged", "charging", "opted_in"), True),
    **dict.fromkeys(("battery_temperature_c", "compute_temperature_c", "cabin_temperature_c"), 20.0),
    "charge_percent": 80.0,
    "battery_power_w": 7000.0,
    "battery_capacity_kwh": 60.0,
    "link_rate_mbps": 50.0,
    "link_month_bytes": 0,
    "compute_power_w": 50.0,
}
# Around the thresholds of the rules; of a departure the time that is left, of any the word None: not known.
READINGS: dict[str, tuple[Any, ...]] = {
    **{name: (False, True) for name, value in GOOD.items() if isinstance(value, bool)},
    "charge_percent": (0.0, 29.9, 30.0, 31.9, 32.0, 49.0, 50.0, 51.0, 52.0, 80.0, 81.0, 100.0),
    "battery_temperature_c": (39.9, 40.0, 44.9, 45.0, 90.0),
    "compute_temperature_c": (74.9, 75.0, 84.9, 85.0),
    "cabin_temperature_c": (44.9, 45.0, 49.9, 50.0),
    "battery_power_w": (-260.0, -1.0, 0.0, 99.0, 101.0, 3000.0, 7000.0),
    "battery_capacity_kwh": (0.0, 10.0, 60.0),
    "link_rate_mbps": (0.0, 4.9, 5.0, 6.2, 6.25, 50.0),
    "link_month_bytes": (999, 1000, 10**9),
    "compute_power_w": (0.0, 50.0, 100.0, 100.5, 400.0),
    "departure_ms": (-1, 0, 29_999, 30_000, 119_999, 120_000, HOUR, 8 * HOUR),
    "departure_charge_percent": (0.0, 50.0, 80.0, 100.0),
    "refusal": ("", "sentry_mode"),
}
TERMS: dict[str, st.SearchStrategy[Any]] = {
    "purposes": st.sampled_from([["general"], ["research"], ["general", "research"]]),
    "timezone": st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns"]),
    "hours": st.lists(owner_hours, min_size=1, max_size=3),
    "charge_floor_percent": st.sampled_from([0.0, 30.0, 50.0, 100.0]),
    "departure_charge_percent": st.sampled_from([None, 50.0, 80.0, 100.0]),
    "price_ceiling_micro_per_kwh": st.sampled_from([None, 99_999, 100_000, 300_000]),
    "charge_coincident_only": st.booleans(),
    "link": st.builds(LinkRules, st.booleans(), st.sampled_from([0.0, 5.0]), st.sampled_from([None, 1000])),
    "power_cap_w": st.sampled_from([None, 100.0]),
    "least_pay_micro_per_h": st.sampled_from([0, FEE, FEE + 1]),
    "revoked": st.just(True),
}


# What is read together: an owner's terms with the signals that they are about.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("charge_floor_percent", "departure_charge_percent"),
        ("charge_percent", "battery_power_w", "departure_ms", "departure_charge_percent"),
    ),
    (
        ("departure_charge_percent",),
        ("charge_percent", "battery_power_w", "departure_ms", "battery_capacity_kwh", "compute_power_w"),
    ),
    (("link",), ("link_metered", "link_rate_mbps", "link_month_bytes")),
    (("hours", "timezone"), ()),
    (("charge_coincident_only",), ("charging",)),
    (("power_cap_w",), ("compute_power_w",)),
    (("price_ceiling_micro_per_kwh", "purposes"), ()),
    (("least_pay_micro_per_h",), ("departure_ms",)),
    ((), ("battery_temperature_c", "compute_temperature_c", "cabin_temperature_c")),
    (("revoked",), ("moving", "plugged")),
    ((), ("opted_in", "update_pending")),
    ((), ("camp_mode", "sentry_mode", "refusal")),
)


def told_of(group: tuple[str, ...]) -> st.SearchStrategy[Told]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from([*READINGS[name], None]) for name in group})


def terms_of(group: tuple[str, ...]) -> st.SearchStrategy[Told]:
    return st.fixed_dictionaries({}, optional={name: TERMS[name] for name in group})


readings = st.sampled_from([told for _, told in GROUPS if told]).flatmap(told_of)
scenes = st.sampled_from(GROUPS).flatmap(lambda group: st.tuples(terms_of(group[0]), told_of(group[1])))
cars = st.sampled_from(CARS)


@dataclass
class Car:
    """What one car and its owner said, and what the ledger says of its conduct."""

    epoch: int = 0
    online: bool = False
    seq: int = 0
    ahead_ms: int = 0
    slots: int = 0
    region: str = ""
    held_version: int = 0
    policy: OwnerPolicy | None = None
    signals: Told = field(default_factory=dict)
    snapshot_epoch: int = -1
    heard_ms: int = 0
    skew_ms: int = 0
    draining: bool = False
    quarantined_until_ms: int = 0
    rests_until_ms: int = 0
    works: bool = False

    @property
    def price(self) -> int | None:
        return PRICES[self.region if self.slots else ""]

    def number(self, name: str) -> float:
        return float(self.signals.get(name, math.nan))

    def objections(self, now_ms: int, stay_chance: float) -> Iterator[str]:  # noqa: C901 - a list of rules
        """Reasons against work, in order. Where more is asked of a car that is to begin, `works` tells them apart."""
        told, policy, works = self.signals, self.policy, self.works
        if not self.online:
            yield "offline"
        if not self.slots:
            yield "caps_unknown"
        if self.snapshot_epoch != self.epoch:
            yield "telemetry_missing"
        if now_ms - self.heard_ms > 5 * MINUTE:
            yield "telemetry_stale"
        if abs(self.skew_ms) > (10 if works else 5) * SECOND:
            yield "clock_wrong"
        if policy is None or (self.held_version != policy.version and not policy.revoked):
            yield "consent_missing"
            return
        switches = [("revoked", policy.revoked, False, "consent_revoked")]
        switches += [
            (name, told.get(name), right, reason)
            for name, right, reason in (
                ("opted_in", True, "owner_opted_out"),
                ("moving", False, "not_parked"),
                ("plugged", True, "not_plugged_in"),
                ("update_pending", False, "update_pending"),
                ("camp_mode", False, "camp_mode"),
                ("sentry_mode", False, "sentry_mode"),
            )
        ]
        yield from (reason for _, value, right, reason in switches if value is not right)
        if not within_hours(policy, now_ms):
            yield "outside_hours"
        floor = policy.charge_floor_percent if works else min(100.0, policy.charge_floor_percent + 2)
        if not self.number("charge_percent") >= floor:
            yield "charge_too_low"
        if not self.keeps_its_promise(policy, now_ms):
            yield "departure_guard"
        for name, start, stop in (("battery", 40, 45), ("compute", 75, 85), ("cabin", 45, 50)):
            if not self.number(f"{name}_temperature_c") < (stop if works else start):
                yield f"{name}_too_hot"
        if not policy.link.metered_allowed and told.get("link_metered") is not False:
            yield "link_metered"
        least = policy.link.least_mbps
        if least and not self.number("link_rate_mbps") >= (least if works else least * 1.25):
            yield "link_weak"
        if policy.link.month_bytes is not None and not self.number("link_month_bytes") < policy.link.month_bytes:
            yield "link_budget_spent"
        ceiling = policy.price_ceiling_micro_per_kwh
        if self.price is None or (ceiling is not None and self.price > ceiling):
            yield "price_too_high"
        if policy.charge_coincident_only and told.get("charging") is not True:
            yield "not_charging"
        left_ms = told["departure_ms"] - now_ms if "departure_ms" in told else math.inf
        if 0 <= left_ms < (30 if works else 120) * SECOND or stay_chance < (0.95 if works else 0.97):
            yield "leaves_soon"
        if policy.least_pay_micro_per_h > FEE:
            yield "pay_too_low"
        if policy.power_cap_w is not None and not self.number("compute_power_w") <= policy.power_cap_w:
            yield "power_over_cap"
        if self.quarantined_until_ms > now_ms:
            yield "quarantined"
        if self.draining:
            yield "draining"
        if told.get("refusal"):
            yield "car_refuses"

    def keeps_its_promise(self, policy: OwnerPolicy, now_ms: int) -> bool:
        """The departure guard, as docs/wire.md has it."""
        promised = self.signals.get("departure_charge_percent", policy.departure_charge_percent)
        if promised is None:
            return True
        wanted = promised if self.works else min(100.0, promised + 1)
        charge, battery_w = self.number("charge_percent"), self.number("battery_power_w")
        if charge >= wanted and battery_w >= 0:
            return True
        hours = max(0, self.signals.get("departure_ms", 0) - now_ms) / HOUR
        if not hours:
            return charge >= wanted
        capacity_kwh, draw_w = self.number("battery_capacity_kwh"), max(100.0, self.signals.get("compute_power_w", 0.0))
        return capacity_kwh > 0 and charge + (battery_w - draw_w) / (10 * capacity_kwh) * hours >= wanted

    def agrees_to(self, wanted: Job) -> bool:
        assert self.policy is not None
        ceiling = wanted.terms.price_ceiling_micro_per_kwh
        return wanted.terms.purpose in self.policy.purposes and (
            ceiling is None or (self.price is not None and self.price <= ceiling)
        )


def within_hours(policy: OwnerPolicy, now_ms: int) -> bool:
    local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(policy.timezone))
    minute = (local.weekday() * 24 + local.hour) * 60 + local.minute
    for hours in policy.hours:
        length = (hours.stop_minute - hours.start_minute) % 1440 or 1440
        if any((minute - day * 1440 - hours.start_minute) % (7 * 1440) < length for day in hours.days):
            return True
    return not policy.hours


class _Priced:
    def __init__(self, micro: int | None) -> None:
        self._micro = micro
        self.known_until_ms = None

    def at(self, _time_ms: int) -> int | None:
        return self._micro


class RulesMachine(RuleBasedStateMachine):
    """After each message the coordinator gives work; what it thinks of each car, and each lease, is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core(
            CorePolicy(
                sizing=SizingLimits(probe_rows=3, lease_floor_ms=40_000, lease_factor=1),
                scheduling=SchedulingLimits(copied_share=0.5, least_gain_ms=1, copy_factor=1.0, cold_ms=1),
                quarantine=QuarantineLimits(free_strikes=0, first_ms=20 * SECOND),
                tariffs=Tariffs(_Priced(PRICES[""]), {name: _Priced(micro) for name, micro in PRICES.items()}),
            )
        )
        self.ingest = Ingest("f", 1 << 17)
        self.now_ms = BEGIN_MS
        self.cars = {name: Car() for name in CARS}
        self.jobs: dict[str, Job] = {}
        self.open: dict[tuple[str, int], LeaseRecord] = {}
        self.seen: Counter[tuple[str, str]] = Counter()
        self.settled: defaultdict[str, set[int]] = defaultdict(set)
        self.failed_at: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        self.failed_alone_at: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        self.submitted = 0
        self.core.handle(ModelAdded(MODEL), self.now_ms)

    # What happens ---------------------------------------------------------------------------------------------------

    def feed(self, *events: Event) -> None:
        for event in events:
            self.keep(self.core.handle(event, self.now_ms))

    def keep(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case EndLease(name, chunk, end):
                    lease = self.open.pop((name, chunk))
                    if end is LeaseEnd.EXPIRED:
                        self.cars[lease.vehicle].rests_until_ms = self.now_ms + SECOND
                case EndJob(name):
                    del self.jobs[name]
                case KeepConduct(conduct):
                    self.cars[conduct.vehicle].quarantined_until_ms = conduct.quarantined_until_ms
                case AddFailedRow(name, row):
                    self.settle(name, row.row)
                case AddRows(rows):
                    for piece in rows.pieces:
                        self.settle(rows.job, *range(piece.start, piece.stop))

    def settle(self, name: str, *rows: int) -> None:
        self.settled[name].update(rows)
        for row in rows:
            self.failed_at.pop((name, row), None)
            self.failed_alone_at.pop((name, row), None)

    def give_work(self, wait_ms: int = SECOND) -> None:
        self.now_ms += wait_ms
        self.feed(Tick(utc_offsets_ms(self.core.fleet.timezones, self.now_ms)))
        verdicts = self.judge()
        may = {name for name, verdict in verdicts.items() if verdict in {"eligible", "quarantined"}}
        may_see = {
            (each.id, name) for each in self.jobs.values() for name in may if self.may_see(each, name) > 0
        }  # a car in quarantine will try what others could not
        for command in self.core.assign(self.now_ms):
            if isinstance(command, GrantLease):
                self.breaks_no_rule(command.lease, verdicts, may_see)

    def judge(self) -> dict[str, str]:
        """Compare what both sides say of every car."""
        rows = [self.core.fleet.row(name) for name in self.cars]
        chances, reasons = self.core.foresight.stay_chances(), self.core.reasons(self.now_ms)
        verdicts = {}
        for row, (name, car) in zip(rows, self.cars.items(), strict=True):
            verdicts[name] = next(car.objections(self.now_ms, float(chances[row])), "eligible")
            assert Reason(int(reasons[row])).name.lower() == verdicts[name], (name, car)
            car.works = verdicts[name] == "eligible"
        return verdicts

    def may_see(self, wanted: Job, name: str) -> int:
        share = wanted.terms.vehicle_share
        return (ROWS if share == 1 else max(1, int(ROWS * share)) - self.seen[wanted.id, name]) * (
            self.cars[name].agrees_to(wanted)
        )

    def breaks_no_rule(self, lease: LeaseRecord, verdicts: dict[str, str], may_see: set[tuple[str, str]]) -> None:
        name, rows = lease.vehicle, range(lease.start, lease.stop)
        car, wanted = self.cars[name], self.jobs[lease.job]
        assert verdicts[name] == "eligible"
        assert car.rests_until_ms <= self.now_ms
        assert 0 < len(rows) <= self.may_see(wanted, name)
        assert (lease.epoch, lease.pay_micro_per_h) == (car.epoch, FEE)
        assert car.policy is not None
        assert lease.consent_version == car.policy.version == car.held_version
        assert car.price is not None
        assert lease.energy_micro_per_kwh == max(0, car.price)
        assert not self.settled[lease.job].issuperset(rows)
        for row in rows:
            for failed in (self.failed_at[lease.job, row], self.failed_alone_at[lease.job, row]):
                assert len(rows) == 1 or not failed, "a row that failed takes neighbours along"
                untried = {other for of, other in may_see if of == lease.job} - set(failed)
                assert name not in failed or not untried, "others have not tried it"
        self.seen[lease.job, name] += len(rows)
        self.open[lease.job, lease.chunk] = lease
        assert sum(held.vehicle == name for held in self.open.values()) <= car.slots

    # Messages -------------------------------------------------------------------------------------------------------

    def born(self, name: str, ahead_ms: int = 0) -> None:
        car = self.cars[name]
        car.epoch, car.seq, car.ahead_ms, car.online, car.draining = car.epoch + 1, 0, ahead_ms, True, False
        self.feed(VehicleState(name, State(True, car.epoch)))

    def say_caps(self, name: str, slots: int, region: str, *, holds: bool = True) -> None:
        car = self.cars[name]
        car.slots, car.region = slots, region
        if holds and car.policy is not None:
            car.held_version = car.policy.version
        caps = Caps(car.epoch, "1", "x86_64", "CPU", "1", 1, slots, car.held_version, region)
        self.feed(VehicleCaps(name, caps))

    def agree(self, name: str, changes: Told) -> None:
        car = self.cars[name]
        version = 1 if car.policy is None else car.policy.version + 1
        car.policy = OwnerPolicy(**{"version": version, "owner": "ada", "purposes": ["general"], **changes})
        if car.policy.revoked:
            car.policy = msgspec.structs.replace(car.policy, purposes=[])
        self.feed(PolicySet(name, car.policy, "ada"))

    def say(self, name: str, readings: Told, *, snapshot: bool) -> None:
        """Over the wire: encoded, sorted, decoded into columns."""
        car = self.cars[name]
        readings = {key: value for key, value in readings.items() if value is not None}
        if "departure_ms" in readings:
            readings["departure_ms"] += self.now_ms
        document = Telemetry(car.epoch, car.seq, self.now_ms + car.ahead_ms, snapshot, Signals(**readings))
        payload, content_type = TELEMETRY.encode(document), TELEMETRY.content_type
        packet = SimpleNamespace(
            topic=f"iw/v1/f/veh/{name}/tele", payload=payload, retain=False, content_type=content_type, intact=True
        )
        batch = self.ingest.sort([packet], self.now_ms).telemetry
        assert batch is not None, self.ingest.refusals
        self.feed(batch)
        car.signals = readings if snapshot else car.signals | readings
        car.seq, car.heard_ms, car.skew_ms = car.seq + 1, self.now_ms, -car.ahead_ms
        if snapshot:
            car.snapshot_epoch = car.epoch

    # Rules ----------------------------------------------------------------------------------------------------------

    @initialize(
        slots=st.integers(1, 3),
        purpose=st.sampled_from(["general", "research"]),
        silent=st.sampled_from(["", "", *CARS]),
    )
    def a_fleet_that_may_work(self, slots: int, purpose: str, silent: str) -> None:
        """But for one car, perhaps, that has not said what it can compute."""
        for name in CARS:
            self.born(name)
            self.give_work()
            if name != silent:
                self.say_caps(name, slots, "")
            self.say(name, GOOD, snapshot=True)
            self.give_work()
            self.agree(name, {"purposes": ["general", "research"]})
            if name != silent:
                self.say_caps(name, slots, "")
        self.submit(purpose, None, 1.0, 1, 2)

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(
        purpose=st.sampled_from(["general", "research", "maps"]),
        ceiling=st.sampled_from([None, 99_999, 100_000, 300_000]),
        share=st.sampled_from([1.0, 1.0, 0.3, 0.001]),
        chunk_rows=st.sampled_from([None, 1, 7]),
        attempts=st.integers(1, 3),
    )
    def submit(self, purpose: str, ceiling: int | None, share: float, chunk_rows: int | None, attempts: int) -> None:
        self.submitted += 1
        new = job(
            f"j{self.submitted}",
            ROWS,
            purpose=purpose,
            price_ceiling_micro_per_kwh=ceiling,
            vehicle_share=share,
            chunk_rows=chunk_rows,
            max_attempts=attempts,
        )
        self.jobs[new.id] = new
        self.feed(JobSubmitted(new))
        self.give_work()

    @rule(name=cars, changes=readings, snapshot=st.booleans())
    def tell(self, name: str, changes: Told, snapshot: bool) -> None:
        self.say(name, {**GOOD, **changes} if snapshot else changes, snapshot=snapshot)
        self.give_work()

    @rule(name=cars, scene=scenes, holds=st.sampled_from([True] * 4 + [False]))
    def agree_to(self, name: str, scene: tuple[Told, Told], holds: bool) -> None:
        """Another policy, perhaps not in the car yet, and what the car says then."""
        agreed, changes = scene
        car = self.cars[name]
        self.agree(name, agreed)
        if holds:
            self.say_caps(name, car.slots or 1, car.region)
        self.say(name, {**GOOD, **changes}, snapshot=True)
        self.give_work()

    @rule(name=cars, slots=st.integers(1, 3), region=st.sampled_from(["", "", *PRICES]))
    def describe(self, name: str, slots: int, region: str) -> None:
        self.say_caps(name, slots, region)
        self.give_work()

    @rule(
        name=cars,
        ahead_ms=st.sampled_from([0] * 6 + [5_000, -5_000, 5_001, -5_001, 10_000, -10_001]),
        tells=st.sampled_from([True, True, False]),
        back=st.sampled_from([None, None, None, 0, 1]),
    )
    def come_or_go(self, name: str, ahead_ms: int, tells: bool, back: int | None) -> None:
        """A birth; or a Will of this epoch, or of an earlier one, which says nothing."""
        car = self.cars[name]
        if back is None:
            self.born(name, ahead_ms)
        else:
            self.feed(VehicleState(name, State(False, max(0, car.epoch - back))))
            car.online &= back == 1
        if tells:
            self.say(name, GOOD, snapshot=True)
        self.give_work()

    @rule(
        wait_ms=st.sampled_from([SECOND, 30 * SECOND, 2 * MINUTE, 299 * SECOND, 30 * MINUTE, HOUR, 7 * HOUR]),
        silent=st.sets(cars, max_size=1),
    )
    def wait(self, wait_ms: int, silent: set[str]) -> None:
        self.now_ms += wait_ms
        for name in set(CARS) - silent:
            if self.cars[name].online:
                self.say(name, {}, snapshot=False)
        self.give_work()

    @precondition(lambda self: self.jobs)
    @rule(name=cars, data=st.data(), reason=st.sampled_from([*RefusalReason, RefusalReason.DRAINING]))
    def refuse(self, name: str, data: st.DataObject, reason: RefusalReason) -> None:
        of = data.draw(st.sampled_from(sorted(self.jobs)))
        car = self.cars[name]
        self.feed(TaskRefused(name, Refusal(of, car.epoch, reason)))
        if reason is not RefusalReason.LEAVING:
            car.rests_until_ms = self.now_ms + SECOND
        car.draining |= reason is RefusalReason.DRAINING
        self.give_work(data.draw(st.sampled_from([250, SECOND])))

    @precondition(lambda self: self.open)
    @rule(slow=cars, part=st.booleans())
    def compute(self, slow: str, part: bool) -> None:
        """All cars answer for what they hold, but for one, and perhaps not for all of it."""
        for key, lease in sorted(self.open.items()):
            if lease.vehicle != slow and key in self.open:
                stop = lease.start + 1 if part else lease.stop
                self.feed(rows_of(lease.vehicle, lease.job, Span(lease.chunk, lease.start, stop)))
        self.give_work()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        lease = self.open[key]
        self.now_ms += SECOND
        self.judge()  # as the coordinator does, to know who else may try
        missing = set(range(lease.start, lease.stop)) - self.settled[lease.job]
        for row in missing:
            self.failed_at[lease.job, row].append(lease.vehicle)
            if lease.stop - lease.start == 1:
                self.failed_alone_at[lease.job, row].append(lease.vehicle)
        self.feed(RowsFailed(lease.vehicle, Failure(lease.job, 1, [Span(lease.chunk, lease.start, lease.stop)], "no")))
        self.give_work()


TestRules = RulesMachine.TestCase
TestRules.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
