"""The fleet view grows by blocks: the vehicle that begins a block is taken in like any other."""

from collections.abc import Callable

import pytest

from coordinator.core import Core
from coordinator.events import JobSubmitted, ModelAdded, RowsFailed, TaskRefused, VehicleCaps, VehicleState
from fleet_wire.messages import Caps, Failure, Refusal, RefusalReason, Span, State
from tests.unit.coordinator_scenes import MODEL, arrival, job, rows_of

_MORE_THAN_A_BLOCK = 200
EVENTS: dict[str, Callable[[str], object]] = {
    "birth": lambda vehicle: VehicleState(vehicle, State(online=True, epoch=1)),
    "caps": lambda vehicle: VehicleCaps(vehicle, Caps(1, "1", "x", "x", "1", threads=1, slots=1)),
    "telemetry": lambda vehicle: arrival(vehicle)[-1],
    "refusal": lambda vehicle: TaskRefused(vehicle, Refusal("j1", 1, RefusalReason.TOO_HOT)),
    "failure": lambda vehicle: RowsFailed(vehicle, Failure("j1", 1, [Span(0, 0, 1)], "error")),
    "rows": lambda vehicle: rows_of(vehicle, "j1", Span(0, 0, 1)),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_every_first_word_of_a_vehicle_makes_room_for_it(kind: str) -> None:
    core = Core()
    for event in (ModelAdded(MODEL), *arrival("first"), JobSubmitted(job())):
        core.handle(event, 0)  # type: ignore[arg-type]
    for number in range(_MORE_THAN_A_BLOCK):
        core.handle(EVENTS[kind](f"v{number}"), 0)  # type: ignore[arg-type]
    core.assign(0)
