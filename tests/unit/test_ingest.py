"""Messages in, events and refusals out: identity from the topic, each refusal counted, nothing changed by bad input."""

from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from coordinator.events import RowsFailed, RowsReceived, TaskRefused, VehicleCaps, VehicleState
from coordinator.fleet_view import FleetView
from coordinator.ingest import Ingest
from fleet_wire.api import TensorSpec
from fleet_wire.codec import CAPS, RESULT, STATE, TELEMETRY
from fleet_wire.messages import BlobRef, Caps, Refusal, RefusalReason, Rows, Span, State, Telemetry
from fleet_wire.signals import Signals
from fleet_wire.tensors import Tensor, encode_tensors


@dataclass
class Sent:
    topic: str
    payload: bytes
    content_type: str | None
    retain: bool = False
    intact: bool = True


def sent(topic: str, kind: object, message: object, **changes: object) -> Sent:
    packet = Sent(f"iw/v1/f/{topic}", kind.encode(message), kind.content_type)  # type: ignore[attr-defined]
    for name, value in changes.items():
        setattr(packet, name, value)
    return packet


def tele(vehicle: str, seq: int, **signals: object) -> Sent:
    return sent(f"veh/{vehicle}/tele", TELEMETRY, Telemetry(1, seq, 5, False, Signals(**signals)))  # type: ignore[arg-type]


def rows(**changes: object) -> Rows:
    outputs = encode_tensors({"y": np.ones((2, 3), np.float32)})
    return Rows(**{"job": "j1", "epoch": 1, "spans": [Span(0, 4, 6)], "outputs": outputs, **changes})  # type: ignore[arg-type]


def test_telemetry_of_many_cars_becomes_one_batch_of_columns() -> None:
    ingest = Ingest("f", 4096)
    packets = [tele("a", 1, plugged=True, charge_percent=50.0), tele("b", 7, refusal="sentry_mode", free_slots=3)]
    batch = ingest.sort(packets, now_ms=99)
    assert batch.telemetry is not None
    assert batch.telemetry.vehicle.tolist() == ["a", "b"]
    assert batch.telemetry.received_ms.tolist() == [99, 99]
    assert batch.telemetry.seq.tolist() == [1, 7]
    assert batch.telemetry.refusal.tolist() == [None, "sentry_mode"]
    assert batch.telemetry.signals["plugged"].tolist() == [1, -1]
    np.testing.assert_array_equal(batch.telemetry.signals["charge_percent"], [50.0, np.nan])
    np.testing.assert_array_equal(batch.telemetry.signals["free_slots"], [np.nan, 3.0])
    assert batch.telemetry_packets == packets
    assert (batch.events, batch.rejected, dict(ingest.refusals)) == ([], [], {})


def test_signals_that_no_document_holds_have_no_column() -> None:
    batch = Ingest("f", 4096).sort([tele("a", 1, plugged=True), tele("b", 1, moving=False)], now_ms=0)
    assert batch.telemetry is not None
    assert {name: column.tolist() for name, column in batch.telemetry.signals.items()} == {
        "plugged": [1, -1],
        "moving": [-1, 0],
    }
    assert batch.telemetry.refusal.tolist() == [None, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("others", [{}, {"charge_percent": 50.0}])
def test_a_number_that_is_none_costs_its_own_document_alone(value: float, others: dict[str, object]) -> None:
    ingest = Ingest("f", 4096)
    packets = [tele("a", 1, **others), tele("b", 7, charge_percent=value, plugged=True), tele("c", 2, **others)]
    batch = ingest.sort(packets, now_ms=0)
    assert batch.telemetry is not None
    assert (batch.telemetry.vehicle.tolist(), batch.telemetry.seq.tolist()) == (["a", "c"], [1, 2])
    assert "plugged" not in batch.telemetry.signals
    assert batch.telemetry_packets == [packets[0], packets[2]]
    assert [(each.packet, each.vehicle) for each in batch.rejected] == [(packets[1], "b")]
    assert ingest.refusals == {"message_malformed": 1}


def test_a_batch_of_nothing_but_bad_numbers_leaves_no_batch() -> None:
    batch = Ingest("f", 4096).sort([tele("a", 1, charge_percent=float("nan"))], now_ms=0)
    assert (batch.telemetry, batch.telemetry_packets, len(batch.rejected)) == (None, [], 1)


def test_presence_caps_and_results_become_events_of_the_topics_vehicle() -> None:
    caps = Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 4)
    refusal = Refusal("j1", 1, RefusalReason.BUSY)
    packets = [
        sent("veh/a/state", STATE, State(True, 3), retain=True),
        sent("veh/a/caps", CAPS, caps),
        sent("job/j1/res/b", RESULT, refusal),
        sent("job/j1/res/c", RESULT, rows()),
    ]
    events = [event for event, _ in Ingest("f", 4096).sort(packets, 0).events]
    assert events[:3] == [VehicleState("a", State(True, 3), True), VehicleCaps("a", caps), TaskRefused("b", refusal)]
    last = events[3]
    assert isinstance(last, RowsReceived)
    assert (last.vehicle, last.outputs) == ("c", (TensorSpec("y", "float", [2, 3]),))


