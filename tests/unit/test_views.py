"""What people see of the core's state."""

from coordinator.core import Core, CorePolicy
from coordinator.views import vehicle_views
from tests.unit.coordinator_scenes import arrival


def test_vehicles_are_listed_by_id_in_whatever_order_they_came() -> None:
    core = Core(CorePolicy())
    for vehicle in ["car-2", "car-3", "car-1"]:
        for event in arrival(vehicle):
            core.handle(event, 0)  # type: ignore[arg-type]
    assert [view.id for view in vehicle_views(core, 0)] == ["car-1", "car-2", "car-3"]
