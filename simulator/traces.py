"""What a simulated car's signals are at any moment: pure functions of its trace. Knows no clock and no randomness.

Times are milliseconds of the trace's own calendar: local time, counted as if it were UTC.
"""

import math
from bisect import bisect_right
from itertools import pairwise

from msgspec import Struct

from fleet_wire.signals import Signals

__all__ = ["CarTrace", "PlugIn", "charge_percent_at", "parked", "plug_in_at", "signals_at"]

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
# A car drives this long after it was unplugged and before it is plugged in again, and stands somewhere in between.
_DRIVE_MS = 30 * MINUTE_MS
_GARAGE_C = 8.0
_CABIN_DRIVING_C = 20.0
_BATTERY_RISE_C = 12.0
_BATTERY_TIME_MS = HOUR_MS
_AWAKE_W = 260.0
_DRIVING_W = -9_000.0
_GARAGE_MBPS = 50.0
_CELLULAR_MBPS = 10.0


class PlugIn(Struct, frozen=True):
    """The cable is in from `start_ms` to `stop_ms` (excluded), and the charge was `charge_percent` at the start."""

    start_ms: int
    stop_ms: int
    charge_percent: float


class CarTrace(Struct, frozen=True):
    """A car's plug-ins in order, without overlap, its battery, and the power it charges with.

    `departure_known` says whether the owner told the car when the next departure is.
    """

    plug_ins: tuple[PlugIn, ...]
    battery_kwh: float
    charging_kw: float
    opted_in: bool = True
    departure_known: bool = False

    def __post_init__(self) -> None:
        if not (self.battery_kwh > 0 and self.charging_kw > 0):
            raise ValueError("a car needs a battery and charging power above zero")
        if any(after.start_ms < before.stop_ms for before, after in pairwise(self.plug_ins)):
            raise ValueError("plug-ins must be in order and may not overlap")


def parked(now_ms: int) -> CarTrace:
    """Trace of a car that is plugged in and stays for the next ten years."""
    years_ms = 10 * 365 * 24 * HOUR_MS
    return CarTrace((PlugIn(now_ms - HOUR_MS, now_ms + years_ms, 80.0),), battery_kwh=60.0, charging_kw=11.0)


def plug_in_at(trace: CarTrace, now_ms: int) -> PlugIn | None:
    """The plug-in that holds at this moment."""
    before = _last_begun(trace, now_ms)
    return before if before is not None and now_ms < before.stop_ms else None


def charge_percent_at(trace: CarTrace, now_ms: int) -> float:
    """State of charge, 0 to 100: rises at charging power until full, and changes evenly between plug-ins."""
    before = _last_begun(trace, now_ms)
    after = _next_to_begin(trace, now_ms)
    if before is None:
        return after.charge_percent if after is not None else 50.0
    if now_ms < before.stop_ms:
        return _charged(trace, before, now_ms)
    left = _charged(trace, before, before.stop_ms)
    if after is None:
        return left
    share = (now_ms - before.stop_ms) / (after.start_ms - before.stop_ms)
    return left + share * (after.charge_percent - left)


def signals_at(trace: CarTrace, now_ms: int) -> Signals:
    """All signals of the vehicle itself; those of its computer are for whoever runs it to add."""
    plug_in = plug_in_at(trace, now_ms)
    moving = _is_moving(trace, now_ms)
    charge = charge_percent_at(trace, now_ms)
    charging = plug_in is not None and charge < 100.0
    signals = Signals(
        moving=moving,
        plugged=plug_in is not None,
        charging=charging,
        charge_percent=charge,
        battery_temperature_c=_GARAGE_C + _battery_rise_c(trace, now_ms),
        battery_power_w=_battery_power_w(trace, plugged=plug_in is not None, charging=charging, moving=moving),
        battery_capacity_kwh=trace.battery_kwh,
        cabin_temperature_c=_CABIN_DRIVING_C if moving else _GARAGE_C,
        link_metered=plug_in is None,
        link_rate_mbps=_CELLULAR_MBPS if plug_in is None else _GARAGE_MBPS,
        awake_power_w=_AWAKE_W,
        opted_in=trace.opted_in,
        update_pending=False,
        camp_mode=False,
        sentry_mode=False,
    )
    if plug_in is not None and trace.departure_known:
        signals.departure_ms = plug_in.stop_ms
    return signals


def _last_begun(trace: CarTrace, now_ms: int) -> PlugIn | None:
    index = bisect_right(trace.plug_ins, now_ms, key=lambda plug_in: plug_in.start_ms)
    return trace.plug_ins[index - 1] if index else None


def _next_to_begin(trace: CarTrace, now_ms: int) -> PlugIn | None:
    index = bisect_right(trace.plug_ins, now_ms, key=lambda plug_in: plug_in.start_ms)
    return trace.plug_ins[index] if index < len(trace.plug_ins) else None


def _charged(trace: CarTrace, plug_in: PlugIn, now_ms: int) -> float:
    hours = (now_ms - plug_in.start_ms) / HOUR_MS
    return min(100.0, plug_in.charge_percent + 100.0 * hours * trace.charging_kw / trace.battery_kwh)


def _is_moving(trace: CarTrace, now_ms: int) -> bool:
    if plug_in_at(trace, now_ms) is not None:
        return False
    before, after = _last_begun(trace, now_ms), _next_to_begin(trace, now_ms)
    leaving = before is not None and now_ms < before.stop_ms + _DRIVE_MS
    coming = after is not None and now_ms >= after.start_ms - _DRIVE_MS
    return leaving or coming


def _battery_power_w(trace: CarTrace, *, plugged: bool, charging: bool, moving: bool) -> float:
    if charging:
        return trace.charging_kw * 1000
    if moving:
        return _DRIVING_W
    return 0.0 if plugged else -_AWAKE_W  # the mains carries a full car's electronics


def _battery_rise_c(trace: CarTrace, now_ms: int) -> float:
    """Degrees above the garage: nears a constant while charging and falls back afterwards, with one time constant."""
    last = _last_begun(trace, now_ms)
    if last is None:
        return 0.0
    full_ms = (100.0 - last.charge_percent) / 100.0 * trace.battery_kwh / trace.charging_kw * HOUR_MS
    warm_until = min(now_ms, last.stop_ms, last.start_ms + full_ms)
    warmed = _BATTERY_RISE_C * -math.expm1(-(warm_until - last.start_ms) / _BATTERY_TIME_MS)
    return warmed * math.exp(-(now_ms - warm_until) / _BATTERY_TIME_MS)
