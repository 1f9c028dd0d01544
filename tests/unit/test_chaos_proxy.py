"""The proxy of the fault harness reads MQTT as the codec writes it, and what it changes stays well formed."""

import asyncio
from random import Random

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_link.framing import Framer
from fleet_link.inbox import Message, checksum
from tests.system.chaos.plan import Fault, Kind
from tests.system.chaos.proxy import Packet, PacketStream, ProxiedLink


def publish(payload: bytes, packet_id: int = 7) -> bytes:
    properties = [("traceparent", "00"), checksum(payload)]
    return mqtt5.PublishPacket(
        "iw/v1/f/veh/car/tele", payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=packet_id, user_properties=properties
    ).write()


@given(st.lists(st.binary(max_size=300), max_size=5), st.data())
def test_packets_come_out_whole_however_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(publish(payload, number + 1) for number, payload in enumerate(payloads))
    packets, found = PacketStream(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += packets.feed(stream[:size])
        stream = stream[size:]
    assert [(each.topic, each.payload, each.packet_id, each.qos, each.is_intact) for each in found] == [
        ("iw/v1/f/veh/car/tele", payload, number + 1, 1, True) for number, payload in enumerate(payloads)
    ]


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=300))
def test_another_payload_is_in_a_packet_that_is_well_formed_and_not_intact(sent: bytes, came: bytes) -> None:
    packet = Packet(publish(sent)).with_payload(came)
    (read,) = Framer(1 << 20).feed(packet.data)
    assert isinstance(read, mqtt5.PublishPacket)
    assert (read.payload, read.packet_id) == (came, 7)
    assert Message.of(read).intact == packet.is_intact == (sent == came)


def test_pubacks_say_whether_a_message_was_taken() -> None:
    codes = (
        mqtt5.PubAckReasonCode.SUCCESS,
        mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS,
        mqtt5.PubAckReasonCode.QUOTA_EXCEEDED,
    )
    answers = [Packet(mqtt5.PubAckPacket(9, reason_code=code).write()) for code in codes]
    assert [(answer.packet_id, answer.is_taken) for answer in answers] == [(9, True), (9, True), (9, False)]


async def test_faults_of_messages_hold_for_as_many_as_they_say() -> None:
    link = ProxiedLink("car/broker", 0, Random(1), mqtt=True)
    await link.suffer(Fault(0.0, Kind.DUPLICATE, "car/broker", amount=2, direction="up"))
    due = [link.next_fault(direction) for direction in ("down", "up", "up", "up")]
    assert [each and each.kind for each in due] == [None, Kind.DUPLICATE, Kind.DUPLICATE, None]


async def test_a_fault_that_meets_no_message_lapses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.system.chaos.proxy._LAPSE_S", 0.01)
    link = ProxiedLink("car/broker", 0, Random(1), mqtt=True)
    await link.suffer(Fault(0.0, Kind.CORRUPT, "car/broker", amount=2, direction="up"))
    async with asyncio.timeout(30):
        while link._due["up"]:  # noqa: ASYNC110 - the clock sets it
            await asyncio.sleep(0.01)
    assert link.next_fault("up") is None
