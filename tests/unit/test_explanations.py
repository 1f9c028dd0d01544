"""Reasons in sentences, with the numbers that were compared."""

from typing import Any

import pytest
from msgspec.structs import replace

from coordinator.rules.eligibility import EligibilityLimits, Reason, reasons_of
from coordinator.rules.explanations import REMEDIES, explained
from fleet_wire.api import ReasonView
from tests.unit.test_eligibility import NOW_MS, SHARED, fleet_of, given_of, rules_besides

LIMITS = EligibilityLimits()


def explanations_of(case: dict[str, Any], **columns: float) -> list[ReasonView]:
    fleet = fleet_of(case)
    for name, value in columns.items():
        fleet.live(name)[:] = value
    given = given_of(fleet, pay=case.get("pay_micro_per_h", 20_000))
    return [explained(fleet, 0, reason, LIMITS, given) for reason in reasons_of(fleet, 0, LIMITS, given)]


@pytest.mark.parametrize("case", [case for case in SHARED["cases"] if case["reason"]], ids=lambda case: case["name"])
def test_every_shared_reason_is_explained_and_its_numbers_are_on_the_wrong_side(case: dict[str, Any]) -> None:
    first = explanations_of(case)[0]
    assert first.code == case["reason"]
    assert first.text
    assert "nan" not in first.text
    missing = [name for name, value in case.get("signals", {}).items() if value is None]
    if missing:
        assert "not known" in first.text or "has not said" in first.text or first.code == "departure_guard"


@pytest.mark.parametrize(
    ("case", "view"),
    [
        (
            {"signals": {"charge_percent": 24.0}},
            ReasonView("charge_too_low", "charge is 24 %, below the owner's floor of 30 %", 24.0, 30.0, "%"),
        ),
        (
            {"signals": {"charge_percent": 31.0}},
            ReasonView(
                "charge_too_low",
                "charge is 31 %, and above the owner's floor of 30 %, but work begins only at 32 %",
                31.0,
                32.0,
                "%",
            ),
        ),
        (
            {"signals": {"battery_temperature_c": None}},
            ReasonView(
                "battery_too_hot",
                "battery temperature is not known, and work begins only below 40 °C",
                None,
                40.0,
                "°C",
            ),
        ),
        (
            {"policy": {"price_ceiling_micro_per_kwh": 200_000}},
            ReasonView(
                "price_too_high",
                "the price of energy is 0.25 a kWh, and the owner's ceiling is 0.2 a kWh",
                0.25,
                0.2,
                "a kWh",
            ),
        ),
        (
            {"policy": {"departure_charge_percent": 90.0}, "working": True},
            ReasonView(
                "departure_guard",
                "the charge that it would have at its departure, if it worked, is 80 %, below the promised 90 %",
                80.0,
                90.0,
                "%",
            ),
        ),
        (
            {"policy": {"departure_charge_percent": 80.0}},
            ReasonView(
                "departure_guard",
                "the charge that it would have at its departure, if it worked, is 80 %, "
                "and with a promise of 80 % work begins only at 81 %",
                80.0,
                81.0,
                "%",
            ),
        ),
        (
            {"policy": {"link": {"least_mbps": 50.0}}},
            ReasonView(
                "link_weak",
                "the rate of its link is 50 Mbit/s, "
                "and with an owner's least of 50 Mbit/s work begins only at 62.5 Mbit/s",
                50.0,
                62.5,
                "Mbit/s",
            ),
        ),
        ({"signals": {"camp_mode": True}}, ReasonView("camp_mode", "somebody camps in it")),
        ({"signals": {"moving": None}}, ReasonView("not_parked", "it has not said whether it is moving")),
        (
            {"policy": {"hours": [{"days": [0], "start_minute": 0, "stop_minute": 15}]}},
            ReasonView(
                "outside_hours", "it is outside the owner's hours: in UTC it is Mon 12:00, and they begin Mon 00:00"
            ),
        ),
    ],
)
def test_what_a_person_reads(case: dict[str, Any], view: ReasonView) -> None:
    assert explanations_of(case) == [replace(view, remedy=REMEDIES[Reason[view.code.upper()]])]


def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason) - {Reason.ELIGIBLE}


def test_the_owners_hours_are_told_beside_the_minute_that_it_is() -> None:
    fleet = fleet_of({"policy": {"hours": [{"days": [0], "start_minute": 0, "stop_minute": 15}]}})
    text = explained(fleet, 0, Reason.OUTSIDE_HOURS, LIMITS, given_of(fleet, NOW_MS + 11 * 60_000)).text
    assert text == "it is outside the owner's hours: in UTC it is Mon 12:11, and they begin Mon 00:00"


def test_what_else_stands_in_the_way_follows_in_order() -> None:
    views = explanations_of(
        {"signals": {"plugged": False, "charge_percent": 10.0}}, quarantined_until_ms=NOW_MS + 5_000
    )
    assert [view.code for view in views] == ["not_plugged_in", "charge_too_low", "quarantined"]
    assert views[2].text == "it failed too often and rests for another 5 s"


def test_a_version_that_the_car_does_not_hold_is_named() -> None:
    (view,) = explanations_of({}, policy_version=4)
    assert view.text == "it holds version 1 of its owner's policy, and version 4 is on record"


@pytest.mark.parametrize(("stands", "record"), [(2, "version 2"), (0, "none")])
def test_a_version_that_only_the_car_knows_of_is_named_with_the_way_out(stands: int, record: str) -> None:
    (view,) = explanations_of({}, policy_version=stands, consent_version=5)
    assert view.text == (
        f"it holds version 5 of its owner's policy, and {record} is on record: the ledger lost what came later, "
        "so let the owner set the policy again (idlewheel owner policy set)"
    )


def test_a_car_that_never_told_anything_has_no_age_of_its_telemetry() -> None:
    (view,) = [view for view in explanations_of({}, received_ms=0) if view.code == "telemetry_stale"]
    assert (view.text, view.value) == ("no telemetry of it has come since it is known", None)


def test_the_coordinators_own_reasons_are_explained_too() -> None:
    for _, columns, working, reason in rules_besides():
        if reason is not Reason.ELIGIBLE:
            views = explanations_of({"working": working}, **columns)
            assert reason.name.lower() in [view.code for view in views]
            assert all(view.text for view in views)
