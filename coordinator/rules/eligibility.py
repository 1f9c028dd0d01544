"""Who may work now, and for everybody else the first reason why not. Pure functions over the fleet's columns.

Fails closed: what is not known counts against the car. Start and stop thresholds differ, so that nothing flaps.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView

__all__ = ["EXPLANATIONS", "EligibilityLimits", "Reason", "first_reasons"]


class Reason(IntEnum):
    """Why a car gets no work, in the order in which reasons are looked for; `ELIGIBLE` is none."""

    ELIGIBLE = 0
    OFFLINE = 1
    CAPS_UNKNOWN = 2
    TELEMETRY_MISSING = 3
    TELEMETRY_STALE = 4
    OWNER_OPTED_OUT = 5
    MOVING = 6
    NOT_PLUGGED_IN = 7
    CHARGE_TOO_LOW = 8
    BATTERY_TOO_HOT = 9
    COMPUTE_TOO_HOT = 10
    LINK_METERED = 11
    DRAINING = 12
    CAR_REFUSES = 13


EXPLANATIONS: dict[Reason, str] = {
    Reason.ELIGIBLE: "it may work",
    Reason.OFFLINE: "it is not connected",
    Reason.CAPS_UNKNOWN: "it has not said what it can compute",
    Reason.TELEMETRY_MISSING: "it has sent no full telemetry since it connected",
    Reason.TELEMETRY_STALE: "its last telemetry is too old",
    Reason.OWNER_OPTED_OUT: "its owner does not agree",
    Reason.MOVING: "it is moving",
    Reason.NOT_PLUGGED_IN: "it is not plugged in",
    Reason.CHARGE_TOO_LOW: "its charge is below the floor",
    Reason.BATTERY_TOO_HOT: "its battery is too hot",
    Reason.COMPUTE_TOO_HOT: "its computer is too hot",
    Reason.LINK_METERED: "its link is metered",
    Reason.DRAINING: "it was told to take no new work",
    Reason.CAR_REFUSES: "its own policy refuses",
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
        (Reason.MOVING, fleet.live("moving") != 0),
        (Reason.NOT_PLUGGED_IN, fleet.live("plugged") != 1),
        # Negated comparisons, so that NaN (not known) counts against the car.
        (Reason.CHARGE_TOO_LOW, ~(fleet.live("charge_percent") >= floor)),
        (Reason.BATTERY_TOO_HOT, ~(fleet.live("battery_temperature_c") < battery)),
        (Reason.COMPUTE_TOO_HOT, ~(fleet.live("compute_temperature_c") < compute)),
        (Reason.LINK_METERED, fleet.live("link_metered") != 0),
        (Reason.DRAINING, fleet.live("draining")),
        (Reason.CAR_REFUSES, fleet.unwilling[: len(fleet)]),
    )
    reasons = np.zeros(len(fleet), dtype=np.int8)
    for reason, holds in reversed(checks):
        reasons[holds] = reason
    return reasons
