"""May this car work right now, by its own rules? Pure; the car has the last word, whatever a coordinator thinks.

Fails closed: a signal that the rules need and that is absent counts against working.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from msgspec import UNSET, UnsetType

from fleet_wire.messages import RefusalReason
from fleet_wire.signals import Signals

__all__ = ["IneligibleReason", "Policy", "first_reason", "refusal_reason"]


class IneligibleReason(StrEnum):
    """Why the car does not work, in the order in which reasons are looked for; sent as the `refusal` signal."""

    SIGNAL_MISSING = "signal_missing"
    OWNER_OPTED_OUT = "owner_opted_out"
    MOVING = "moving"
    NOT_PLUGGED_IN = "not_plugged_in"
    CHARGE_TOO_LOW = "charge_too_low"
    BATTERY_TOO_HOT = "battery_too_hot"
    COMPUTE_TOO_HOT = "compute_too_hot"
    LINK_METERED = "link_metered"


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds; a car that is willing stops at the `stop` value and is willing again only at the `start` value."""

    charge_start_percent: float = 30.0
    charge_stop_percent: float = 25.0
    battery_start_c: float = 40.0
    battery_stop_c: float = 45.0
    compute_start_c: float = 75.0
    compute_stop_c: float = 85.0
    metered_allowed: bool = False


_NEEDED = (
    "opted_in",
    "moving",
    "plugged",
    "charge_percent",
    "battery_temperature_c",
    "compute_temperature_c",
    "link_metered",
)
_REFUSALS = {
    IneligibleReason.OWNER_OPTED_OUT: RefusalReason.CONSENT_MISSING,
    IneligibleReason.BATTERY_TOO_HOT: RefusalReason.TOO_HOT,
    IneligibleReason.COMPUTE_TOO_HOT: RefusalReason.TOO_HOT,
}


def first_reason(signals: Signals, policy: Policy, *, willing: bool) -> IneligibleReason | None:
    """Return the first reason not to work, None when there is none; `willing` says what the last answer was."""
    if any(getattr(signals, name) is UNSET for name in _NEEDED):
        return IneligibleReason.SIGNAL_MISSING
    charge = policy.charge_stop_percent if willing else policy.charge_start_percent
    battery = policy.battery_stop_c if willing else policy.battery_start_c
    compute = policy.compute_stop_c if willing else policy.compute_start_c
    checks = (
        (not signals.opted_in, IneligibleReason.OWNER_OPTED_OUT),
        (signals.moving, IneligibleReason.MOVING),
        (not signals.plugged, IneligibleReason.NOT_PLUGGED_IN),
        (not _is_within(signals.charge_percent, charge, math.inf), IneligibleReason.CHARGE_TOO_LOW),
        (not _is_within(signals.battery_temperature_c, -math.inf, battery), IneligibleReason.BATTERY_TOO_HOT),
        (not _is_within(signals.compute_temperature_c, -math.inf, compute), IneligibleReason.COMPUTE_TOO_HOT),
        (signals.link_metered and not policy.metered_allowed, IneligibleReason.LINK_METERED),
    )
    return next((reason for holds, reason in checks if holds), None)


def _is_within(value: float | UnsetType, least: float, below: float) -> bool:
    return isinstance(value, int | float) and least <= value < below


def refusal_reason(reason: IneligibleReason, *, held: bool) -> RefusalReason:
    """How a reason is told to the coordinator: of leases that are held (given back), or of a task just offered."""
    return _REFUSALS.get(reason, RefusalReason.LEAVING if held else RefusalReason.INELIGIBLE)
