"""A car never computes while one of its owner's rules, or its maker's, objects; not known objects too."""

from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from fleet_wire.messages import BlobRef, Lease, Task
from fleet_wire.policy import QUARTER_MINUTES, OwnerPolicy, allowed_quarters
from fleet_wire.signals import Signals
from fleet_wire.tensors import encode_tensors
from tests.property.owner_policies import owner_policies
from vehicle_agent.events import (
    Connected,
    FetchModel,
    Judged,
    LoadModel,
    ModelArrived,
    ModelLoaded,
    PolicyChanged,
    TaskOffered,
)
from vehicle_agent.policy import CarLimits, judge
from vehicle_agent.session import Session

LIMITS = CarLimits()
NOW_MS = 1_795_435_200_000  # a Monday, 12:00 UTC
GOOD = Signals(
    moving=False,
    plugged=True,
    charging=True,
    charge_percent=100.0,
    battery_temperature_c=20.0,
    battery_power_w=0.0,
    battery_capacity_kwh=60.0,
    cabin_temperature_c=20.0,
    link_metered=False,
    link_rate_mbps=1e6,
    link_month_bytes=0,
    compute_temperature_c=40.0,
    compute_power_w=0.0,
    opted_in=True,
    update_pending=False,
    camp_mode=False,
    sentry_mode=False,
    departure_ms=NOW_MS + 8 * 3_600_000,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("moving", "plugged", "charging", "link_metered", "opted_in"), st.booleans()),
    **dict.fromkeys(("update_pending", "camp_mode", "sentry_mode"), st.booleans()),
    **dict.fromkeys(("charge_percent", "departure_charge_percent"), st.floats(0, 100)),
    **dict.fromkeys(("battery_temperature_c", "cabin_temperature_c", "compute_temperature_c"), st.floats(-40, 120)),
    "battery_power_w": st.floats(-1000, 20_000),
    "battery_capacity_kwh": st.floats(0, 100),
    "link_rate_mbps": st.floats(0, 1e6),
    "link_month_bytes": st.integers(0, 2**53),
    "compute_power_w": st.floats(0, 1000),
    "departure_ms": st.integers(NOW_MS - 10**7, NOW_MS + 10**8),
}
# Mostly good, so that there are cars that may work.
readings = st.lists(
    st.sampled_from(list(VALUES)).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(VALUES[name], st.just(UNSET)))
    ),
    max_size=3,
).map(lambda changes: msgspec.structs.replace(GOOD, **dict(changes)))
offsets_ms = st.integers(-12 * 4, 14 * 4).map(lambda quarters: quarters * QUARTER_MINUTES * 60_000)
# What a car need not know: without these a rule is milder, or does not exist.
MAY_BE_UNKNOWN = {"departure_ms", "departure_charge_percent", "compute_power_w"}


