"""Signals travel under their VSS paths, within their ranges, and only when they have changed enough."""

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_wire.signals import DEAD_BANDS, SIGNAL_PATHS, Signals, changed_signals, check_numbers


def decoded(fields: dict[str, Any]) -> Signals:
    by_path = {SIGNAL_PATHS[name]: value for name, value in fields.items()}
    return msgspec.msgpack.decode(msgspec.msgpack.encode(by_path), type=Signals)


def fields(signals: Signals) -> dict[str, Any]:
    return {name: value for name in SIGNAL_PATHS if (value := getattr(signals, name)) is not msgspec.UNSET}


def test_the_table_of_paths_is_that_of_the_fields() -> None:
    assert tuple(SIGNAL_PATHS) == Signals.__struct_fields__
    assert len(set(SIGNAL_PATHS.values())) == len(SIGNAL_PATHS)
    assert all(path.startswith("Vehicle.") for path in SIGNAL_PATHS.values())


def test_every_number_with_a_fraction_has_a_dead_band() -> None:
    def is_float(kind: msgspec.inspect.Type) -> bool:
        parts = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
        return any(isinstance(part, msgspec.inspect.FloatType) for part in parts)

    info = msgspec.inspect.type_info(Signals)
    assert isinstance(info, msgspec.inspect.StructType)
    fractions = {field.name for field in info.fields if is_float(field.type)}
    assert set(DEAD_BANDS) - fractions == {"link_month_bytes"}
    assert fractions < set(DEAD_BANDS)


def test_only_known_signals_travel_each_under_its_path() -> None:
    signals = Signals(plugged=True, charge_percent=71.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(signals)) == {
        "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected": True,
        "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current": 71.5,
    }


def test_signals_that_this_side_does_not_know_are_passed_over() -> None:
    payload = msgspec.msgpack.encode({"Vehicle.Speed": 0.0, SIGNAL_PATHS["moving"]: False})
    assert fields(msgspec.msgpack.decode(payload, type=Signals)) == {"moving": False}


@pytest.mark.parametrize("name", DEAD_BANDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused_on_both_sides(name: str, value: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded({name: value})
    with pytest.raises(ValueError, match=SIGNAL_PATHS[name]):
        check_numbers(Signals(**cast("dict[str, Any]", {name: value})))


def test_signals_that_are_numbers_or_not_there_pass() -> None:
    check_numbers(Signals(charge_percent=0.0, plugged=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("charge_percent", -0.1),
        ("charge_percent", 100.1),
        ("battery_temperature_c", -101),
        ("battery_temperature_c", 251),
        ("battery_power_w", 1.1e6),
        ("link_rate_mbps", -1),
        ("compute_power_w", -1),
        ("free_slots", 65536),
        ("free_slots", 1.5),
        ("departure_ms", -1),
        ("departure_ms", 2**53 + 1),
        ("refusal", "x" * 65),
        ("plugged", 1),
        ("plugged", "yes"),
        ("plugged", None),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded({name: value})


def test_a_whole_number_may_stand_where_a_fraction_may() -> None:
    assert decoded({"charge_percent": 80}).charge_percent == 80.0


def test_a_number_is_sent_again_when_it_has_moved_by_its_dead_band() -> None:
    last = Signals(charge_percent=50.0, battery_power_w=7000.0)
    assert fields(changed_signals(last, Signals(charge_percent=50.4, battery_power_w=6901.0))) == {}
    assert fields(changed_signals(last, Signals(charge_percent=50.5, battery_power_w=6900.0))) == {
        "charge_percent": 50.5,
        "battery_power_w": 6900.0,
    }


def test_anything_else_is_sent_again_when_it_differs_at_all() -> None:
    last = Signals(plugged=True, free_slots=2, departure_ms=1000, refusal="")
    now = Signals(plugged=False, free_slots=2, departure_ms=1001, refusal="busy")
    assert fields(changed_signals(last, now)) == {"plugged": False, "departure_ms": 1001, "refusal": "busy"}


def test_what_was_never_sent_is_sent_and_what_is_no_longer_known_is_not() -> None:
    last, now = Signals(plugged=True), Signals(charge_percent=0.1)
    assert fields(changed_signals(last, now)) == {"charge_percent": 0.1}


@given(st.lists(st.floats(0, 100), min_size=1))
def test_the_other_side_is_never_off_by_a_dead_band(readings: list[float]) -> None:
    sent = Signals()
    for reading in readings:
        delta = changed_signals(sent, Signals(charge_percent=reading))
        for name, value in fields(delta).items():
            setattr(sent, name, value)
        assert isinstance(sent.charge_percent, float)
        assert abs(sent.charge_percent - reading) < DEAD_BANDS["charge_percent"]
