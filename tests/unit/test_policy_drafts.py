"""Policies as people write them: the command line's options and hours, files, and what is refused."""

from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from coordinator.errors import Rejected
from coordinator.local_time import utc_offsets_ms
from coordinator.policy_drafts import checked_policy, read_fleet_policy
from fleet_wire.api import PolicyDraft
from fleet_wire.policy import QUARTER_MINUTES, Hours, OwnerPolicy
from idlewheel.errors import BadInput
from idlewheel.hours_text import format_hours, parse_hours


def test_a_draft_becomes_the_next_version() -> None:
    draft = PolicyDraft(owner="ada", purposes=["general"], charge_floor_percent=50.0)
    assert checked_policy(draft, 4) == OwnerPolicy(4, "ada", ["general"], charge_floor_percent=50.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"purposes": []}, "names no purpose"),
        ({"timezone": "Europe/Atlantis"}, "'Europe/Atlantis' is no timezone"),
        ({"timezone": "../../etc/passwd"}, "is no timezone"),
        ({"charge_floor_percent": 90.0, "departure_charge_percent": 80.0}, "promises 80 %"),
        ({"revoked": True}, "revoked and still names purposes"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(changes: dict[str, object], words: str) -> None:
    draft = PolicyDraft(**{"owner": "ada", "purposes": ["general"], **changes})
    with pytest.raises(Rejected, match=words) as refused:
        checked_policy(draft, 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"owner":"a","purposes":["x"],"hourz":[]}',
        '{"owner":"a","purposes":["x"],"link":{"meterd":1}}',
        "{",
        '{"owner":1}',
    ],
)
def test_a_file_that_is_no_policy_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(Rejected, match=r"policy\.json"):
        read_fleet_policy(file)
    with pytest.raises(Rejected, match="No such file"):
        read_fleet_policy(tmp_path / "none.json")


def test_the_fleet_policy_of_the_compose_file_can_be_read() -> None:
    file = Path(__file__).parents[2] / "coordinator_config" / "fleet-policy.json"
    assert read_fleet_policy(file).purposes == ["general"]


def test_offsets_follow_daylight_saving_time_and_leave_out_what_is_unknown() -> None:
    winter, summer = 1_767_225_600_000, 1_782_864_000_000  # 2026-01-01, 2026-07-01
    names = ["UTC", "Europe/Oslo", "Mars/Olympus"]
    assert utc_offsets_ms(names, winter) == {"UTC": 0, "Europe/Oslo": 3_600_000}
    assert utc_offsets_ms(names, summer) == {"UTC": 0, "Europe/Oslo": 7_200_000}


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("Mon-Fri 22:00-06:00", Hours([0, 1, 2, 3, 4], 1320, 360)),
        ("sat,SUN 00:00-24:00", Hours([5, 6], 0, 1440)),
        ("Sat-Mon 9:15-10:00", Hours([0, 5, 6], 555, 600)),
        ("22:00-06:00", Hours([0, 1, 2, 3, 4, 5, 6], 1320, 360)),
    ],
)
def test_hours_as_people_write_them(text: str, hours: Hours) -> None:
    assert parse_hours(text) == hours


@pytest.mark.parametrize("text", ["", "Mon", "Mon 22-06", "Mon 24:00-06:00", "Mon 22:10-06:00", "Moonday 22:00-06:00"])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        parse_hours(text)


@given(
    st.builds(
        Hours,
        st.lists(st.integers(0, 6), min_size=1, unique=True).map(sorted),
        st.integers(0, 95).map(lambda quarter: quarter * QUARTER_MINUTES),
        st.integers(0, 96).map(lambda quarter: quarter * QUARTER_MINUTES),
    )
)
def test_hours_are_read_back_as_they_are_written(hours: Hours) -> None:
    assert msgspec.to_builtins(parse_hours(format_hours(hours))) == msgspec.to_builtins(hours)
