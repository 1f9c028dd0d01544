"""Whatever a vehicle sends, ingest never raises, puts each message in one list, and what it refuses changes nothing."""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import Core
from coordinator.events import ModelAdded
from coordinator.ingest import Ingest, Ingested
from fleet_wire.codec import CAPS, RESULT, STATE, TELEMETRY, MessageKind
from fleet_wire.messages import Telemetry
from fleet_wire.signals import SIGNAL_PATHS, Signals
from tests.unit.coordinator_scenes import MODEL

KINDS: dict[str, MessageKind[Any]] = {
    "veh/a/tele": TELEMETRY,
    "veh/b/tele": TELEMETRY,
    "veh/a/state": STATE,
    "veh/a/caps": CAPS,
    "job/j/res/a": RESULT,
}
NOW_MS = 1_760_000_000_000


@dataclass
class Sent:
    topic: str
    payload: bytes
    content_type: str | None
    retain: bool = False
    intact: bool = True


def sent(topic: str, payload: bytes) -> Sent:
    return Sent(f"iw/v1/f/{topic}", payload, KINDS[topic].content_type)


# What MessagePack can say: every type, huge integers, NaN and infinities, maps and lists one inside the other.
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=8)
)
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
numbers = st.integers(0, 1 << 53)
signals = st.dictionaries(st.sampled_from(list(SIGNAL_PATHS.values())), anything | st.booleans() | st.floats(0, 100))
documents = st.fixed_dictionaries(
    {"epoch": numbers | anything, "seq": numbers, "ts_ms": numbers | anything, "snapshot": st.booleans() | anything},
    optional={"signals": signals | anything, "vss": st.text(max_size=16) | anything},
).map(msgspec.msgpack.encode)
sound = st.builds(
    Telemetry,
    numbers,
    numbers,
    numbers,
    st.booleans(),
    st.builds(Signals, plugged=st.booleans(), charge_percent=st.floats(0, 100)),
).map(TELEMETRY.encode)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A document with a few bytes changed, cut off or added."""
    payload = bytearray(draw(sound))
    place = draw(st.integers(0, len(payload)))
    payload[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(payload)


nested = st.sampled_from([b"\x91", b"\x81\xa1x", b"\x81\xa7signals"]).flatmap(
    lambda head: st.integers(1, 20_000).map(lambda depth: head * depth + b"\xc0")
)
payloads = st.binary(max_size=60) | documents | sound | broken() | nested
packets = st.lists(st.builds(sent, st.sampled_from(list(KINDS)), payloads), max_size=12)


def sorted_all(messages: list[Sent]) -> tuple[Ingest, Ingested[Sent]]:
    ingest = Ingest("f", 1 << 17)
    return ingest, ingest.sort(messages, NOW_MS)


@given(packets)
def test_every_message_ends_in_one_list_and_every_refusal_is_counted(messages: list[Sent]) -> None:
    ingest, batch = sorted_all(messages)
    ends = [
        *batch.telemetry_packets,
        *(packet for _, packet in batch.events),
        *(packet for _, _, packet in batch.by_reference),
        *(rejection.packet for rejection in batch.rejected),
    ]
    assert sorted(map(id, ends)) == sorted(map(id, messages))
    assert sum(ingest.refusals.values()) == len(batch.rejected)
    assert len(batch.telemetry_packets) == (0 if batch.telemetry is None else len(batch.telemetry))


@given(packets)
def test_what_is_refused_changes_nothing_and_hurts_no_other(messages: list[Sent]) -> None:
    _, batch = sorted_all(messages)
    refused = {id(rejection.packet) for rejection in batch.rejected}
    _, without = sorted_all([message for message in messages if id(message) not in refused])
    assert without.rejected == []
    assert columns(core_after(batch)) == columns(core_after(without))


@given(packets)
def test_a_vehicle_is_who_its_topic_says(messages: list[Sent]) -> None:
    _, batch = sorted_all(messages)
    assert set(core_after(batch).fleet.ids) <= {"a", "b"}


@given(st.lists(sound, max_size=12))
def test_numbers_in_columns_are_numbers_or_absent(payload: list[bytes]) -> None:
    _, batch = sorted_all([sent("veh/a/tele", each) for each in payload])
    assert batch.rejected == []
    if batch.telemetry is not None:
        assert set(batch.telemetry.signals) == {"plugged", "charge_percent"}
        assert np.isfinite(batch.telemetry.signals["charge_percent"]).all()
        assert set(batch.telemetry.signals["plugged"].tolist()) <= {0, 1}


def core_after(batch: Ingested[Sent]) -> Core:
    """A core that took all of a batch, and that still assigns."""
    core = Core()
    core.handle(ModelAdded(MODEL), NOW_MS)
    if batch.telemetry is not None:
        core.handle(batch.telemetry, NOW_MS)
    for event, _ in batch.events:
        core.handle(event, NOW_MS)
    core.assign(NOW_MS)
    return core


def columns(core: Core) -> dict[str, list[str]]:
    """All that the fleet view holds, NaN equal to itself."""
    return {name: [str(value) for value in core.fleet.live(name).tolist()] for name in core.fleet.column}
