"""The fleet view keeps policies in few bytes, and gives back what it was given."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet_view import FleetView
from fleet_wire.policy import OwnerPolicy
from tests.property.owner_policies import owner_policies


@given(st.lists(st.tuples(st.sampled_from(["v1", "v2", "v3"]), owner_policies)))
def test_the_last_policy_of_each_vehicle_comes_back_whole(given_policies: list[tuple[str, OwnerPolicy]]) -> None:
    fleet = FleetView()
    for vehicle, policy in given_policies:
        fleet.set_policy(vehicle, policy)
    assert {vehicle: fleet.policy(vehicle) for vehicle, _ in given_policies} == dict(given_policies)
    assert fleet.policy("another") is None
