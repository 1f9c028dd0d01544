"""The vehicle signals of telemetry: VSS paths, units, ranges and dead bands, in one table. Never reads a vehicle.

Names follow the COVESA Vehicle Signal Specification of `VSS_VERSION`; what VSS does not have stands under the overlay
branch `Vehicle.Idlewheel`.
"""

import math
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = ["DEAD_BANDS", "SIGNAL_PATHS", "VSS_VERSION", "Signals", "changed_signals", "check_numbers"]

VSS_VERSION = "6.0"

SIGNAL_PATHS: dict[str, str] = {
    "moving": "Vehicle.IsMoving",
    "plugged": "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected",
    "charging": "Vehicle.Powertrain.TractionBattery.Charging.IsCharging",
    "charge_percent": "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current",
    "battery_temperature_c": "Vehicle.Powertrain.TractionBattery.Temperature.Average",
    "battery_power_w": "Vehicle.Powertrain.TractionBattery.CurrentPower",
    "battery_capacity_kwh": "Vehicle.Powertrain.TractionBattery.NetCapacity",
    "cabin_temperature_c": "Vehicle.Cabin.HVAC.AmbientAirTemperature",
    "link_metered": "Vehicle.Idlewheel.Link.IsMetered",
    "link_rate_mbps": "Vehicle.Idlewheel.Link.Throughput",
    "link_month_bytes": "Vehicle.Idlewheel.Link.MonthBytes",
    "compute_temperature_c": "Vehicle.Idlewheel.Compute.Temperature",
    "compute_power_w": "Vehicle.Idlewheel.Compute.Power",
    "awake_power_w": "Vehicle.Idlewheel.Compute.AwakePower",
    "free_slots": "Vehicle.Idlewheel.Compute.FreeSlots",
    "opted_in": "Vehicle.Idlewheel.Owner.IsOptedIn",
    "update_pending": "Vehicle.Idlewheel.Blocker.IsUpdatePending",
    "camp_mode": "Vehicle.Idlewheel.Blocker.IsCampMode",
    "sentry_mode": "Vehicle.Idlewheel.Blocker.IsSentryMode",
    "departure_ms": "Vehicle.Idlewheel.Owner.NextDeparture",
    "departure_charge_percent": "Vehicle.Idlewheel.Owner.DepartureCharge",
    "refusal": "Vehicle.Idlewheel.Agent.Refusal",
}

# These numbers are sent again only when they have moved by this much; everything else, when it differs at all.
DEAD_BANDS: dict[str, float] = {
    "charge_percent": 0.5,
    "battery_temperature_c": 1.0,
    "battery_power_w": 100.0,
    "battery_capacity_kwh": 0.5,
    "cabin_temperature_c": 1.0,
    "link_rate_mbps": 1.0,
    "link_month_bytes": 1e6,  # telemetry itself moves bytes: without this, each document would cause the next
    "compute_temperature_c": 2.0,
    "compute_power_w": 5.0,
    "awake_power_w": 5.0,
    "departure_charge_percent": 1.0,
}

Percent = Annotated[float, Meta(ge=0, le=100)]
Celsius = Annotated[float, Meta(ge=-100, le=250)]
Watt = Annotated[float, Meta(ge=-1e6, le=1e6)]
UnixMs = Annotated[int, Meta(ge=0, le=1 << 53)]


class Signals(Struct, rename=SIGNAL_PATHS, omit_defaults=True, forbid_unknown_fields=False):
    """One reading: every signal that is known, or that changed. On the wire each field goes by its VSS path."""

    moving: bool | UnsetType = UNSET
    plugged: bool | UnsetType = UNSET
    charging: bool | UnsetType = UNSET
    charge_percent: Percent | UnsetType = UNSET
    battery_temperature_c: Celsius | UnsetType = UNSET
    battery_power_w: Watt | UnsetType = UNSET
    battery_capacity_kwh: Annotated[float, Meta(ge=0, le=1e4)] | UnsetType = UNSET
    cabin_temperature_c: Celsius | UnsetType = UNSET
    link_metered: bool | UnsetType = UNSET
    link_rate_mbps: Annotated[float, Meta(ge=0, le=1e6)] | UnsetType = UNSET
    link_month_bytes: Annotated[int, Meta(ge=0, le=1 << 53)] | UnsetType = UNSET
    compute_temperature_c: Celsius | UnsetType = UNSET
    compute_power_w: Annotated[float, Meta(ge=0, le=1e5)] | UnsetType = UNSET
    awake_power_w: Annotated[float, Meta(ge=0, le=1e5)] | UnsetType = UNSET
    free_slots: Annotated[int, Meta(ge=0, le=65535)] | UnsetType = UNSET
    opted_in: bool | UnsetType = UNSET
    update_pending: bool | UnsetType = UNSET
    camp_mode: bool | UnsetType = UNSET
    sentry_mode: bool | UnsetType = UNSET
    departure_ms: UnixMs | UnsetType = UNSET
    departure_charge_percent: Percent | UnsetType = UNSET
    refusal: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


def check_numbers(signals: Signals) -> None:
    """Raise ValueError for NaN or an infinity in signals that were made here; the decoder's ranges refuse them already.

    Apart from the making of signals, because a check there would run again for every document that is decoded.
    """
    for name in DEAD_BANDS:  # all the numbers with a fraction are among them
        value = getattr(signals, name)
        if value is not UNSET and not math.isfinite(value):
            raise ValueError(f"{SIGNAL_PATHS[name]} is {value}")


def changed_signals(last: Signals, now: Signals) -> Signals:
    """Return what of `now` must be sent after `last` was: the delta, which may be empty.

    A number counts as changed when it moved by its dead band since it was last *sent*, so that slow drift is not lost.
    """
    delta = Signals()
    for name in SIGNAL_PATHS:
        before, after = getattr(last, name), getattr(now, name)
        if after is not UNSET and _differs(before, after, DEAD_BANDS.get(name)):
            setattr(delta, name, after)
    return delta


def _differs(before: Any, after: Any, dead_band: float | None) -> bool:
    if before is UNSET or dead_band is None:
        return bool(before != after)
    return bool(abs(after - before) >= dead_band)
