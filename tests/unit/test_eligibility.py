"""Each reason why a car gets no work, on both sides of its threshold."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from coordinator.core import Core
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, PolicySet, VehicleCaps, VehicleState
from coordinator.fleet_view import FleetView
from coordinator.rules.eligibility import (
    EXPLANATIONS,
    Circumstances,
    EligibilityLimits,
    Reason,
    first_reasons,
    job_reasons,
    local_quarters,
    reasons_of,
)
from fleet_wire.api import JobTerms
from fleet_wire.messages import Caps, State
from fleet_wire.policy import OwnerPolicy
from tests.unit.coordinator_scenes import AGREED, arrival, telemetry

LIMITS = EligibilityLimits()
# What both sides, coordinator and agent, must answer alike.
SHARED = json.loads((Path(__file__).parent.parent / "owner_rules.json").read_text())
BASE = SHARED["base"]
NOW_MS = BASE["now_ms"]


def fleet_of(case: dict[str, Any], cars: int = 1) -> FleetView:
    """Cars as a case of the shared table describes them."""
    policy = msgspec.convert({**BASE["policy"], **case.get("policy", {})}, OwnerPolicy)
    signals = {**BASE["signals"], **case.get("signals", {})}
    absent = {**dict.fromkeys(BOOLEAN_SIGNALS, -1), **dict.fromkeys(NUMBER_SIGNALS, np.nan)}
    known = {name: value for name, value in signals.items() if value is not None}
    core = Core()
    names = [f"car-{number}" for number in range(cars)]
    for name in names:
        core.handle(PolicySet(name, policy, "owner"), NOW_MS)
        core.handle(VehicleState(name, State(True, 1)), NOW_MS)
        core.handle(VehicleCaps(name, Caps(1, "1", "x86_64", "CPU", "1", 1, 4, policy.version)), NOW_MS)
    core.handle(telemetry(names, now_ms=NOW_MS, **{**absent, **known}), NOW_MS)
    fleet = core.fleet
    fleet.utc_offsets_ms[policy.timezone] = case.get("utc_offset_ms", BASE["utc_offset_ms"])
    fleet.live("energy_micro_per_kwh")[:] = case.get("energy_micro_per_kwh", BASE["energy_micro_per_kwh"])
    fleet.live("was_eligible")[:] = case.get("working", BASE["working"])
    return fleet


def given_of(fleet: FleetView, now_ms: int = NOW_MS, pay: int = BASE["pay_micro_per_h"]) -> Circumstances:
    return Circumstances(now_ms, local_quarters(fleet, now_ms), pay)


def reason_of(fleet: FleetView, circumstances: Circumstances | None = None) -> Reason:
    return Reason(int(first_reasons(fleet, LIMITS, circumstances or given_of(fleet))[0]))


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["name"])
def test_the_owners_rules_as_both_sides_have_them(case: dict[str, Any]) -> None:
    fleet = fleet_of(case)
    expected = Reason.ELIGIBLE if case["reason"] is None else Reason[case["reason"].upper()]
    assert reason_of(fleet, given_of(fleet, pay=case.get("pay_micro_per_h", BASE["pay_micro_per_h"]))) is expected


def rules_besides() -> Iterator[tuple[str, dict[str, Any], bool, Reason]]:
    """Column values that only the coordinator judges, whether the car works, and the reason."""
    yield "clock right enough to begin", {"clock_skew_ms": -5_000}, False, Reason.ELIGIBLE
    yield "clock too wrong to begin", {"clock_skew_ms": -5_001}, False, Reason.CLOCK_WRONG
    yield "clock right enough to go on", {"clock_skew_ms": 10_000}, True, Reason.ELIGIBLE
    yield "clock too wrong to go on", {"clock_skew_ms": 10_001}, True, Reason.CLOCK_WRONG
    yield "quarantine is over", {"quarantined_until_ms": NOW_MS}, False, Reason.ELIGIBLE
    yield "quarantined", {"quarantined_until_ms": NOW_MS + 1}, False, Reason.QUARANTINED
    yield "draining", {"draining": True}, False, Reason.DRAINING
    yield "offline", {"online": False}, False, Reason.OFFLINE
    yield "one slot", {"slots": 1}, False, Reason.ELIGIBLE
    yield "no slots", {"slots": 0}, False, Reason.CAPS_UNKNOWN
    yield "telemetry of another connection", {"snapshot_epoch": 0}, False, Reason.TELEMETRY_MISSING
    yield "telemetry just fresh", {"received_ms": NOW_MS - LIMITS.stale_ms}, False, Reason.ELIGIBLE
    yield "telemetry too old", {"received_ms": NOW_MS - LIMITS.stale_ms - 1}, False, Reason.TELEMETRY_STALE
    yield "no consent on record", {"policy_version": 0}, False, Reason.CONSENT_MISSING
    yield "holds another version than is on record", {"consent_version": 2}, True, Reason.CONSENT_MISSING
    yield "holds a version, and none is on record", {"policy_version": 0}, True, Reason.CONSENT_MISSING
    yield "revoked, and does not know yet", {"revoked": True, "policy_version": 2}, True, Reason.CONSENT_REVOKED
    yield "leaves in two minutes", {"departure_ms": NOW_MS + 120_000.0}, False, Reason.ELIGIBLE
    yield "leaves too soon to begin", {"departure_ms": NOW_MS + 119_999.0}, False, Reason.LEAVES_SOON
    yield "leaves in half a minute", {"departure_ms": NOW_MS + 30_000.0}, True, Reason.ELIGIBLE
    yield "leaves too soon to go on", {"departure_ms": NOW_MS + 29_999.0}, True, Reason.LEAVES_SOON
    yield "leaves now", {"departure_ms": float(NOW_MS)}, True, Reason.LEAVES_SOON
    yield "should have left already", {"departure_ms": NOW_MS - 1.0}, False, Reason.ELIGIBLE
    unknown = {"energy_micro_per_kwh": np.nan, "price_ceiling_micro_per_kwh": 1e9}
    yield "price unknown where there is a ceiling", unknown, False, Reason.PRICE_TOO_HIGH
    yield "price unknown", {"energy_micro_per_kwh": np.nan}, False, Reason.PRICE_TOO_HIGH


@pytest.mark.parametrize(("columns", "working", "reason"), [pytest.param(*r[1:], id=r[0]) for r in rules_besides()])
def test_rules_of_the_coordinator_alone(columns: dict[str, Any], working: bool, reason: Reason) -> None:
    fleet = fleet_of({"working": working})
    for name, value in columns.items():
        fleet.live(name)[:] = value
    assert reason_of(fleet) is reason


# Reasons found by comparing a number, and whether the threshold of a car that works is another one.
THRESHOLDS = {
    Reason.TELEMETRY_STALE: False,
    Reason.CLOCK_WRONG: True,
    Reason.OUTSIDE_HOURS: False,
    Reason.CHARGE_TOO_LOW: True,
    Reason.DEPARTURE_GUARD: True,
    Reason.BATTERY_TOO_HOT: True,
    Reason.COMPUTE_TOO_HOT: True,
    Reason.CABIN_TOO_HOT: True,
    Reason.LINK_WEAK: True,
    Reason.LINK_BUDGET_SPENT: False,
    Reason.PRICE_TOO_HIGH: False,
    Reason.LEAVES_SOON: True,
    Reason.PAY_TOO_LOW: False,
    Reason.POWER_OVER_CAP: False,
    Reason.QUARANTINED: False,
}
# Reasons found by a fact; a car of which nothing else is said has the other one and may work.
FACTS = {
    Reason.OFFLINE,
    Reason.CAPS_UNKNOWN,
    Reason.TELEMETRY_MISSING,
    Reason.CONSENT_MISSING,
    Reason.CONSENT_REVOKED,
    Reason.OWNER_OPTED_OUT,
    Reason.NOT_PARKED,
    Reason.NOT_PLUGGED_IN,
    Reason.UPDATE_PENDING,
    Reason.CAMP_MODE,
    Reason.SENTRY_MODE,
    Reason.LINK_METERED,
    Reason.NOT_CHARGING,
    Reason.DRAINING,
}
# Both sides of these are in tests of their own below.
OF_A_JOB = {Reason.PURPOSE_NOT_AGREED, Reason.JOB_PRICE_CEILING, Reason.JOB_SHARE_REACHED, Reason.FAILED_HERE}


def test_every_reason_is_tried_on_both_sides_of_its_threshold() -> None:
    sides: dict[tuple[str, bool], set[Reason]] = {}
    for reason, working, given_facts in every_case():
        sides.setdefault((json.dumps(without_numbers(given_facts)), working), set()).add(reason)
    tried = {(reason, working) for (_, working), found in sides.items() if Reason.ELIGIBLE in found for reason in found}
    met = {reason for found in sides.values() for reason in found}
    assert met >= FACTS
    for reason, differs in THRESHOLDS.items():
        works = {working for tried_reason, working in tried if tried_reason is reason}
        assert works, f"no two cases differ in numbers alone, one with {reason.name} and one without"
        assert not differs or works == {False, True}, f"{reason.name} for cars that work and others"
    assert {*THRESHOLDS, *FACTS, *OF_A_JOB, Reason.ELIGIBLE, Reason.CAR_REFUSES} == set(Reason)


def every_case() -> Iterator[tuple[Reason, bool, dict[str, Any]]]:
    """Reason, whether the car works, and what is said of it, from the shared table and the coordinator's own."""
    for case in SHARED["cases"]:
        reason = Reason.ELIGIBLE if case["reason"] is None else Reason[case["reason"].upper()]
        told = {name: value for name, value in case.items() if name not in {"name", "reason", "working"}}
        yield reason, case.get("working", False), told
    for _, columns, working, reason in rules_besides():
        yield reason, working, columns


