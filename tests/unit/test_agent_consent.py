"""Which owner's policy a car holds: what replaces it, what may not, and what is on its disk."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet_wire.codec import POLICY
from fleet_wire.policy import OwnerPolicy
from vehicle_agent.consent import Consent, faults_of, utc_offset_ms

FIRST = OwnerPolicy(version=1, owner="ada", purposes=["general"], timezone="Europe/Oslo")
SECOND = OwnerPolicy(version=2, owner="ada", purposes=[], revoked=True)


def test_a_later_version_replaces_an_earlier_one_and_stays_on_the_disk(tmp_path: Path) -> None:
    consent = Consent.open(tmp_path / "policy", Counter())
    assert (consent.policy, consent.version) == (None, 0)
    for policy in (FIRST, SECOND):
        assert consent.take(policy)
        consent.save()
        assert Consent.open(tmp_path / "policy", Counter()).policy == policy == consent.policy


@pytest.mark.parametrize(
    ("offered", "counted"),
    [
        (SECOND, {}),
        (FIRST, {"policy_outdated": 1}),
        (OwnerPolicy(version=2, owner="eve", purposes=["general"]), {"policy_outdated": 1}),
        (OwnerPolicy(version=3, owner="ada", purposes=[]), {"policy_refused": 1}),
        (OwnerPolicy(version=3, owner="ada", purposes=["general"], timezone="Europe/Atlantis"), {"policy_refused": 1}),
    ],
)
def test_what_changes_nothing(tmp_path: Path, offered: OwnerPolicy, counted: dict[str, int]) -> None:
    counters: Counter[str] = Counter()
    consent = Consent.open(tmp_path / "policy", counters)
    consent.take(SECOND)
    consent.save()
    assert not consent.take(offered)
    assert (consent.policy, counters) == (SECOND, counted)
    assert Consent.open(tmp_path / "policy", counters).policy == SECOND


def test_an_emptied_policy_is_gone_and_any_version_may_follow(tmp_path: Path) -> None:
    consent = Consent.open(tmp_path / "policy", Counter())
    consent.take(SECOND)
    consent.save()
    assert consent.take(None)
    consent.save()
    assert not (tmp_path / "policy").exists()
    assert not consent.take(None)
    assert consent.take(FIRST)


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (b"", {"policy_unreadable": 1}),
        (POLICY.encode(FIRST)[:-1], {"policy_unreadable": 1}),
        (POLICY.encode(msgspec.structs.replace(FIRST, purposes=[])), {"policy_unreadable": 1}),
        (POLICY.encode(msgspec.structs.replace(FIRST, timezone="Mars/Olympus")), {"policy_unreadable": 1}),
    ],
)
def test_what_cannot_be_read_back_is_no_policy(tmp_path: Path, data: bytes, counted: dict[str, int]) -> None:
    (tmp_path / "policy").write_bytes(data)
    counters: Counter[str] = Counter()
    assert Consent.open(tmp_path / "policy", counters).policy is None
    assert counters == counted


@pytest.mark.parametrize("timezone", ["Atlantis", "", "../../etc/passwd", "Europe", "/UTC", "a\0b", "x" * 64])
def test_a_time_zone_that_is_none_is_a_fault(timezone: str) -> None:
    (fault,) = faults_of(msgspec.structs.replace(FIRST, timezone=timezone))
    assert "time zone" in fault


@pytest.mark.parametrize(
    ("timezone", "now_ms", "hours"),
    [
        ("UTC", 0, 0),
        ("Europe/Oslo", 1_767_225_600_000, 1),  # the first of January 2026
        ("Europe/Oslo", 1_782_864_000_000, 2),  # the first of July
        ("America/St_Johns", 1_767_225_600_000, -3.5),
    ],
)
def test_the_offset_follows_the_calendar(timezone: str, now_ms: int, hours: float) -> None:
    policy: Any = msgspec.structs.replace(FIRST, timezone=timezone)
    assert utc_offset_ms(policy, now_ms) == hours * 3_600_000
