"""May this car work right now, by its owner's policy and its maker's limits? Pure: times and offsets are arguments.

The car has the last word, whatever a coordinator thinks. Fails closed: a signal that a rule needs and that is absent
counts against working, with that rule's reason.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from msgspec import UNSET, UnsetType

from fleet_wire.messages import RefusalReason, Task
from fleet_wire.policy import QUARTER_MINUTES, WEEK_QUARTERS, OwnerPolicy, allowed_quarters
from fleet_wire.signals import Signals

__all__ = [
    "CarLimits",
    "IneligibleReason",
    "Level",
    "Verdict",
    "judge",
    "keeps_promise",
    "refusal_reason",
    "task_objection",
]

_LEAST_DRAW_W = 100.0
_MS_PER_HOUR = 3_600_000.0
_MS_PER_QUARTER = QUARTER_MINUTES * 60_000
_MONDAY_QUARTERS = 3 * 24 * 60 // QUARTER_MINUTES  # 1970 began on a Thursday
# What must be left between stopping and starting again, so that nothing flaps.
_FLOOR_MARGIN_PERCENT = 2.0
_PROMISE_MARGIN_PERCENT = 1.0
_RATE_MARGIN = 1.25


class IneligibleReason(StrEnum):
    """Why the car does not work, in the order in which reasons are looked for; sent as the `refusal` signal."""

    TELEMETRY_MISSING = "telemetry_missing"
    CONSENT_MISSING = "consent_missing"
    CONSENT_REVOKED = "consent_revoked"
    OWNER_OPTED_OUT = "owner_opted_out"
    NOT_PARKED = "not_parked"
    NOT_PLUGGED_IN = "not_plugged_in"
    UPDATE_PENDING = "update_pending"
    CAMP_MODE = "camp_mode"
    SENTRY_MODE = "sentry_mode"
    OUTSIDE_HOURS = "outside_hours"
    CHARGE_TOO_LOW = "charge_too_low"
    DEPARTURE_GUARD = "departure_guard"
    BATTERY_TOO_HOT = "battery_too_hot"
    COMPUTE_TOO_HOT = "compute_too_hot"
    CABIN_TOO_HOT = "cabin_too_hot"
    LINK_METERED = "link_metered"
    LINK_WEAK = "link_weak"
    LINK_BUDGET_SPENT = "link_budget_spent"
    NOT_CHARGING = "not_charging"
    POWER_OVER_CAP = "power_over_cap"


class Level(StrEnum):
    """How work ends: what the worker has may be finished, within a grace time, or it is killed at once."""

    FINISH = "finish"
    KILL = "kill"


# These let the worker finish its batch: what it took so far is not for nothing, and nobody waits for the computer.
# Every other reason kills: the car is needed, hurt, or not known, or its owner said stop.
_FINISHES = frozenset(
    {
        IneligibleReason.UPDATE_PENDING,
        IneligibleReason.OUTSIDE_HOURS,
        IneligibleReason.CHARGE_TOO_LOW,
        IneligibleReason.DEPARTURE_GUARD,
        IneligibleReason.LINK_METERED,
        IneligibleReason.LINK_WEAK,
        IneligibleReason.LINK_BUDGET_SPENT,
        IneligibleReason.NOT_CHARGING,
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the car may not work: the first reason, and the hardest level of all reasons."""

    reason: IneligibleReason
    level: Level


@dataclass(frozen=True, slots=True)
class CarLimits:
    """The maker's limits; a car that is willing stops at the `stop` value and is willing again only below `start`."""

    battery_start_c: float = 40.0
    battery_stop_c: float = 45.0
    compute_start_c: float = 75.0
    compute_stop_c: float = 85.0
    cabin_start_c: float = 45.0
    cabin_stop_c: float = 50.0


_REFUSALS = {
    IneligibleReason.CONSENT_MISSING: RefusalReason.CONSENT_MISSING,
    IneligibleReason.CONSENT_REVOKED: RefusalReason.CONSENT_MISSING,
    IneligibleReason.OWNER_OPTED_OUT: RefusalReason.CONSENT_MISSING,
    IneligibleReason.BATTERY_TOO_HOT: RefusalReason.TOO_HOT,
    IneligibleReason.COMPUTE_TOO_HOT: RefusalReason.TOO_HOT,
    IneligibleReason.CABIN_TOO_HOT: RefusalReason.TOO_HOT,
}
# A car of which none of these is known is one whose bus is silent.
_BASIC = ("opted_in", "moving", "plugged", "charge_percent")


def judge(
    signals: Signals, policy: OwnerPolicy | None, limits: CarLimits, *, now_ms: int, utc_offset_ms: int, willing: bool
) -> Verdict | None:
    """Return why the car may not work and how work ends, None when it may.

    `utc_offset_ms` is what the policy's time zone is ahead of UTC now; `willing` says what the last answer was.
    """
    reasons = list(_reasons(signals, policy, limits, now_ms=now_ms, utc_offset_ms=utc_offset_ms, willing=willing))
    if not reasons:
        return None
    return Verdict(reasons[0], Level.FINISH if _FINISHES.issuperset(reasons) else Level.KILL)


