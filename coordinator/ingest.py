"""From MQTT messages to events, and telemetry into columns. Pure: identity is stamped here, from the topic; no I/O."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from coordinator.events import (
    BOOLEAN_SIGNALS,
    NUMBER_SIGNALS,
    Event,
    RowsFailed,
    RowsReceived,
    TaskRefused,
    TelemetryBatch,
    VehicleCaps,
    VehicleState,
)
from fleet_wire.api import TensorSpec
from fleet_wire.codec import BEAT, CAPS, RESULT, STATE, TELEMETRY
from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import Beat, Failure, Refusal, Rows, Telemetry
from fleet_wire.signals import SIGNAL_PATHS
from fleet_wire.tensors import Tensor
from fleet_wire.topics import JobTopic, VehicleChannel, VehicleTopic, parse_topic

__all__ = ["Ingest", "Ingested", "Packet", "Rejection", "outputs_event"]

_KEPT_TOPICS = 200_000
_encode = msgspec.msgpack.Encoder().encode
# How each signal stands in a column, and what stands there for a document that does not hold it.
_COLUMN_KINDS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(BOOLEAN_SIGNALS, ("i1", -1)),
    **dict.fromkeys(NUMBER_SIGNALS, ("f8", np.nan)),
    "refusal": ("O", None),
}


class Packet(Protocol):
    """What ingest needs to know of a received PUBLISH."""

    topic: str
    payload: bytes
    retain: bool
    content_type: str | None
    intact: bool


P = TypeVar("P", bound=Packet)


@dataclass(frozen=True, slots=True)
class Rejection(Generic[P]):
    """A message that was refused, who sent it when the topic tells, and why."""

    packet: P
    vehicle: str | None
    error: WireError


@dataclass(slots=True)
class Ingested(Generic[P]):
    """A batch of messages, sorted. Each message stands in exactly one list, so that each is acknowledged once.

    `heard` are the vehicles that spoke just now, and not at some time that the broker remembers.
    """

    telemetry: TelemetryBatch | None = None
    telemetry_packets: list[P] = field(default_factory=list)
    events: list[tuple[Event, P]] = field(default_factory=list)
    by_reference: list[tuple[str, Rows, P]] = field(default_factory=list)
    beats: list[tuple[str, Beat, P]] = field(default_factory=list)
    rejected: list[Rejection[P]] = field(default_factory=list)
    heard: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Ingest:
    """Sorts messages of one fleet; remembers the topics of its vehicles, and counts what it refuses."""

    fleet: str
    max_packet_bytes: int
    refusals: Counter[str] = field(default_factory=Counter)
    _topics: dict[str, VehicleTopic] = field(default_factory=dict)

    def sort(self, packets: Sequence[P], now_ms: int) -> Ingested[P]:
        """Decode messages in their order. What is refused is counted by its reason and changes nothing."""
        sorted_: Ingested[P] = Ingested()
        vehicles: list[str] = []
        documents: list[Telemetry] = []
        for packet in packets:
            topic: VehicleTopic | JobTopic | None = None
            try:
                topic = self._topic(packet.topic)
                self._check_arrived(packet)
                if not packet.retain:
                    sorted_.heard.add(topic.vehicle)
                if isinstance(topic, VehicleTopic) and topic.channel is VehicleChannel.TELE:
                    documents.append(TELEMETRY.decode(packet.payload, packet.content_type))
                    vehicles.append(topic.vehicle)
                    sorted_.telemetry_packets.append(packet)
                else:
                    self._sort_one(topic, packet, sorted_)
            except WireError as error:
                self._refuse(packet, None if topic is None else topic.vehicle, error, sorted_)
        if documents:
            sorted_.telemetry = _batch(vehicles, documents, now_ms)
        return sorted_

    def _refuse(self, packet: P, vehicle: str | None, error: WireError, sorted_: Ingested[P]) -> None:
        self.refusals[f"message_{error.fault.value}"] += 1
        sorted_.rejected.append(Rejection(packet, vehicle, error))

    def _check_arrived(self, packet: P) -> None:
        if not packet.intact:
            raise WireError(WireFault.CORRUPT, f"{len(packet.payload)} bytes on {packet.topic}")
        if len(packet.payload) > self.max_packet_bytes:
            raise WireError(WireFault.OVERSIZED, f"{len(packet.payload)} bytes on {packet.topic}")

    def _topic(self, name: str) -> VehicleTopic | JobTopic:
        topic: VehicleTopic | JobTopic | None = self._topics.get(name)
        if topic is None:
            topic = parse_topic(name)
            if topic.fleet != self.fleet:
                raise WireError(WireFault.FOREIGN_FLEET, topic.fleet)
            if isinstance(topic, JobTopic):  # each job has new ones, so that memory would grow with every job
                return topic
            if len(self._topics) >= _KEPT_TOPICS:
                self._topics.clear()
            self._topics[name] = topic
        return topic

    def _sort_one(self, topic: VehicleTopic | JobTopic, packet: P, sorted_: Ingested[P]) -> None:
        match topic:
            case VehicleTopic(_, vehicle, VehicleChannel.STATE):
                state = STATE.decode(packet.payload, packet.content_type)
                sorted_.events.append((VehicleState(vehicle, state, packet.retain), packet))
            case VehicleTopic(_, vehicle, VehicleChannel.CAPS):
                sorted_.events.append((VehicleCaps(vehicle, CAPS.decode(packet.payload, packet.content_type)), packet))
            case VehicleTopic(_, vehicle, VehicleChannel.BEAT):
                sorted_.beats.append((vehicle, BEAT.decode(packet.payload, packet.content_type), packet))
            case JobTopic(_, job, vehicle):
                self._sort_result(job, vehicle, packet, sorted_)
            case _:
                raise WireError(WireFault.BAD_TOPIC, packet.topic)

    def _sort_result(self, job: str, vehicle: str, packet: P, sorted_: Ingested[P]) -> None:
        result = RESULT.decode(packet.payload, packet.content_type)
        if result.job != job:
            raise WireError(WireFault.MALFORMED, f"job {result.job!r} on the topic of job {job!r}")
        match result:
            case Refusal():
                sorted_.events.append((TaskRefused(vehicle, result), packet))
            case Failure():
                sorted_.events.append((RowsFailed(vehicle, result), packet))
            case Rows(outputs=None, outputs_ref=None):
                raise WireError(WireFault.MALFORMED, "rows without outputs")
            case Rows(outputs=None):
                sorted_.by_reference.append((vehicle, result, packet))
            case Rows():
                sorted_.events.append((outputs_event(vehicle, result, result.outputs or []), packet))


def outputs_event(vehicle: str, rows: Rows, outputs: Sequence[Tensor]) -> Event:
    """The event of rows and their outputs; tensors that contradict themselves make it a failure."""
    try:
        for tensor in outputs:
            tensor.array()
    except WireError as error:
        return RowsFailed(vehicle, Failure(rows.job, rows.epoch, rows.spans, str(error)))
    specs = tuple(TensorSpec(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in outputs)
    return RowsReceived(vehicle, rows, specs, None if rows.outputs is None else _encode(outputs))


def _batch(vehicles: list[str], documents: list[Telemetry], now_ms: int) -> TelemetryBatch:
    signals = _signal_columns(documents)
    refusal = signals.pop("refusal", None)
    return TelemetryBatch(
        vehicle=np.array(vehicles, dtype=object),
        received_ms=np.full(len(documents), now_ms, dtype=np.int64),
        ts_ms=np.array([each.ts_ms for each in documents], dtype=np.int64),
        epoch=np.array([each.epoch for each in documents], dtype=np.int64),
        seq=np.array([each.seq for each in documents], dtype=np.int64),
        snapshot=np.array([each.snapshot for each in documents], dtype=np.bool_),
        refusal=np.full(len(documents), None, dtype=object) if refusal is None else refusal,
        signals=signals,
    )


def _signal_columns(documents: list[Telemetry]) -> dict[str, NDArray[Any]]:
    """The signals that occur, each as a column."""
    columns: dict[str, NDArray[Any]] = {}
    readings = zip(*(msgspec.structs.astuple(each.signals) for each in documents), strict=True)
    for name, values in zip(SIGNAL_PATHS, readings, strict=True):
        absent = values.count(UNSET)
        if absent < len(values):
            kind, blank = _COLUMN_KINDS[name]
            present = [blank if value is UNSET else value for value in values] if absent else values
            columns[name] = np.array(present, dtype=kind)
    return columns
