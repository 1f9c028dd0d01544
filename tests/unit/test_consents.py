"""Consent in the core: versions follow each other, work relies on one, and revoking ends it at once."""

import msgspec
import pytest

from coordinator.commands import AddConsent, EndLease, GrantLease, SendControl, SendPolicy, SendTask
from coordinator.core import Core, CorePolicy
from coordinator.events import JobSubmitted, ModelAdded, PolicySet, Tick, VehicleCaps
from coordinator.model import LeaseEnd
from coordinator.ports import LedgerSnapshot
from coordinator.rules.eligibility import Reason
from fleet_wire.messages import Cancel, Caps
from fleet_wire.policy import OwnerPolicy
from tests.unit.coordinator_scenes import AGREED, MODEL, arrival, job, telemetry


def version(number: int, **changes: object) -> OwnerPolicy:
    return msgspec.structs.replace(AGREED, version=number, **changes)


def caps(held: int) -> VehicleCaps:
    return VehicleCaps("car", Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 4, held))


def working_core() -> Core:
    core = Core()
    for event in (ModelAdded(MODEL), *arrival("car"), JobSubmitted(job(rows=8, chunk_rows=4))):
        core.handle(event, 0)  # type: ignore[arg-type]
    return core


def test_revoking_gives_the_rows_back_and_stops_the_car_in_the_same_round() -> None:
    core = working_core()
    assert [command.lease.chunk for command in core.assign(1) if isinstance(command, GrantLease)] == [0]
    revoked = version(2, revoked=True, purposes=[])
    assert core.handle(PolicySet("car", revoked, "owner"), 2) == [
        AddConsent("car", revoked, "owner", 2),
        SendPolicy("car", revoked),
        EndLease("j1", 0, LeaseEnd.CANCELLED, 4, 2),
        SendControl("car", Cancel("j1")),
    ]
    assert core.fleet.live("leases_ended").tolist() == [0.0]  # an owner's edit says nothing of how long the car stays
    assert core.reasons(2).tolist() == [Reason.CONSENT_REVOKED]
    assert core.assign(2) == []


def test_a_new_version_is_relied_on_only_once_the_car_holds_it() -> None:
    core = working_core()
    core.assign(1)
    core.handle(PolicySet("car", version(2), "owner"), 2)
    assert core.reasons(2).tolist() == [Reason.CONSENT_MISSING]
    assert core.assign(2) == []
    core.handle(caps(2), 3)
    (task,) = [command for command in core.assign(4) if isinstance(command, SendTask)]
    assert task.consent_version == 2
    assert {lease.consent_version for lease in task.leases} == {2}


def test_how_fast_a_car_is_counts_anew_once_it_holds_another_policy() -> None:
    core = working_core()
    core.speeds.learn("other", MODEL.digest, 50.0)
    core.speeds.learn("car", MODEL.digest, 10.0)
    core.handle(PolicySet("car", version(2, threads=1), "owner"), 2)
    core.handle(caps(1), 3)
    assert core.speeds.expected_row_ms("car", MODEL.digest) == 10.0  # what it still sends it computed as before
    core.handle(caps(2), 4)
    assert core.speeds.expected_row_ms("car", MODEL.digest) == core.speeds.model_row_ms(MODEL.digest) == 38.0
    assert core.speeds.rows_per_s("car") is None
    core.speeds.learn("car", MODEL.digest, 20.0)
    core.handle(caps(2), 5)
    assert core.speeds.rows_per_s("car") == 50.0


def test_versions_follow_each_other_without_a_gap_and_the_first_of_two_counts() -> None:
    core = working_core()
    assert core.handle(PolicySet("car", version(3), "owner"), 1) == []
    assert core.handle(PolicySet("car", version(2, charge_floor_percent=50.0), "one"), 2)
    assert core.handle(PolicySet("car", version(2, charge_floor_percent=60.0), "other"), 3) == []
    assert core.fleet.policy("car") == version(2, charge_floor_percent=50.0)
    assert core.refusals == {"policy_version_conflict": 2}
    assert core.handle(PolicySet("car", version(2, charge_floor_percent=50.0), "one"), 4) == []


def test_the_fleets_policy_becomes_the_consent_of_cars_that_have_none() -> None:
    core = Core(CorePolicy(fleet_policy=AGREED))
    assert core.handle(caps(0), 5) == [AddConsent("car", AGREED, "fleet policy", 5), SendPolicy("car", AGREED)]
    assert core.handle(caps(1), 6) == []
    revoked = version(2, revoked=True, purposes=[])
    core.handle(PolicySet("car", revoked, "owner"), 7)
    assert core.handle(caps(2), 10_000) == []
    assert core.fleet.policy("car") == revoked


def test_a_policy_that_a_car_does_not_hold_is_published_again_but_not_in_a_loop() -> None:
    core = working_core()
    core.handle(PolicySet("car", version(2), "owner"), 10)
    assert core.handle(caps(1), 1_009) == []  # it may be on its way
    assert core.handle(caps(1), 1_010) == [SendPolicy("car", version(2))]
    assert core.handle(Tick(), 61_009) == []
    assert core.handle(Tick(), 61_010) == [SendPolicy("car", version(2))]
    core.handle(caps(2), 61_011)
    assert core.handle(Tick(), 200_000) == []


def test_a_car_that_holds_a_later_version_than_the_record_is_told_of_and_the_next_one_is_above_both() -> None:
    core = Core()  # its ledger came from a backup
    core.restore(LedgerSnapshot((MODEL,), (), 1, policies=(("car", version(2)),)), 0)
    _, birth, _, snapshot = arrival("car")
    for event in (birth, snapshot, caps(5)):
        assert not any(isinstance(command, SendPolicy) for command in core.handle(event, 5_000))  # type: ignore[arg-type]
    assert core.refusals == {"policy_behind_vehicle": 1}
    assert core.reasons(5_000).tolist() == [Reason.CONSENT_MISSING]
    assert not any(isinstance(command, SendPolicy) for command in core.handle(Tick(), 600_000))  # it would ignore it
    assert core.fleet.next_policy_version("car") == 6
    again = version(6)
    assert core.handle(PolicySet("car", again, "owner"), 600_001) == [
        AddConsent("car", again, "owner", 600_001),
        SendPolicy("car", again),
    ]
    core.handle(caps(6), 600_002)
    core.handle(telemetry(["car"], seq=2, now_ms=600_002), 600_002)
    assert core.reasons(600_002).tolist() == [Reason.ELIGIBLE]


@pytest.mark.parametrize("held", [1 << 53, (1 << 53) - 1, 1 << 52])
def test_a_car_that_names_one_of_the_last_versions_does_not_end_the_numbers(held: int) -> None:
    core = Core()
    core.handle(caps(held), 0)
    assert core.refusals == {"policy_behind_vehicle": 1}
    assert core.fleet.next_policy_version("car") == 1


def test_a_restarted_core_knows_what_was_agreed_to() -> None:
    core = Core()
    core.restore(LedgerSnapshot((MODEL,), (), 1, policies=(("car", AGREED), ("gone", version(4)))), 0)
    _, birth, said, snapshot = arrival("car")
    for event in (birth, said, snapshot):
        assert not any(isinstance(command, AddConsent) for command in core.handle(event, 0))  # type: ignore[arg-type]
    assert core.reasons(1).tolist() == [Reason.ELIGIBLE, Reason.OFFLINE]
    core.handle(telemetry(["car"], seq=2, charge_percent=31.0), 2)
    assert core.reasons(2)[0] == Reason.ELIGIBLE
    assert core.handle(PolicySet("gone", version(5), "owner"), 3)
