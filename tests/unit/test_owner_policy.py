"""The owner's policy as a document: what contradicts itself, what can't be decoded, and its published schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from coordinator.adapters.ledger_rows import decode_policy
from fleet_wire.codec import POLICY
from fleet_wire.errors import WireError, WireFault
from fleet_wire.policy import WEEK_QUARTERS, Hours, LinkRules, OwnerPolicy, allowed_quarters, policy_faults

AGREED = OwnerPolicy(version=1, owner="ada", purposes=["general"])
NIGHTS = Hours(days=[0, 6], start_minute=22 * 60, stop_minute=6 * 60)
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/owner-policy.schema.json").read_text(encoding="utf-8"))


def test_a_plain_agreement_and_a_plain_revocation_have_no_fault() -> None:
    assert policy_faults(AGREED) == []
    assert policy_faults(OwnerPolicy(version=2, owner="ada", purposes=[], revoked=True)) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"purposes": ["general", "general"]}, "named twice"),
        ({"revoked": True}, "revoked and still"),
        ({"purposes": []}, "no purpose"),
        ({"link": LinkRules(month_bytes=0)}, "no byte a month"),
        ({"charge_floor_percent": 50.5, "departure_charge_percent": 50.0}, "promises 50 %"),
        ({"hours": [Hours([1, 2, 1], 0, 60)]}, "a day twice"),
    ],
)
def test_what_contradicts_itself_is_said(changed: dict[str, Any], said: str) -> None:
    (fault,) = policy_faults(msgspec.structs.replace(AGREED, **changed))
    assert said in fault


@pytest.mark.parametrize(
    "changed",
    [
        {"link": LinkRules(month_bytes=1)},
        {"charge_floor_percent": 50.0, "departure_charge_percent": 50.0},
        {"hours": [Hours([1, 2], 0, 60), Hours([1], 60, 120)]},
    ],
)
def test_what_only_just_agrees_with_itself_has_no_fault(changed: dict[str, Any]) -> None:
    assert policy_faults(msgspec.structs.replace(AGREED, **changed)) == []


def test_several_faults_are_all_said() -> None:
    policy = OwnerPolicy(version=1, owner="ada", purposes=["a", "a"], revoked=True, link=LinkRules(month_bytes=0))
    assert len(policy_faults(policy)) == 3


def test_no_hours_are_all_hours() -> None:
    assert allowed_quarters(AGREED) == b"\x01" * WEEK_QUARTERS


def test_nights_go_on_past_midnight_and_past_the_week() -> None:
    quarters = allowed_quarters(msgspec.structs.replace(AGREED, hours=[NIGHTS]))
    monday, tuesday, sunday = 0, 96, 6 * 96
    allowed = {*range(monday, 24), *range(monday + 88, tuesday + 24), *range(sunday + 88, WEEK_QUARTERS)}
    assert {place for place, byte in enumerate(quarters) if byte} == allowed


DOCUMENT = {
    "version": 3,
    "owner": "ada",
    "purposes": ["general", "research"],
    "timezone": "Europe/Oslo",
    "hours": [{"days": [0, 6], "start_minute": 1320, "stop_minute": 360}],
    "departure_charge_percent": 80,
    "link": {"least_mbps": 5, "month_bytes": 10**9},
    "power_cap_w": 40.0,
    "threads": 2,
    "niceness": 19,
    "memory_bytes": 10**9,
}
SMALLEST = {"version": 1, "owner": "ada", "purposes": []}
REFUSED: list[dict[str, Any]] = [
    {"owner": "ada", "purposes": []},
    {"version": 0},
    {"version": 1.5},
    {"owner": "ada lovelace"},
    {"owner": "ada\n"},
    {"owner": None},
    {"purposes": ["General"]},
    {"purposes": [""]},
    {"purposes": ["x" * 33]},
    {"purposes": ["x"] * 33},
    {"revoked": "yes"},
    {"hours": [{"days": [], "start_minute": 0, "stop_minute": 60}]},
    {"hours": [{"days": [7], "start_minute": 0, "stop_minute": 60}]},
    {"hours": [{"days": [0], "start_minute": 7, "stop_minute": 60}]},
    {"hours": [{"days": [0], "start_minute": 1440, "stop_minute": 60}]},
    {"hours": [{"days": [0], "start_minute": 0, "stop_minute": 1455}]},
    {"hours": [{"days": [0], "start_minute": 0}]},
    {"charge_floor_percent": -0.5},
    {"charge_floor_percent": 100.5},
    {"departure_charge_percent": "80"},
    {"price_ceiling_micro_per_kwh": -1},
    {"link": {"least_mbps": -1}},
    {"power_cap_w": 0},
    {"least_pay_micro_per_h": 0.5},
    {"threads": 0},
    {"threads": 1.5},
    {"threads": 4097},
    {"niceness": -1},
    {"niceness": 20},
    {"memory_bytes": 10**8},
    {"memory_bytes": "1 GB"},
]


@pytest.mark.parametrize("document", [DOCUMENT, SMALLEST])
def test_schema_and_codec_take_a_document(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    policy = POLICY.decode(msgspec.msgpack.encode(document), POLICY.content_type)
    jsonschema.Draft202012Validator(SCHEMA).validate(msgspec.to_builtins(policy))


def test_a_document_from_before_it_bounded_the_worker_is_read_from_broker_and_ledger() -> None:
    document = {name: DOCUMENT[name] for name in DOCUMENT if name not in {"threads", "niceness", "memory_bytes"}}
    policy = POLICY.decode(msgspec.msgpack.encode(document), POLICY.content_type)
    assert policy == decode_policy(msgspec.json.encode(document))
    assert (policy.threads, policy.niceness, policy.memory_bytes) == (None, None, None)


@pytest.mark.parametrize("changed", REFUSED, ids=str)
def test_schema_and_codec_refuse_the_same(changed: dict[str, Any]) -> None:
    document = changed if "purposes" in changed and "owner" in changed else SMALLEST | changed
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    with pytest.raises(WireError) as caught:
        POLICY.decode(msgspec.msgpack.encode(document), POLICY.content_type)
    assert caught.value.fault is WireFault.MALFORMED


@pytest.mark.parametrize("field", ["charge_floor_percent", "departure_charge_percent", "power_cap_w"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(field: str, value: float) -> None:
    with pytest.raises(WireError):
        POLICY.decode(msgspec.msgpack.encode(SMALLEST | {field: value}), POLICY.content_type)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