def without_numbers(value: Any) -> Any:
    """The same with every number, flags excepted, taken for any other."""
    if isinstance(value, dict):
        return {name: without_numbers(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return [without_numbers(each) for each in value]
    return "a number" if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize(
    ("chance", "working", "reason"),
    [
        (0.97, False, Reason.ELIGIBLE),
        (0.969, False, Reason.LEAVES_SOON),
        (0.95, True, Reason.ELIGIBLE),
        (0.949, True, Reason.LEAVES_SOON),
        (np.nan, True, Reason.LEAVES_SOON),
    ],
)
def test_a_car_that_will_probably_leave_gets_nothing(chance: float, working: bool, reason: Reason) -> None:
    fleet = fleet_of({"working": working})
    assert reason_of(fleet, replace(given_of(fleet), stay_probability=np.array([chance]))) is reason


def test_a_timezone_whose_offset_is_not_known_is_outside_of_all_hours() -> None:
    fleet = fleet_of({"policy": {"timezone": "Asia/Tokyo"}})
    assert reason_of(fleet) is Reason.ELIGIBLE
    del fleet.utc_offsets_ms["Asia/Tokyo"]
    assert reason_of(fleet) is Reason.OUTSIDE_HOURS


def test_the_cars_own_refusal_counts() -> None:
    core = Core()
    for event in arrival("car"):
        core.handle(event, 0)  # type: ignore[arg-type]
    batch = telemetry(["car"], seq=2)
    batch.refusal[:] = "sentry_mode"
    core.handle(batch, 0)
    assert core.reasons(0).tolist() == [Reason.CAR_REFUSES]


def test_a_car_becomes_eligible_only_with_the_last_thing_that_must_be_known() -> None:
    core = Core()
    consent, birth, caps, snapshot = arrival("car")
    expected = [Reason.CAPS_UNKNOWN, Reason.TELEMETRY_MISSING, Reason.CONSENT_MISSING, Reason.ELIGIBLE]
    for event, reason in zip((birth, caps, snapshot, consent), expected, strict=True):
        core.handle(event, 0)  # type: ignore[arg-type]
        assert core.reasons(0).tolist() == [reason]


# Unknown is harmless only where no rule of this car's owner asks for it.
STRICT = {
    "policy": {
        "price_ceiling_micro_per_kwh": 10**9,
        "charge_coincident_only": True,
        "departure_charge_percent": 90.0,
        "link": {"least_mbps": 1.0, "month_bytes": 10**9},
        "power_cap_w": 50.0,
    },
    "signals": {"departure_ms": NOW_MS + 3_600_000},
}
HARMLESS = {"awake_power_w", "free_slots", "departure_ms", "departure_charge_percent"}


@pytest.mark.parametrize("name", sorted({*BOOLEAN_SIGNALS, *NUMBER_SIGNALS, "energy_micro_per_kwh"} - HARMLESS))
def test_what_is_not_known_counts_against_the_car(name: str) -> None:
    fleet = fleet_of(STRICT)
    assert reason_of(fleet) is Reason.ELIGIBLE
    fleet.live(name)[:] = -1 if name in BOOLEAN_SIGNALS else np.nan
    assert reason_of(fleet) is not Reason.ELIGIBLE


@given(st.data())
def test_the_first_reason_is_the_first_of_all_in_order(data: st.DataObject) -> None:
    cases = data.draw(st.lists(st.sampled_from(SHARED["cases"]), min_size=1, max_size=4))
    merged: dict[str, Any] = {"policy": {}, "signals": {}, "working": data.draw(st.booleans())}
    for case in cases:
        for part in ("policy", "signals"):
            merged[part] |= case.get(part, {})
    fleet = fleet_of(merged, cars=3)
    for name, value in (("draining", True), ("quarantined_until_ms", NOW_MS + 1), ("online", False)):
        if data.draw(st.booleans()):
            fleet.live(name)[1] = value
    circumstances = given_of(fleet)
    for row, first in enumerate(first_reasons(fleet, LIMITS, circumstances).tolist()):
        every = reasons_of(fleet, row, LIMITS, circumstances)
        assert every == sorted(set(every))
        assert first == (every[0] if every else Reason.ELIGIBLE)


def test_a_cars_reasons_do_not_depend_on_who_else_is_there() -> None:
    cases = [case for case in SHARED["cases"] if case.keys() <= {"name", "reason", "signals"}]
    core = Core()
    for number, _ in enumerate(cases):
        consent, birth, caps, _ = arrival(f"car-{number:03}")
        for event in (birth, caps, consent):
            core.handle(event, NOW_MS)  # type: ignore[arg-type]
    for number, case in enumerate(cases):
        signals = {**BASE["signals"], **case.get("signals", {})}
        known = {
            name: (-1 if name in BOOLEAN_SIGNALS else np.nan) if signals.get(name) is None else signals[name]
            for name in (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS)
        }
        core.handle(telemetry([f"car-{number:03}"], now_ms=NOW_MS, **known), NOW_MS)
    expected = [Reason[case["reason"].upper()] if case["reason"] else Reason.ELIGIBLE for case in cases]
    assert first_reasons(core.fleet, LIMITS, given_of(core.fleet)).tolist() == expected


def test_a_job_wants_its_purpose_agreed_to_its_ceiling_kept_and_its_rows_spread() -> None:
    core = Core()
    for name, purposes in (("both", ["general", "maps"]), ("one", ["general"]), ("none", [])):
        core.fleet.set_policy(name, replace_policy(purposes=purposes))
    fleet = core.fleet
    fleet.live("energy_micro_per_kwh")[:] = [100, 200, np.nan]
    missing, ceiling = Reason.PURPOSE_NOT_AGREED, Reason.JOB_PRICE_CEILING
    assert job_reasons(fleet, JobTerms()).tolist() == [0, 0, missing]
    assert job_reasons(fleet, JobTerms(purpose="maps")).tolist() == [0, missing, missing]
    assert job_reasons(fleet, JobTerms(purpose="never-heard-of")).tolist() == [missing] * 3
    assert job_reasons(fleet, JobTerms(price_ceiling_micro_per_kwh=199)).tolist() == [0, ceiling, missing]
    assert job_reasons(fleet, JobTerms(price_ceiling_micro_per_kwh=200)).tolist() == [0, 0, missing]
    core.fleet.set_policy("none", replace_policy(purposes=["general"]))
    assert job_reasons(fleet, JobTerms(price_ceiling_micro_per_kwh=200)).tolist() == [0, 0, ceiling]
    pair = {"share_reached": np.array([True, False, False]), "failed_here": np.array([True, True, False])}
    assert job_reasons(fleet, JobTerms(), **pair).tolist() == [Reason.JOB_SHARE_REACHED, Reason.FAILED_HERE, 0]


def test_what_jobs_ask_for_leaves_owners_free_to_agree() -> None:
    fleet = fleet_of({})
    for number in range(100):
        job_reasons(fleet, JobTerms(purpose=f"made-up-{number}"))
    fleet.set_policy("car-0", replace_policy(purposes=["maps"]))
    assert job_reasons(fleet, JobTerms(purpose="maps")).tolist() == [Reason.ELIGIBLE]


def test_purposes_without_end_are_agreed_to_by_nobody() -> None:
    fleet = FleetView()
    for number in range(200):
        fleet.set_policy(f"car-{number}", replace_policy(purposes=[f"purpose-{number}"]))
    for number in (0, 63, 64, 199):
        agreed = np.flatnonzero(job_reasons(fleet, JobTerms(purpose=f"purpose-{number}")) == 0).tolist()
        assert agreed == ([number] if number < 64 else [])


def replace_policy(**changes: Any) -> OwnerPolicy:
    return msgspec.structs.replace(AGREED, **changes)


def test_every_reason_is_explained() -> None:
    assert set(EXPLANATIONS) == set(Reason)


def test_a_delta_is_no_full_telemetry_of_a_new_connection() -> None:
    core = Core()
    for event in arrival("car"):
        core.handle(event, 0)  # type: ignore[arg-type]
    core.handle(VehicleState("car", State(True, 2)), 0)
    core.handle(VehicleCaps("car", Caps(2, "1", "x86_64", "CPU", "1", 1, 4, AGREED.version)), 0)
    lost_before = telemetry(["car"], epoch=2, seq=1)
    lost_before.snapshot[:] = False
    core.handle(lost_before, 0)
    assert core.reasons(0).tolist() == [Reason.TELEMETRY_MISSING]
    core.handle(telemetry(["car"], epoch=2, seq=2), 0)
    assert core.reasons(0).tolist() == [Reason.ELIGIBLE]
