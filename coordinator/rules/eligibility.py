"""Who may work now, and for everybody else the first reason why not. Pure functions over the fleet's columns.

Fails closed: what is not known counts against the car. Start and stop thresholds differ, so that nothing flaps.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView
from fleet_wire.api import JobTerms

__all__ = ["EXPLANATIONS", "EligibilityLimits", "Reason", "first_reasons", "job_reasons"]


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
    Reason.CONSENT_MISSING: "its owner has agreed to nothing yet",
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
    Reason.PRICE_TOO_HIGH: "energy costs more than the owner's ceiling",
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
    """Thresholds; a car that works is stopped at the `stop` value and starts again only at the `start` value."""

    stale_ms: int = 300_000
    charge_start_percent: float = 30.0
    charge_stop_percent: float = 25.0
    battery_start_c: float = 40.0
    battery_stop_c: float = 45.0
    compute_start_c: float = 75.0
    compute_stop_c: float = 85.0


def first_reasons(fleet: FleetView, limits: EligibilityLimits, now_ms: int) -> NDArray[np.int8]:
    """For every vehicle the first `Reason` that keeps it from work; shape [vehicles], int8."""
    works = fleet.live("was_eligible")
    floor = np.where(works, limits.charge_stop_percent, limits.charge_start_percent)
    battery = np.where(works, limits.battery_stop_c, limits.battery_start_c)
    compute = np.where(works, limits.compute_stop_c, limits.compute_start_c)
    checks: tuple[tuple[Reason, NDArray[np.bool_]], ...] = (
        (Reason.OFFLINE, ~fleet.live("online")),
        (Reason.CAPS_UNKNOWN, fleet.live("slots") <= 0),
        (Reason.TELEMETRY_MISSING, fleet.live("seq_epoch") != fleet.live("epoch")),
        (Reason.TELEMETRY_STALE, fleet.live("received_ms") < now_ms - limits.stale_ms),
        (Reason.OWNER_OPTED_OUT, fleet.live("opted_in") != 1),
        (Reason.NOT_PARKED, fleet.live("moving") != 0),
        (Reason.NOT_PLUGGED_IN, fleet.live("plugged") != 1),
        # Negated comparisons, so that NaN (not known) counts against the car.
        (Reason.CHARGE_TOO_LOW, ~(fleet.live("charge_percent") >= floor)),
        (Reason.BATTERY_TOO_HOT, ~(fleet.live("battery_temperature_c") < battery)),
        (Reason.COMPUTE_TOO_HOT, ~(fleet.live("compute_temperature_c") < compute)),
        (Reason.LINK_METERED, fleet.live("link_metered") != 0),
        (Reason.QUARANTINED, fleet.live("quarantined_until_ms") > now_ms),
        (Reason.DRAINING, fleet.live("draining")),
        (Reason.CAR_REFUSES, fleet.unwilling[: len(fleet)]),
    )
    reasons = np.zeros(len(fleet), dtype=np.int8)
    for reason, holds in reversed(checks):
        reasons[holds] = reason
    return reasons


def job_reasons(
    fleet: FleetView,
    terms: JobTerms,
    *,
    share_reached: NDArray[np.bool_] | None = None,
    failed_here: NDArray[np.bool_] | None = None,
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
    return reasons
