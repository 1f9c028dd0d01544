"""Who may work now, and for everybody else the first reason why not. Pure functions over the fleet's columns.

Fails closed: what is not known counts against the car. Start and stop thresholds differ, so that nothing flaps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView
from fleet_wire.api import JobTerms
from fleet_wire.policy import QUARTER_MINUTES, WEEK_QUARTERS

__all__ = [
    "EXPLANATIONS",
    "Circumstances",
    "EligibilityLimits",
    "Reason",
    "Thresholds",
    "first_reasons",
    "job_reasons",
    "local_quarters",
    "reasons_of",
]

_QUARTER_MS = QUARTER_MINUTES * 60_000
_MONDAY_QUARTER = 3 * 96  # 1970 began on a Thursday
_HOUR_MS = 3_600_000
_BLOCK = 8192  # what is computed of so many vehicles at once stays in the processor's cache

Mask = NDArray[np.bool_]
Column = Callable[[str], NDArray[Any]]


class Reason(IntEnum):
    """Why a car gets no work, in the order in which reasons are looked for; `ELIGIBLE` is none.

    Those from `PURPOSE_NOT_AGREED` on are of a pair: this car gets no work of this job.
    """

    ELIGIBLE = 0
    OFFLINE = 1
    CAPS_UNKNOWN = 2
    TELEMETRY_MISSING = 3
    TELEMETRY_STALE = 4
    CLOCK_WRONG = 5
    CONSENT_MISSING = 6
    CONSENT_REVOKED = 7
    OWNER_OPTED_OUT = 8
    NOT_PARKED = 9
    NOT_PLUGGED_IN = 10
    UPDATE_PENDING = 11
    CAMP_MODE = 12
    SENTRY_MODE = 13
    OUTSIDE_HOURS = 14
    CHARGE_TOO_LOW = 15
    DEPARTURE_GUARD = 16
    BATTERY_TOO_HOT = 17
    COMPUTE_TOO_HOT = 18
    CABIN_TOO_HOT = 19
    LINK_METERED = 20
    LINK_WEAK = 21
    LINK_BUDGET_SPENT = 22
    PRICE_TOO_HIGH = 23
    NOT_CHARGING = 24
    LEAVES_SOON = 25
    PAY_TOO_LOW = 26
    POWER_OVER_CAP = 27
    QUARANTINED = 28
    DRAINING = 29
    CAR_REFUSES = 30
    PURPOSE_NOT_AGREED = 31
    JOB_PRICE_CEILING = 32
    JOB_SHARE_REACHED = 33
    FAILED_HERE = 34


EXPLANATIONS: dict[Reason, str] = {
    Reason.ELIGIBLE: "it may work",
    Reason.OFFLINE: "it is not connected",
    Reason.CAPS_UNKNOWN: "it has not said what it can compute",
    Reason.TELEMETRY_MISSING: "it has sent no full telemetry since it connected",
    Reason.TELEMETRY_STALE: "its last telemetry is too old",
    Reason.CLOCK_WRONG: "its clock is wrong",
    Reason.CONSENT_MISSING: "it holds no consent of its owner that is on record",
    Reason.CONSENT_REVOKED: "its owner has revoked the consent",
    Reason.OWNER_OPTED_OUT: "its owner has switched it off",
    Reason.NOT_PARKED: "it is moving",
    Reason.NOT_PLUGGED_IN: "it is not plugged in",
    Reason.UPDATE_PENDING: "a software update waits for it",
    Reason.CAMP_MODE: "somebody camps in it",
    Reason.SENTRY_MODE: "it watches its surroundings",
    Reason.OUTSIDE_HOURS: "it is outside the owner's hours",
    Reason.CHARGE_TOO_LOW: "its charge is below the owner's floor",
    Reason.DEPARTURE_GUARD: "work would lower the charge promised for the next departure",
    Reason.BATTERY_TOO_HOT: "its battery is too hot",
    Reason.COMPUTE_TOO_HOT: "its computer is too hot",
    Reason.CABIN_TOO_HOT: "its cabin is too hot",
    Reason.LINK_METERED: "its link is metered",
    Reason.LINK_WEAK: "its link is too weak",
    Reason.LINK_BUDGET_SPENT: "its link has carried what it may in this month",
    Reason.PRICE_TOO_HIGH: "energy costs more than the owner's ceiling, or nobody knows what it costs",
    Reason.NOT_CHARGING: "it is not charging, and its owner lets it work only then",
    Reason.LEAVES_SOON: "it is expected to leave too soon",
    Reason.PAY_TOO_LOW: "the pay is below what the owner asks",
    Reason.POWER_OVER_CAP: "computing draws more power than the owner allows",
    Reason.QUARANTINED: "it failed too often and rests",
    Reason.DRAINING: "it was told to take no new work",
    Reason.CAR_REFUSES: "its own policy refuses",
    Reason.PURPOSE_NOT_AGREED: "its owner has not agreed to the purpose of this job",
    Reason.JOB_PRICE_CEILING: "energy costs more there than the ceiling of this job",
    Reason.JOB_SHARE_REACHED: "it has had as many rows of this job as one car may see",
    Reason.FAILED_HERE: "the rows that are free have failed there already",
}


@dataclass(frozen=True, slots=True)
class EligibilityLimits:
    """Thresholds that are not the owner's; a car that works stops at `stop` and begins again only at `start`.

    The owner's own limits are where work stops. To begin, a car needs `charge_margin_percent` above the floor, the
    least link rate times `link_margin`, and `departure_margin_percent` above the charge promised for the departure.
    """

    stale_ms: int = 300_000
    clock_start_ms: int = 5_000
    clock_stop_ms: int = 10_000
    charge_margin_percent: float = 2.0
    departure_margin_percent: float = 1.0
    assumed_compute_w: float = 100.0
    battery_start_c: float = 40.0
    battery_stop_c: float = 45.0
    compute_start_c: float = 75.0
    compute_stop_c: float = 85.0
    cabin_start_c: float = 45.0
    cabin_stop_c: float = 50.0
    link_margin: float = 1.25
    stay_start: float = 0.97
    stay_stop: float = 0.95
    departure_start_ms: int = 120_000
    departure_stop_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What counts besides the fleet itself.

    `local_quarters` is the quarter of the local week for each of the fleet's timezones, -1 where it is not known.
    `pay_micro_per_h` is what an hour of computing pays. `stay_probability` is each vehicle's chance to stay plugged in
    for another minute, shape [vehicles]; None where nobody foresees that.
    """

    now_ms: int
    local_quarters: NDArray[np.int16]
    pay_micro_per_h: int = 0
    stay_probability: NDArray[np.float64] | None = None


