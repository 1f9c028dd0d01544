"""The metric catalogue is one list without contradictions, and its `vehicle_state` is what telemetry carries."""

from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS
from coordinator.metrics import CATALOGUE, VEHICLE_STATE, FieldKind
from fleet_wire.signals import SIGNAL_PATHS


def test_names_are_unique_and_no_field_is_called_like_a_tag() -> None:
    assert len({measurement.name for measurement in CATALOGUE}) == len(CATALOGUE)
    for measurement in CATALOGUE:
        names = [*measurement.tags, *(field.name for field in measurement.fields)]
        assert len(set(names)) == len(names), measurement.name


def test_tags_have_few_values_or_are_vehicles() -> None:
    assert {tag for measurement in CATALOGUE for tag in measurement.tags} == {
        "vehicle",
        "region",
        "reason",
        "cause",
        "event",
    }
    assert {measurement.name for measurement in CATALOGUE if not measurement.fleet_wide} == {
        "vehicle_state",
        "vehicle_state_late",
        "vehicle_state_1h",
        "vehicle_work",
    }


def test_vehicle_state_holds_every_signal_with_its_unit() -> None:
    names = {field.name for field in VEHICLE_STATE.fields}
    assert names == {*SIGNAL_PATHS, "epoch", "seq", "ts_ms", "snapshot"}
    assert {*BOOLEAN_SIGNALS, *NUMBER_SIGNALS, "refusal"} == set(SIGNAL_PATHS)
    assert VEHICLE_STATE["refusal"].kind is FieldKind.TEXT
    assert {name for name in NUMBER_SIGNALS if not VEHICLE_STATE[name].unit} == {"free_slots"}