def allows(signals: Signals, policy: OwnerPolicy | None, offset_ms: int) -> bool:
    """What must be true while a car works, said plainly."""
    if policy is None or policy.revoked:
        return False
    switches = {"opted_in": True, "moving": False, "plugged": True}
    switches |= {"update_pending": False, "camp_mode": False, "sentry_mode": False}
    switches |= {} if policy.link.metered_allowed else {"link_metered": False}
    switches |= {"charging": True} if policy.charge_coincident_only else {}
    most = {"battery_temperature_c": 45.0, "cabin_temperature_c": 50.0, "compute_temperature_c": 85.0}
    least = {"charge_percent": policy.charge_floor_percent}
    least |= {"link_rate_mbps": policy.link.least_mbps} if policy.link.least_mbps else {}
    minutes = (NOW_MS + offset_ms) // 60_000 + 3 * 24 * 60  # 1970 began on a Thursday
    bytes_left = policy.link.month_bytes is None or (
        signals.link_month_bytes is not UNSET and signals.link_month_bytes < policy.link.month_bytes
    )
    under_cap = policy.power_cap_w is None or (
        signals.compute_power_w is not UNSET and signals.compute_power_w <= policy.power_cap_w
    )
    return (
        all(getattr(signals, name) is value for name, value in switches.items())
        and all(_number(signals, name) < value for name, value in most.items())
        and all(_number(signals, name) >= value for name, value in least.items())
        and allowed_quarters(policy)[minutes % (7 * 24 * 60) // QUARTER_MINUTES] == 1
        and bytes_left
        and under_cap
        and _promise_is_safe(signals, policy)
    )


def _number(signals: Signals, name: str) -> float:
    value = getattr(signals, name)
    return float("nan") if value is UNSET else value


def _promise_is_safe(signals: Signals, policy: OwnerPolicy) -> bool:
    """The car has what is promised and does not lose it, or it will have it although computing draws its power."""
    promised = policy.departure_charge_percent
    if signals.departure_charge_percent is not UNSET:
        promised = signals.departure_charge_percent
    charge, battery_w = _number(signals, "charge_percent"), _number(signals, "battery_power_w")
    if promised is None or (charge >= promised and battery_w >= 0):
        return True
    left_ms = 0 if signals.departure_ms is UNSET else signals.departure_ms - NOW_MS
    if left_ms <= 0:
        return charge >= promised
    draw_w = max(100.0, 0.0 if signals.compute_power_w is UNSET else signals.compute_power_w)
    capacity_wh = _number(signals, "battery_capacity_kwh") * 1000
    return (
        capacity_wh > 0 and charge + 100 * ((battery_w - draw_w) * left_ms / 3_600_000 / capacity_wh) >= promised - 1e-9
    )


@given(readings, st.none() | owner_policies, offsets_ms, st.booleans())
def test_a_car_that_may_work_breaks_no_rule(
    signals: Signals, policy: OwnerPolicy | None, offset_ms: int, willing: bool
) -> None:
    verdict = judge(signals, policy, LIMITS, now_ms=NOW_MS, utc_offset_ms=offset_ms, willing=willing)
    if verdict is None:
        assert allows(signals, policy, offset_ms)
    elif willing:  # the plain rules are those of a car that works
        assert not allows(signals, policy, offset_ms) or verdict.reason == "departure_guard"


@given(readings, owner_policies, offsets_ms)
def test_whoever_may_begin_may_go_on(signals: Signals, policy: OwnerPolicy, offset_ms: int) -> None:
    begins, goes_on = (
        judge(signals, policy, LIMITS, now_ms=NOW_MS, utc_offset_ms=offset_ms, willing=willing) is None
        for willing in (False, True)
    )
    assert goes_on or not begins


@given(readings, owner_policies, st.sampled_from(sorted(VALUES.keys() - MAY_BE_UNKNOWN)), st.booleans())
def test_to_know_less_never_lets_a_car_work(signals: Signals, policy: OwnerPolicy, name: str, willing: bool) -> None:
    told, untold = (
        judge(reading, policy, LIMITS, now_ms=NOW_MS, utc_offset_ms=0, willing=willing)
        for reading in (signals, msgspec.structs.replace(signals, **{name: UNSET}))
    )
    assert told is None or untold is not None


steps = st.one_of(readings, st.none() | owner_policies.filter(lambda policy: bool(policy.purposes)))


@given(st.lists(steps, min_size=1, max_size=12))
def test_nothing_is_computed_while_a_rule_objects(changes: list[Signals | OwnerPolicy | None]) -> None:
    session = Session()
    session.handle(Connected(1, 10_000), NOW_MS)
    signals: Signals = GOOD
    policy: OwnerPolicy | None = None
    model = BlobRef("a" * 64, 1000, "/v1/blobs/a")
    inputs = encode_tensors({"x": np.zeros(3)})
    for chunk, change in enumerate(changes):
        if isinstance(change, Signals):
            signals = change
        else:
            policy = change
            session.handle(PolicyChanged(policy), NOW_MS)
        willing = session.reason is None
        verdict = judge(signals, policy, LIMITS, now_ms=NOW_MS, utc_offset_ms=0, willing=willing)
        reason = None if verdict is None else verdict.reason
        session.handle(Judged(reason, 25.0, 0.0), NOW_MS)
        version, purpose = (policy.version, policy.purposes[0]) if policy is not None else (0, "")
        offered = Task(
            job=f"j{chunk}",
            epoch=1,
            model=model,
            deadline_ms=NOW_MS + 10**9,
            consent_version=version,
            leases=[Lease(chunk, 0, 3)],
            purpose=purpose,
            pay_micro_per_h=2**53,
            inputs=inputs,
        )
        commands = session.handle(TaskOffered(offered), NOW_MS)
        while commands:
            match commands.pop(0):
                case FetchModel():
                    commands += session.handle(ModelArrived(model.digest), NOW_MS)
                case LoadModel():
                    commands += session.handle(ModelLoaded(model.digest, None), NOW_MS)
        assert session.working is (reason is None)
        assert not session.working or allows(signals, policy, 0)
