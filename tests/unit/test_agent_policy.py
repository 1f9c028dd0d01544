"""The car's own rules: every reason, their order, hysteresis, and closed when a signal is missing."""

import msgspec
import pytest
from msgspec import UNSET

from fleet_wire.messages import RefusalReason
from fleet_wire.signals import Signals
from vehicle_agent.policy import IneligibleReason, Policy, first_reason, refusal_reason

GOOD = Signals(
    moving=False,
    plugged=True,
    charge_percent=50.0,
    battery_temperature_c=20.0,
    compute_temperature_c=40.0,
    link_metered=False,
    opted_in=True,
)
BAD = {
    "opted_in": (False, IneligibleReason.OWNER_OPTED_OUT),
    "moving": (True, IneligibleReason.MOVING),
    "plugged": (False, IneligibleReason.NOT_PLUGGED_IN),
    "charge_percent": (10.0, IneligibleReason.CHARGE_TOO_LOW),
    "battery_temperature_c": (60.0, IneligibleReason.BATTERY_TOO_HOT),
    "compute_temperature_c": (95.0, IneligibleReason.COMPUTE_TOO_HOT),
    "link_metered": (True, IneligibleReason.LINK_METERED),
}


def test_a_parked_plugged_cool_and_willing_car_may_work() -> None:
    assert first_reason(GOOD, Policy(), willing=False) is None


@pytest.mark.parametrize("name", BAD)
def test_each_signal_alone_can_forbid_it(name: str) -> None:
    value, reason = BAD[name]
    assert first_reason(msgspec.structs.replace(GOOD, **{name: value}), Policy(), willing=True) is reason


@pytest.mark.parametrize("name", BAD)
def test_a_missing_signal_forbids_it(name: str) -> None:
    signals = msgspec.structs.replace(GOOD, **{name: UNSET})
    assert first_reason(signals, Policy(), willing=True) is IneligibleReason.SIGNAL_MISSING


def test_the_first_of_several_reasons_is_told_in_the_declared_order() -> None:
    left = dict(BAD)
    told = []
    while left:
        signals = msgspec.structs.replace(GOOD, **{name: value for name, (value, _) in left.items()})
        reason = first_reason(signals, Policy(), willing=True)
        told.append(reason)
        left = {name: bad for name, bad in left.items() if bad[1] is not reason}
    assert told == [reason for reason in IneligibleReason if reason is not IneligibleReason.SIGNAL_MISSING]


@pytest.mark.parametrize(
    ("name", "between"),
    [("charge_percent", 27.0), ("battery_temperature_c", 42.0), ("compute_temperature_c", 80.0)],
)
def test_between_the_thresholds_it_stays_as_it_was(name: str, between: float) -> None:
    signals = msgspec.structs.replace(GOOD, **{name: between})
    assert first_reason(signals, Policy(), willing=True) is None
    assert first_reason(signals, Policy(), willing=False) is BAD[name][1]


def test_thresholds_stop_where_they_say() -> None:
    policy = Policy()
    at_stop = msgspec.structs.replace(GOOD, charge_percent=policy.charge_stop_percent)
    hot = msgspec.structs.replace(GOOD, battery_temperature_c=policy.battery_stop_c)
    assert first_reason(at_stop, policy, willing=True) is None
    assert first_reason(hot, policy, willing=True) is IneligibleReason.BATTERY_TOO_HOT


def test_a_metered_link_may_be_allowed() -> None:
    signals = msgspec.structs.replace(GOOD, link_metered=True)
    assert first_reason(signals, Policy(metered_allowed=True), willing=False) is None


def test_what_the_coordinator_is_told() -> None:
    assert refusal_reason(IneligibleReason.MOVING, held=True) is RefusalReason.LEAVING
    assert refusal_reason(IneligibleReason.MOVING, held=False) is RefusalReason.INELIGIBLE
    assert refusal_reason(IneligibleReason.COMPUTE_TOO_HOT, held=True) is RefusalReason.TOO_HOT
    assert refusal_reason(IneligibleReason.OWNER_OPTED_OUT, held=False) is RefusalReason.CONSENT_MISSING