def local_quarters(fleet: FleetView, now_ms: int) -> NDArray[np.int16]:
    """The quarter of the local week, 0 on Monday at 00:00, for each of the fleet's timezones; -1 where not known."""
    quarters = np.full(len(fleet.timezones), -1, dtype=np.int16)
    for place, timezone in enumerate(fleet.timezones):
        offset_ms = fleet.utc_offsets_ms.get(timezone)
        if offset_ms is not None:
            quarters[place] = ((now_ms + offset_ms) // _QUARTER_MS + _MONDAY_QUARTER) % WEEK_QUARTERS
    return quarters


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the columns are compared with, for cars that work (`stop`) and others (`start`) alike; shape [vehicles]."""

    clock_ms: NDArray[np.float64]
    charge_percent: NDArray[np.float64]
    battery_c: NDArray[np.float64]
    compute_c: NDArray[np.float64]
    cabin_c: NDArray[np.float64]
    link_mbps: NDArray[np.float64]
    stay: NDArray[np.float64]
    departure_ms: NDArray[np.float64]
    promised_percent: NDArray[np.float64]
    expected_percent: NDArray[np.float64]

    @classmethod
    def of(cls, column: Column, limits: EligibilityLimits, now_ms: int) -> "Thresholds":
        """Thresholds of the cars whose columns these are.

        `promised_percent` is the charge promised for the next departure, NaN where none is; `expected_percent` what
        the car will have by then if it works: its charge and what the battery gains until then (`battery_power_w`),
        less what computing draws. Without a time of departure it may leave at any moment.
        """
        works = column("was_eligible")
        floor, least_mbps = column("charge_floor_percent"), column("least_mbps")
        own = column("departure_charge_percent")
        promised = np.where(np.isnan(own), column("promised_charge_percent"), own)
        hours = np.maximum(np.nan_to_num(column("departure_ms")) - now_ms, 0) / _HOUR_MS
        capacity_kwh = column("battery_capacity_kwh")
        draw_w = np.fmax(column("compute_power_w"), limits.assumed_compute_w)
        with np.errstate(divide="ignore", invalid="ignore"):
            per_hour = (column("battery_power_w") - draw_w) / (10 * np.where(capacity_kwh > 0, capacity_kwh, np.nan))
            gain = np.where(hours > 0, per_hour * hours, 0.0)
        return cls(
            clock_ms=np.where(works, limits.clock_stop_ms, limits.clock_start_ms),
            charge_percent=np.where(works, floor, np.minimum(floor + limits.charge_margin_percent, 100.0)),
            battery_c=np.where(works, limits.battery_stop_c, limits.battery_start_c),
            compute_c=np.where(works, limits.compute_stop_c, limits.compute_start_c),
            cabin_c=np.where(works, limits.cabin_stop_c, limits.cabin_start_c),
            link_mbps=np.where(works, least_mbps, least_mbps * limits.link_margin),
            stay=np.where(works, limits.stay_stop, limits.stay_start),
            departure_ms=np.where(works, limits.departure_stop_ms, limits.departure_start_ms),
            promised_percent=np.where(works, promised, np.minimum(promised + limits.departure_margin_percent, 100.0)),
            expected_percent=np.minimum(column("charge_percent") + gain, 100.0),
        )


def first_reasons(fleet: FleetView, limits: EligibilityLimits, given: Circumstances) -> NDArray[np.int8]:
    """For every vehicle the first `Reason` that keeps it from work; shape [vehicles], int8."""
    reasons = np.zeros(len(fleet), dtype=np.int8)
    for start in range(0, len(fleet), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(fleet)))
        for reason, holds in reversed(_checks(fleet, rows, limits, given)):
            np.copyto(reasons[rows], np.int8(reason), where=holds)
    return reasons


def reasons_of(fleet: FleetView, row: int, limits: EligibilityLimits, given: Circumstances) -> list[Reason]:
    """Every reason that keeps one vehicle from work, in order."""
    return [reason for reason, holds in _checks(fleet, slice(row, row + 1), limits, given) if holds[0]]


def job_reasons(
    fleet: FleetView, terms: JobTerms, *, share_reached: Mask | None = None, failed_here: Mask | None = None
) -> NDArray[np.int8]:
    """For every vehicle the first `Reason` why it gets no work of a job with these terms; shape [vehicles], int8.

    `share_reached` marks vehicles that had as many of its rows as one may see, `failed_here` those on which all rows
    that are free have failed.
    """
    reasons = np.zeros(len(fleet), dtype=np.int8)
    if failed_here is not None:
        np.copyto(reasons, np.int8(Reason.FAILED_HERE), where=failed_here)
    if share_reached is not None:
        np.copyto(reasons, np.int8(Reason.JOB_SHARE_REACHED), where=share_reached)
    if terms.price_ceiling_micro_per_kwh is not None:
        within = fleet.live("energy_micro_per_kwh") <= terms.price_ceiling_micro_per_kwh
        np.copyto(reasons, np.int8(Reason.JOB_PRICE_CEILING), where=~within)
    agreed = (fleet.live("purposes") & np.uint64(fleet.purpose_mask(terms.purpose))) != 0
    np.copyto(reasons, np.int8(Reason.PURPOSE_NOT_AGREED), where=~agreed)
    return reasons


def _checks(
    fleet: FleetView, rows: slice, limits: EligibilityLimits, given: Circumstances
) -> tuple[tuple[Reason, Mask], ...]:
    """Which reasons hold for these rows, in order."""

    def column(name: str) -> NDArray[Any]:
        return fleet.column[name][rows]

    now_ms = given.now_ms
    than = Thresholds.of(column, limits, now_ms)
    revoked, charge = column("revoked"), column("charge_percent")
    ceiling, budget, cap = column("price_ceiling_micro_per_kwh"), column("link_budget_bytes"), column("power_cap_w")
    # Negated comparisons, so that NaN (not known) counts against the car.
    return (
        (Reason.OFFLINE, ~column("online") | column("silent")),
        (Reason.CAPS_UNKNOWN, column("slots") <= 0),
        (Reason.TELEMETRY_MISSING, column("snapshot_epoch") != column("epoch")),
        (Reason.TELEMETRY_STALE, column("received_ms") < now_ms - limits.stale_ms),
        (Reason.CLOCK_WRONG, ~(np.abs(column("clock_skew_ms")) <= than.clock_ms)),
        (Reason.CONSENT_MISSING, _consent_missing(column)),
        (Reason.CONSENT_REVOKED, revoked),
        (Reason.OWNER_OPTED_OUT, column("opted_in") != 1),
        (Reason.NOT_PARKED, column("moving") != 0),
        (Reason.NOT_PLUGGED_IN, column("plugged") != 1),
        (Reason.UPDATE_PENDING, column("update_pending") != 0),
        (Reason.CAMP_MODE, column("camp_mode") != 0),
        (Reason.SENTRY_MODE, column("sentry_mode") != 0),
        (Reason.OUTSIDE_HOURS, _outside_hours(fleet.quarters[rows], given.local_quarters[column("timezone")])),
        (Reason.CHARGE_TOO_LOW, ~(charge >= than.charge_percent)),
        (Reason.DEPARTURE_GUARD, _guarded(column, than)),
        (Reason.BATTERY_TOO_HOT, ~(column("battery_temperature_c") < than.battery_c)),
        (Reason.COMPUTE_TOO_HOT, ~(column("compute_temperature_c") < than.compute_c)),
        (Reason.CABIN_TOO_HOT, ~(column("cabin_temperature_c") < than.cabin_c)),
        (Reason.LINK_METERED, (column("link_metered") != 0) & ~column("metered_allowed")),
        (Reason.LINK_WEAK, (than.link_mbps > 0) & ~(column("link_rate_mbps") >= than.link_mbps)),
        (Reason.LINK_BUDGET_SPENT, ~np.isnan(budget) & ~(column("link_month_bytes") < budget)),
        # What nobody knows the price of can't be refunded, so a car without a ceiling does not work for it either.
        (Reason.PRICE_TOO_HIGH, ~(column("energy_micro_per_kwh") <= np.fmin(ceiling, np.inf))),
        (Reason.NOT_CHARGING, column("charge_coincident_only") & (column("charging") != 1)),
        (Reason.LEAVES_SOON, _leaves_soon(column, than, given, rows)),
        (Reason.PAY_TOO_LOW, column("least_pay_micro_per_h") > given.pay_micro_per_h),
        (Reason.POWER_OVER_CAP, ~np.isnan(cap) & ~(column("compute_power_w") <= cap)),
        (Reason.QUARANTINED, column("quarantined_until_ms") > now_ms),
        (Reason.DRAINING, column("draining")),
        (Reason.CAR_REFUSES, fleet.unwilling[rows]),
    )


def _consent_missing(column: Column) -> Mask:
    """No record at all, or the car does not hold the version that tasks would rely on."""
    version = column("policy_version")
    missing: Mask = (version == 0) | ((column("consent_version") != version) & ~column("revoked"))
    return missing


def _outside_hours(quarters: NDArray[np.uint8], now: NDArray[np.int16]) -> Mask:
    """Whether the bit of each car's quarter of the week is not set; where the quarter is unknown, it is not."""
    packed = quarters[np.arange(len(now)), now >> 3]
    allowed: Mask = ((packed >> (7 - (now & 7)).astype(np.uint8)) & 1).astype(np.bool_)
    return ~allowed | (now < 0)


def _guarded(column: Column, than: Thresholds) -> Mask:
    """Whether work would lower the charge promised for the next departure.

    It would not where the car has what was promised and its battery is not losing (the mains carries the work), or
    where it will have that at the departure although it works.
    """
    promised = than.promised_percent
    keeps = (column("charge_percent") >= promised) & (column("battery_power_w") >= 0)
    guarded: Mask = ~np.isnan(promised) & ~keeps & ~(than.expected_percent >= promised)
    return guarded


def _leaves_soon(column: Column, than: Thresholds, given: Circumstances, rows: slice) -> Mask:
    """By the owner's own word, where the departure is still to come, or by experience."""
    left_ms = column("departure_ms") - given.now_ms
    soon: Mask = (left_ms >= 0) & (left_ms < than.departure_ms)
    if given.stay_probability is not None:
        soon |= ~(given.stay_probability[rows] >= than.stay)
    return soon
