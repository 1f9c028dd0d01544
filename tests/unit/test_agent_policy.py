"""The car's own rules: each reason on both sides of its threshold, their order, and closed to what is not known."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from fleet_wire.messages import BlobRef, Lease, RefusalReason, Task
from fleet_wire.policy import Hours, LinkRules, OwnerPolicy
from fleet_wire.signals import Signals
from vehicle_agent.policy import (
    CarLimits,
    IneligibleReason,
    Level,
    Verdict,
    judge,
    refusal_reason,
    task_objection,
)

# What coordinator and car must decide alike. A signal that is null there was never told.
SHARED = json.loads((Path(__file__).parents[1] / "owner_rules.json").read_text(encoding="utf-8"))
BASE = SHARED["base"]
GOOD = Signals(**BASE["signals"])
AGREED = msgspec.convert(BASE["policy"], OwnerPolicy)
# All rules object; each change takes the first of them away, in the order of the reasons.
BAD_SIGNALS = Signals(
    moving=True,
    plugged=False,
    charging=False,
    charge_percent=5.0,
    battery_temperature_c=90.0,
    battery_power_w=-260.0,
    cabin_temperature_c=90.0,
    link_metered=True,
    link_rate_mbps=0.1,
    link_month_bytes=10**9,
    compute_temperature_c=99.0,
    compute_power_w=200.0,
    opted_in=False,
    update_pending=True,
    camp_mode=True,
    sentry_mode=True,
)
BAD_POLICY = OwnerPolicy(
    version=1,
    owner="ada",
    purposes=[],
    revoked=True,
    hours=[Hours([6], 0, 15)],
    departure_charge_percent=80.0,
    charge_coincident_only=True,
    link=LinkRules(least_mbps=5.0, month_bytes=10**6),
    power_cap_w=20.0,
)
CURES: dict[IneligibleReason, dict[str, Any]] = {
    IneligibleReason.CONSENT_REVOKED: {"revoked": False},
    IneligibleReason.OWNER_OPTED_OUT: {"opted_in": True},
    IneligibleReason.NOT_PARKED: {"moving": False},
    IneligibleReason.NOT_PLUGGED_IN: {"plugged": True},
    IneligibleReason.UPDATE_PENDING: {"update_pending": False},
    IneligibleReason.CAMP_MODE: {"camp_mode": False},
    IneligibleReason.SENTRY_MODE: {"sentry_mode": False},
    IneligibleReason.OUTSIDE_HOURS: {"hours": []},
    IneligibleReason.CHARGE_TOO_LOW: {"charge_floor_percent": 0.0},
    IneligibleReason.DEPARTURE_GUARD: {"charge_percent": 90.0},
    IneligibleReason.BATTERY_TOO_HOT: {"battery_temperature_c": 20.0},
    IneligibleReason.COMPUTE_TOO_HOT: {"compute_temperature_c": 20.0},
    IneligibleReason.CABIN_TOO_HOT: {"cabin_temperature_c": 20.0},
    IneligibleReason.LINK_METERED: {"link_metered": False},
    IneligibleReason.LINK_WEAK: {"link_rate_mbps": 50.0},
    IneligibleReason.LINK_BUDGET_SPENT: {"link_month_bytes": 0},
    IneligibleReason.NOT_CHARGING: {"charging": True},
    IneligibleReason.POWER_OVER_CAP: {"power_cap_w": None},
}


def reason_of(signals: Signals, policy: OwnerPolicy | None, *, willing: bool = False) -> IneligibleReason | None:
    verdict = judge(signals, policy, CarLimits(), now_ms=BASE["now_ms"], utc_offset_ms=0, willing=willing)
    return None if verdict is None else verdict.reason


def offered(**fields: Any) -> Task:
    given: dict[str, Any] = {
        "job": "j",
        "epoch": 1,
        "model": BlobRef("a" * 64, 1, "/x"),
        "deadline_ms": 1,
        "consent_version": AGREED.version,
        "leases": [Lease(0, 0, 1)],
        "purpose": "general",
    }
    return Task(**(given | fields))


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["name"])
def test_the_car_decides_as_the_shared_table_says(case: dict[str, Any]) -> None:
    told = {name: UNSET if value is None else value for name, value in case.get("signals", {}).items()}
    policy = msgspec.convert(BASE["policy"] | case.get("policy", {}), OwnerPolicy)
    verdict = judge(
        msgspec.structs.replace(GOOD, **told),
        policy,
        CarLimits(),
        now_ms=BASE["now_ms"],
        utc_offset_ms=case.get("utc_offset_ms", 0),
        willing=case.get("working", False),
    )
    prices = {name: case.get(name, BASE[name]) for name in ("energy_micro_per_kwh", "pay_micro_per_h")}
    objection = task_objection(offered(**prices), policy) if verdict is None else verdict.reason
    assert objection == case["reason"]


def test_without_a_policy_there_is_no_work() -> None:
    assert reason_of(GOOD, None) is IneligibleReason.CONSENT_MISSING
    assert task_objection(offered(), None) is RefusalReason.CONSENT_MISSING


def test_a_car_of_which_nothing_is_known_says_that() -> None:
    assert reason_of(Signals(compute_temperature_c=30.0), AGREED) is IneligibleReason.TELEMETRY_MISSING
    assert reason_of(Signals(), None) is IneligibleReason.TELEMETRY_MISSING


def test_the_first_of_all_reasons_is_told_in_the_declared_order() -> None:
    signals, policy = BAD_SIGNALS, BAD_POLICY
    for expected, cure in CURES.items():
        assert reason_of(signals, policy) is expected
        ((name, value),) = cure.items()
        if hasattr(policy, name):
            policy = msgspec.structs.replace(policy, **{name: value})
        else:
            signals = msgspec.structs.replace(signals, **{name: value})
    assert reason_of(signals, policy) is None
    assert list(CURES) == list(IneligibleReason)[2:]


def test_a_battery_without_capacity_cannot_keep_a_promise() -> None:
    signals = msgspec.structs.replace(GOOD, battery_capacity_kwh=0.0, departure_ms=BASE["now_ms"] + 1)
    policy = msgspec.structs.replace(AGREED, departure_charge_percent=90.0)
    assert reason_of(signals, policy) is IneligibleReason.DEPARTURE_GUARD


def test_the_makers_limits_may_be_others() -> None:
    limits = CarLimits(battery_start_c=10.0, battery_stop_c=30.0)
    verdicts = [judge(GOOD, AGREED, limits, now_ms=0, utc_offset_ms=0, willing=willing) for willing in (False, True)]
    assert verdicts == [Verdict(IneligibleReason.BATTERY_TOO_HOT, Level.KILL), None]


@pytest.mark.parametrize(
    ("fields", "objection"),
    [
        ({}, None),
        ({"consent_version": 0}, RefusalReason.CONSENT_MISSING),
        ({"consent_version": 2}, RefusalReason.CONSENT_MISSING),
        ({"purpose": "research"}, RefusalReason.PURPOSE_NOT_AGREED),
        ({"purpose": ""}, RefusalReason.PURPOSE_NOT_AGREED),
    ],
)
def test_what_an_owner_has_against_a_task(fields: dict[str, Any], objection: RefusalReason | None) -> None:
    assert task_objection(offered(**fields), AGREED) is objection


def test_what_the_coordinator_is_told() -> None:
    assert refusal_reason(IneligibleReason.NOT_PARKED, held=True) is RefusalReason.LEAVING
    assert refusal_reason(IneligibleReason.NOT_PARKED, held=False) is RefusalReason.INELIGIBLE
    assert refusal_reason(IneligibleReason.CABIN_TOO_HOT, held=True) is RefusalReason.TOO_HOT
    assert refusal_reason(IneligibleReason.OWNER_OPTED_OUT, held=False) is RefusalReason.CONSENT_MISSING
    assert refusal_reason(IneligibleReason.CONSENT_REVOKED, held=True) is RefusalReason.CONSENT_MISSING


@pytest.mark.parametrize(
    ("level", "signals", "policy"),
    [
        (Level.KILL, {"plugged": False}, {}),
        (Level.KILL, {"moving": True}, {}),
        (Level.KILL, {"opted_in": False}, {}),
        (Level.KILL, {"sentry_mode": True}, {}),
        (Level.KILL, {"camp_mode": True}, {}),
        (Level.KILL, {"battery_temperature_c": 90.0}, {}),
        (Level.KILL, {"compute_temperature_c": 90.0}, {}),
        (Level.KILL, {"cabin_temperature_c": 90.0}, {}),
        (Level.KILL, {"compute_power_w": 90.0}, {"power_cap_w": 50.0}),
        (Level.KILL, {}, {"revoked": True}),
        (Level.KILL, dict.fromkeys(("opted_in", "moving", "plugged", "charge_percent"), UNSET), {}),
        (Level.FINISH, {"update_pending": True}, {}),
        (Level.FINISH, {}, {"hours": [Hours([6], 0, 15)]}),
        (Level.FINISH, {"charge_percent": 5.0}, {}),
        (Level.FINISH, {"charge_percent": 30.0, "battery_power_w": -1.0}, {"departure_charge_percent": 80.0}),
        (Level.FINISH, {"link_metered": True}, {}),
        (Level.FINISH, {"link_rate_mbps": 0.1}, {"link": LinkRules(least_mbps=5.0)}),
        (Level.FINISH, {"link_month_bytes": 9}, {"link": LinkRules(month_bytes=1)}),
        (Level.FINISH, {"charging": False}, {"charge_coincident_only": True}),
        (Level.KILL, {"compute_temperature_c": 90.0}, {"hours": [Hours([6], 0, 15)]}),  # the hardest of all reasons
    ],
)
def test_how_work_ends_by_the_hardest_of_its_reasons(
    level: Level, signals: dict[str, Any], policy: dict[str, Any]
) -> None:
    changed = msgspec.structs.replace(GOOD, **signals), msgspec.structs.replace(AGREED, **policy)
    verdict = judge(*changed, CarLimits(), now_ms=BASE["now_ms"], utc_offset_ms=0, willing=True)
    assert verdict == Verdict(reason_of(*changed, willing=True), level)


def test_how_work_ends_without_a_policy() -> None:
    verdict = judge(GOOD, None, CarLimits(), now_ms=0, utc_offset_ms=0, willing=True)
    assert verdict == Verdict(IneligibleReason.CONSENT_MISSING, Level.KILL)
    assert judge(GOOD, AGREED, CarLimits(), now_ms=BASE["now_ms"], utc_offset_ms=0, willing=True) is None