def _reasons(
    signals: Signals, policy: OwnerPolicy | None, limits: CarLimits, *, now_ms: int, utc_offset_ms: int, willing: bool
) -> Iterator[IneligibleReason]:
    """All reasons not to work, in their order; those that leave nothing to look at stand alone."""
    if all(getattr(signals, name) is UNSET for name in _BASIC):
        yield IneligibleReason.TELEMETRY_MISSING
        return
    if policy is None:
        yield IneligibleReason.CONSENT_MISSING
        return
    floor = policy.charge_floor_percent
    floor = floor if willing else min(100.0, floor + _FLOOR_MARGIN_PERCENT)
    battery_c = limits.battery_stop_c if willing else limits.battery_start_c
    compute_c = limits.compute_stop_c if willing else limits.compute_start_c
    cabin_c = limits.cabin_stop_c if willing else limits.cabin_start_c
    link = policy.link
    least_mbps = link.least_mbps if willing else link.least_mbps * _RATE_MARGIN
    checks = (
        (policy.revoked, IneligibleReason.CONSENT_REVOKED),
        (signals.opted_in is not True, IneligibleReason.OWNER_OPTED_OUT),
        (signals.moving is not False, IneligibleReason.NOT_PARKED),
        (signals.plugged is not True, IneligibleReason.NOT_PLUGGED_IN),
        (signals.update_pending is not False, IneligibleReason.UPDATE_PENDING),
        (signals.camp_mode is not False, IneligibleReason.CAMP_MODE),
        (signals.sentry_mode is not False, IneligibleReason.SENTRY_MODE),
        (not _is_within_hours(policy, now_ms + utc_offset_ms), IneligibleReason.OUTSIDE_HOURS),
        (not _known(signals.charge_percent) >= floor, IneligibleReason.CHARGE_TOO_LOW),
        (not keeps_promise(signals, policy, now_ms=now_ms, willing=willing), IneligibleReason.DEPARTURE_GUARD),
        (not _known(signals.battery_temperature_c) < battery_c, IneligibleReason.BATTERY_TOO_HOT),
        (not _known(signals.compute_temperature_c) < compute_c, IneligibleReason.COMPUTE_TOO_HOT),
        (not _known(signals.cabin_temperature_c) < cabin_c, IneligibleReason.CABIN_TOO_HOT),
        (not link.metered_allowed and signals.link_metered is not False, IneligibleReason.LINK_METERED),
        (least_mbps > 0 and not _known(signals.link_rate_mbps) >= least_mbps, IneligibleReason.LINK_WEAK),
        (not _is_under(signals.link_month_bytes, link.month_bytes), IneligibleReason.LINK_BUDGET_SPENT),
        (policy.charge_coincident_only and signals.charging is not True, IneligibleReason.NOT_CHARGING),
        (
            policy.power_cap_w is not None and not _known(signals.compute_power_w) <= policy.power_cap_w,
            IneligibleReason.POWER_OVER_CAP,
        ),
    )
    yield from (reason for holds, reason in checks if holds)


def keeps_promise(signals: Signals, policy: OwnerPolicy, *, now_ms: int, willing: bool) -> bool:
    """Say whether work leaves the charge that was promised for the next departure: the departure guard.

    The promise P is what the car says, else the policy's; without one there is nothing to keep. To begin, the car needs
    one percent more than P, but at most 100. Work may go on when the battery has P and is not being drained, or when it
    will have P at the departure if computing took what it draws, and 100 W at least, out of the power that charges it:

        charge >= P and battery_power_w >= 0, or
        charge + 100 * (battery_power_w - max(compute_power_w, 100)) * hours / (1000 * battery_capacity_kwh) >= P

    A departure that is not known or has passed may come at any moment: `hours` is 0. The draw counts in full, even
    where the battery's power has it in already. What is needed and not known breaks the promise.
    """
    promised = signals.departure_charge_percent
    if promised is UNSET:
        if policy.departure_charge_percent is None:
            return True
        promised = policy.departure_charge_percent
    wanted = promised if willing else min(100.0, promised + _PROMISE_MARGIN_PERCENT)
    charge, battery_w = _known(signals.charge_percent), _known(signals.battery_power_w)
    if charge >= wanted and battery_w >= 0:
        return True
    hours = 0.0 if signals.departure_ms is UNSET else max(0, signals.departure_ms - now_ms) / _MS_PER_HOUR
    if hours:
        draw_w = _LEAST_DRAW_W if signals.compute_power_w is UNSET else max(_LEAST_DRAW_W, signals.compute_power_w)
        capacity_kwh = _known(signals.battery_capacity_kwh) or math.nan
        charge += 100 * (battery_w - draw_w) * hours / (1000 * capacity_kwh)
    return charge >= wanted


def task_objection(task: Task, policy: OwnerPolicy | None) -> RefusalReason | None:
    """Return what the owner has against a task: another consent, its purpose, its prices; None when nothing."""
    if policy is None:
        return RefusalReason.CONSENT_MISSING
    ceiling = policy.price_ceiling_micro_per_kwh
    if task.consent_version != policy.version:
        return RefusalReason.CONSENT_MISSING
    if task.purpose not in policy.purposes:
        return RefusalReason.PURPOSE_NOT_AGREED
    if ceiling is not None and task.energy_micro_per_kwh > ceiling:
        return RefusalReason.PRICE_TOO_HIGH
    if task.pay_micro_per_h < policy.least_pay_micro_per_h:
        return RefusalReason.PAY_TOO_LOW
    return None


def refusal_reason(reason: IneligibleReason, *, held: bool) -> RefusalReason:
    """How a reason is told to the coordinator: of leases that are held (given back), or of a task just offered."""
    return _REFUSALS.get(reason, RefusalReason.LEAVING if held else RefusalReason.INELIGIBLE)


def _known(value: float | UnsetType) -> float:
    """The value, or NaN, which compares false with every bound."""
    return math.nan if isinstance(value, UnsetType) else value


def _is_within_hours(policy: OwnerPolicy, local_ms: int) -> bool:
    if not policy.hours:
        return True
    quarter = (local_ms // _MS_PER_QUARTER + _MONDAY_QUARTERS) % WEEK_QUARTERS
    return bool(allowed_quarters(policy)[quarter])


def _is_under(spent: int | UnsetType, budget: int | None) -> bool:
    return budget is None or (spent is not UNSET and spent < budget)
