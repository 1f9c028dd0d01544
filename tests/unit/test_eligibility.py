"""Each reason why a car gets no work, on both sides of its threshold."""

import pytest

from coordinator.core import Core
from coordinator.rules.eligibility import EXPLANATIONS, EligibilityLimits, Reason, first_reasons
from fleet_wire.messages import State
from tests.unit.coordinator_scenes import arrival, telemetry

LIMITS = EligibilityLimits()


def reason_of(now_ms: int = 0, *, working: bool = False, **signals: float) -> Reason:
    core = Core()
    for event in arrival("car"):
        core.handle(event, 0)  # type: ignore[arg-type]
    core.handle(telemetry(["car"], seq=2, **signals), 0)
    core.fleet.live("was_eligible")[:] = working
    return Reason(int(first_reasons(core.fleet, LIMITS, now_ms)[0]))


def test_a_car_that_meets_everything_may_work() -> None:
    assert reason_of() is Reason.ELIGIBLE


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ({"opted_in": 0}, Reason.OWNER_OPTED_OUT),
        ({"opted_in": -1}, Reason.ELIGIBLE),  # absent from a delta: the last value stands
        ({"moving": 1}, Reason.NOT_PARKED),
        ({"plugged": 0}, Reason.NOT_PLUGGED_IN),
        ({"charge_percent": 29.9}, Reason.CHARGE_TOO_LOW),
        ({"charge_percent": 30.0}, Reason.ELIGIBLE),
        ({"battery_temperature_c": 40.0}, Reason.BATTERY_TOO_HOT),
        ({"battery_temperature_c": 39.9}, Reason.ELIGIBLE),
        ({"compute_temperature_c": 75.0}, Reason.COMPUTE_TOO_HOT),
        ({"compute_temperature_c": 74.9}, Reason.ELIGIBLE),
        ({"link_metered": 1}, Reason.LINK_METERED),
    ],
)
def test_thresholds_to_start(signals: dict[str, float], reason: Reason) -> None:
    assert reason_of(**signals) is reason


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ({"charge_percent": 25.0}, Reason.ELIGIBLE),
        ({"charge_percent": 24.9}, Reason.CHARGE_TOO_LOW),
        ({"battery_temperature_c": 44.9}, Reason.ELIGIBLE),
        ({"battery_temperature_c": 45.0}, Reason.BATTERY_TOO_HOT),
        ({"compute_temperature_c": 84.9}, Reason.ELIGIBLE),
        ({"compute_temperature_c": 85.0}, Reason.COMPUTE_TOO_HOT),
    ],
)
def test_thresholds_to_stop_are_wider(signals: dict[str, float], reason: Reason) -> None:
    assert reason_of(working=True, **signals) is reason


def test_telemetry_grows_stale() -> None:
    assert reason_of(LIMITS.stale_ms) is Reason.ELIGIBLE
    assert reason_of(LIMITS.stale_ms + 1) is Reason.TELEMETRY_STALE


def test_what_is_not_known_counts_against_the_car() -> None:
    core = Core()
    birth, caps, snapshot = arrival("car")
    expected = [Reason.CAPS_UNKNOWN, Reason.TELEMETRY_MISSING, Reason.ELIGIBLE]
    for event, reason in zip((birth, caps, snapshot), expected, strict=True):
        core.handle(event, 0)  # type: ignore[arg-type]
        assert core.reasons(0).tolist() == [reason]
        core.handle(telemetry([]), 0)
    core.fleet.set_state("car", State(False, 1))
    assert first_reasons(core.fleet, LIMITS, 0).tolist() == [Reason.OFFLINE]


@pytest.mark.parametrize(
    "name", ["charge_percent", "battery_temperature_c", "compute_temperature_c", "moving", "plugged"]
)
def test_a_signal_that_never_came_counts_against_the_car(name: str) -> None:
    core = Core()
    birth, caps, snapshot = arrival("car")
    snapshot.signals[name][:] = -1 if name in ("moving", "plugged") else float("nan")  # type: ignore[attr-defined]
    for event in (birth, caps, snapshot):
        core.handle(event, 0)  # type: ignore[arg-type]
    assert core.reasons(0).tolist() != [Reason.ELIGIBLE]


def test_the_cars_own_refusal_counts() -> None:
    core = Core()
    for event in arrival("car"):
        core.handle(event, 0)  # type: ignore[arg-type]
    batch = telemetry(["car"], seq=2)
    batch.refusal[:] = "sentry_mode"
    core.handle(batch, 0)
    assert core.reasons(0).tolist() == [Reason.CAR_REFUSES]


def test_every_reason_is_explained() -> None:
    assert set(EXPLANATIONS) == set(Reason)