def test_outputs_that_lie_elsewhere_are_left_to_be_read() -> None:
    ref = BlobRef("a" * 64, 3, "/v1/blobs/x")
    packet = sent("job/j1/res/c", RESULT, rows(outputs=None, outputs_ref=ref))
    batch = Ingest("f", 4096).sort([packet], 0)
    assert [(vehicle, message.outputs_ref) for vehicle, message, _ in batch.by_reference] == [("c", ref)]


def test_a_tensor_that_contradicts_itself_fails_its_rows() -> None:
    bad = Tensor("y", "float", (2, 3), memoryview(b"123"))
    ((event, _),) = Ingest("f", 4096).sort([sent("job/j1/res/c", RESULT, rows(outputs=[bad]))], 0).events
    assert isinstance(event, RowsFailed)
    assert "should have 24 bytes" in event.failure.error


def test_every_refusal_is_counted_by_its_reason() -> None:
    ingest = Ingest("f", 4096)
    good = tele("a", 1, moving=False)
    packets = [
        Sent("iw/v1/f/veh/a/tele", b"\xc1", TELEMETRY.content_type),
        Sent("iw/v1/f/veh/a/tele", good.payload, None),
        Sent("iw/v1/f/veh/a/tele", good.payload, TELEMETRY.content_type.replace("v=1", "v=2")),
        Sent("iw/v1/other/veh/a/tele", good.payload, good.content_type),
        Sent("iw/v1/f/veh/a/task", good.payload, good.content_type),
        Sent("nonsense", good.payload, good.content_type),
        Sent("iw/v1/f/veh/a/tele", b"x" * 4097, good.content_type),
        sent("job/other/res/c", RESULT, rows()),
        sent("job/j1/res/c", RESULT, rows(outputs=None)),
    ]
    batch = ingest.sort(packets, 0)
    assert [rejection.packet for rejection in batch.rejected] == packets
    assert (batch.telemetry, batch.events, batch.by_reference) == (None, [], [])
    assert ingest.refusals == {
        "message_malformed": 3,
        "message_wrong_content_type": 1,
        "message_unknown_version": 1,
        "message_foreign_fleet": 1,
        "message_bad_topic": 2,
        "message_oversized": 1,
    }


@given(st.lists(st.tuples(st.sampled_from(["veh/a/tele", "veh/a/state", "veh/a/caps", "job/j/res/a"]), st.binary())))
def test_garbage_never_gets_through_as_anything_but_a_refusal_or_a_valid_message(raw: list[tuple[str, bytes]]) -> None:
    kinds = {"tele": TELEMETRY, "state": STATE, "caps": CAPS, "a": RESULT}
    packets = [Sent(f"iw/v1/f/{topic}", data, kinds[topic.rsplit("/", 1)[1]].content_type) for topic, data in raw]
    batch = Ingest("f", 4096).sort(packets, 0)
    assert len(batch.rejected) + len(batch.events) + len(batch.telemetry_packets) + len(batch.by_reference) == len(raw)


def test_a_snapshot_forgets_what_it_does_not_hold() -> None:
    fleet, ingest = FleetView(), Ingest("f", 1 << 20)

    def tell(*documents: Sent) -> None:
        batch = ingest.sort(documents, 0).telemetry
        assert batch is not None
        fleet.apply(batch)

    def snapshot(seq: int, **signals: object) -> Sent:
        document = Telemetry(1, seq, 0, snapshot=True, signals=Signals(**signals))  # type: ignore[arg-type]
        return sent("veh/v1/tele", TELEMETRY, document)

    def known() -> list[float]:
        return [float(fleet.column[name][0]) for name in ("departure_ms", "charge_percent", "plugged")]

    tell(snapshot(0, departure_ms=5, charge_percent=80.0, plugged=True, refusal="sentry_mode"))
    tell(snapshot(1, charge_percent=70.0))
    np.testing.assert_equal(known(), [np.nan, 70.0, -1.0])
    assert fleet.refusal == [""]
    assert not fleet.unwilling[0]
    tell(tele("v1", 2, departure_ms=6), snapshot(3, plugged=True), tele("v1", 4, charge_percent=60.0))
    np.testing.assert_equal(known(), [np.nan, 60.0, 1.0])
    tell(tele("v1", 5, departure_ms=7))
    np.testing.assert_equal(known(), [7.0, 60.0, 1.0])


def test_what_was_changed_on_its_way_is_refused_however_well_it_reads() -> None:
    ingest = Ingest("f", 4096)
    packets = [
        tele("a", 1, plugged=True),
        sent("veh/a/state", STATE, State(online=True, epoch=9)),
        sent("job/j1/res/a", RESULT, rows()),
    ]
    for packet in packets:
        packet.intact = False
    batch = ingest.sort(packets, now_ms=0)
    assert (batch.telemetry, batch.events, batch.by_reference) == (None, [], [])
    assert [(each.packet, each.vehicle) for each in batch.rejected] == [(packet, "a") for packet in packets]
    assert ingest.refusals == {"message_corrupt": 3}


def test_jobs_leave_nothing_behind() -> None:
    ingest = Ingest("f", 4096)
    packets = [sent(f"job/j{n}/res/a", RESULT, rows(job=f"j{n}")) for n in range(100)]
    assert len(ingest.sort([tele("a", 1, plugged=True), *packets], now_ms=0).events) == 100
    assert list(ingest._topics) == ["iw/v1/f/veh/a/tele"]
