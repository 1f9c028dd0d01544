"""The session's side of MQTT 5, driven with bytes that the codec writes; no network and no broker."""

import asyncio
from typing import Any

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_link import ConnectOptions, LinkLost, LinkRefused, OutboxFull, PacketTooLarge, Session, Will
from fleet_link.framing import Framer
from fleet_link.inbox import AckOrder, Message
from fleet_link.session import connect

OPTIONS = ConnectOptions("localhost", 1, "vehicle-1")


class Wire(asyncio.Transport):
    """The server's end: keeps what the session writes, in packets."""

    def __init__(self) -> None:
        super().__init__({"socket": self})
        self.framer = Framer(1 << 28)
        self.writes: list[list[Any]] = []
        self.reads = True
        self.is_closed = False

    def setsockopt(self, *args: int) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.writes.append(self.framer.feed(bytes(data)))

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def sent(self, kind: type) -> list[Any]:
        return [packet for write in self.writes for packet in write if isinstance(packet, kind)]

    def goodbye(self) -> int | None:
        codes = [int(packet.reason_code) for packet in self.sent(mqtt5.DisconnectPacket)]
        return codes[-1] if codes else None


def opened(options: ConnectOptions = OPTIONS, **connack: Any) -> tuple[Session, Wire]:
    """Return a session whose CONNECT has been accepted, and its wire."""
    session, wire = Session(options, asyncio.get_running_loop()), Wire()
    session.connection_made(wire)
    session.data_received(mqtt5.ConnAckPacket(**{"server_keep_alive": 0, **connack}).write())
    return session, wire


def publish(number: int, *, topic: str = "t", payload: bytes = b"x", qos: int = 1, **more: Any) -> bytes:
    levels = (mqtt5.QoS.AT_MOST_ONCE, mqtt5.QoS.AT_LEAST_ONCE, mqtt5.QoS.EXACTLY_ONCE)
    return mqtt5.PublishPacket(topic, payload, qos=levels[qos], packet_id=number if qos else None, **more).write()


def message(number: int) -> Message:
    return Message("t", b"", 1, False, None, None, None, [], number)


def ids(pubacks: bytes) -> list[int]:
    return [packet.packet_id for packet in Framer(1 << 20).feed(pubacks) if isinstance(packet, mqtt5.PubAckPacket)]


# -- acknowledgement ----------------------------------------------------------------------------------------------


@given(st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))), st.data())
def test_pubacks_leave_in_the_order_of_receipt_whatever_order_work_ends_in(order: list[int], data: Any) -> None:
    acks, messages = AckOrder(), [message(number + 1) for number in range(len(order))]
    for one in messages:
        acks.received(one)
    left: list[int] = []
    done: set[int] = set()
    while order:
        size = data.draw(st.integers(1, len(order)))
        batch, order = order[:size], order[size:]
        done.update(batch)
        left += ids(acks.acknowledge(messages[n] for n in batch))
        first_open = next((n for n in range(len(messages)) if n not in done), len(messages))
        assert left == list(range(1, first_open + 1))
    assert len(acks) == 0


def test_a_message_of_an_earlier_connection_acknowledges_nothing() -> None:
    acks, old, new = AckOrder(), message(1), message(1)
    acks.received(new)
    assert acks.acknowledge([old]) == b""
    assert ids(acks.acknowledge([new])) == [1]
    assert acks.acknowledge([new]) == b""


async def test_the_pubacks_of_a_batch_are_one_write() -> None:
    session, wire = opened()
    session.data_received(b"".join(publish(number) for number in (7, 8, 9)) + publish(0, qos=0))
    batch = await session.receive()
    wire.writes.clear()
    session.acknowledge(batch)
    assert [[packet.packet_id for packet in write] for write in wire.writes] == [[7, 8, 9]]


# -- framing ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_packets_come_out_whole_however_the_stream_is_cut(payloads: list[bytes], data: Any) -> None:
    stream = b"".join(publish(1, payload=payload) for payload in payloads)
    framer = Framer(1 << 20)
    found: list[Any] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += framer.feed(stream[:size])
        stream = stream[size:]
    assert [packet.payload for packet in found] == payloads
    assert framer.fault is None


@given(st.binary(max_size=200))
def test_garbage_ends_in_a_fault_or_waits_for_more(noise: bytes) -> None:
    framer = Framer(1 << 10)
    framer.feed(noise)
    assert framer.fault is None or int(framer.fault.code) in (0x81, 0x95)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"\x00\x00", 0x81),
        (b"\x30\xff\xff\xff\xff\x01", 0x81),
        (b"\x36\x07\x00\x01a\x00\x01\x00x", 0x81),
        (b"\x30\x02\x00\x05", 0x81),
        (b"\x30\xff\xff\x7f", 0x95),
        (publish(1, payload=bytes(2000)), 0x95),
        (publish(1, qos=2), 0x82),
        (publish(1, topic_alias=1), 0x94),
        (mqtt5.PubRelPacket(1).write(), 0x82),
        (mqtt5.ConnAckPacket().write(), 0x82),
        (mqtt5.AuthPacket().write(), 0x82),
    ],
)
async def test_what_may_not_come_ends_the_connection_with_its_code(stream: bytes, code: int) -> None:
    session, wire = opened(ConnectOptions("localhost", 1, "v", max_packet_size=1024))
    session.data_received(publish(5, payload=b"good") + stream)
    assert (wire.goodbye(), wire.is_closed) == (code, True)
    assert [one.payload for one in await session.receive()] == [b"good"]
    with pytest.raises(LinkLost) as lost:
        await session.receive()
    assert lost.value.code == code


# -- obeying CONNACK ----------------------------------------------------------------------------------------------


async def test_connect_says_what_was_asked_for_and_never_offers_a_topic_alias() -> None:
    will = Will("veh/1/state", b"off", delay_s=5, content_type="state")
    options = ConnectOptions(
        "h",
        1,
        "v",
        clean_start=False,
        session_expiry_s=60,
        keep_alive_s=20,
        receive_max=7,
        will=will,
        username="u",
        password=b"p",
    )
    _, wire = opened(options)
    (asked,) = wire.sent(mqtt5.ConnectPacket)
    assert (asked.client_id, asked.clean_start, asked.session_expiry_interval, asked.keep_alive) == ("v", False, 60, 20)
    assert (asked.receive_max, asked.topic_alias_max, asked.max_packet_size) == (7, 0, 1 << 20)
    assert (asked.username, asked.password) == ("u", b"p")
    assert (asked.will.topic, asked.will.payload, asked.will.retain, asked.will.will_delay_interval) == (
        "veh/1/state",
        b"off",
        True,
        5,
    )


async def test_no_more_is_in_flight_than_the_server_takes() -> None:
    session, wire = opened(receive_max=2)
    answers = [session.publish_soon("t", b"%d" % number) for number in range(5)]
    await asyncio.sleep(0)
    assert [packet.payload for packet in wire.sent(mqtt5.PublishPacket)] == [b"0", b"1"]
    session.data_received(mqtt5.PubAckPacket(1).write())
    await asyncio.sleep(0)
    assert [packet.payload for packet in wire.sent(mqtt5.PublishPacket)] == [b"0", b"1", b"2"]
    assert answers[0].result() == 0
    assert not answers[1].done()


async def test_publishes_of_one_turn_are_one_write() -> None:
    session, wire = opened()
    wire.writes.clear()
    for _ in range(10):
        session.publish_soon("t", b"x")
    await asyncio.sleep(0)
    assert [len(write) for write in wire.writes] == [10]


async def test_limits_of_the_server_are_refused_here() -> None:
    session, wire = opened(max_packet_size=100, max_qos=mqtt5.QoS.AT_MOST_ONCE, retain_available=False)
    with pytest.raises(PacketTooLarge):
        await session.publish("t", bytes(100), qos=0)
    with pytest.raises(LinkRefused, match="QoS 1"):
        await session.publish("t", b"")
    with pytest.raises(LinkRefused, match="retained"):
        await session.publish("t", b"", qos=0, retain=True)
    assert wire.sent(mqtt5.PublishPacket) == []
    assert await session.publish("t", b"fits", qos=0) == 0


async def test_a_message_that_is_too_large_leaves_nothing_behind() -> None:
    session, _ = opened(ConnectOptions("h", 1, "v", outbox_messages=4), max_packet_size=100)
    for _ in range(10):
        with pytest.raises(PacketTooLarge):
            session.publish_soon("t", bytes(100))
    session.publish_soon("t", b"fits")


async def test_the_answer_carries_the_reason_code() -> None:
    session, _ = opened()
    nobody, denied = session.publish_soon("t", b""), session.publish_soon("t", b"")
    await asyncio.sleep(0)
    session.data_received(mqtt5.PubAckPacket(1, reason_code=mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS).write())
    session.data_received(mqtt5.PubAckPacket(2, reason_code=mqtt5.PubAckReasonCode.NOT_AUTHORIZED).write())
    assert await nobody == 0x10
    with pytest.raises(LinkRefused) as refusal:
        await denied
    assert (refusal.value.reason_code, refusal.value.name) == (0x87, "NOT_AUTHORIZED")


async def test_a_refused_subscription_raises() -> None:
    session, _ = opened()
    asking = asyncio.create_task(session.subscribe([("a", 1), ("b", 1)]))
    await asyncio.sleep(0)
    codes = [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE, mqtt5.SubAckReasonCode.NOT_AUTHORIZED]
    session.data_received(mqtt5.SubAckPacket(1, codes).write())
    with pytest.raises(LinkRefused, match="a, b"):
        await asking


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [{"inbox_messages": 10}, {"inbox_bytes": 10_000}])
async def test_a_full_inbox_stops_reading_and_an_emptied_one_goes_on(bound: dict[str, int]) -> None:
    session, wire = opened(ConnectOptions("h", 1, "v", **bound))  # type: ignore[arg-type]
    session.data_received(b"".join(publish(number, payload=bytes(1000)) for number in range(1, 11)))
    assert not wire.reads
    await session.receive(2)
    assert not wire.reads
    await session.receive(4)
    assert wire.reads
    assert len(await session.receive()) == 4


async def test_a_full_outbox_refuses_and_drain_waits_for_room() -> None:
    session, _ = opened(ConnectOptions("h", 1, "v", outbox_messages=10), receive_max=1)
    for _ in range(10):
        session.publish_soon("t", b"")
    with pytest.raises(OutboxFull):
        session.publish_soon("t", b"")
    waiting = asyncio.create_task(session.drain())
    for number in range(1, 9):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.done() == (number > 5)
        session.data_received(mqtt5.PubAckPacket(number).write())
    await waiting


async def test_large_messages_fill_the_outbox_by_their_bytes() -> None:
    session, _ = opened(ConnectOptions("h", 1, "v", outbox_bytes=10_000))
    for _ in range(10):
        session.publish_soon("t", bytes(1000))
    with pytest.raises(OutboxFull):
        session.publish_soon("t", b"")
    await session.drain()
    session.publish_soon("t", b"")


async def test_nothing_is_written_while_the_socket_takes_no_more() -> None:
    session, wire = opened()
    session.pause_writing()
    session.publish_soon("t", b"x")
    await asyncio.sleep(0)
    assert wire.sent(mqtt5.PublishPacket) == []
    session.resume_writing()
    assert len(wire.sent(mqtt5.PublishPacket)) == 1


async def test_packet_ids_go_round_without_meeting_one_in_use() -> None:
    session, wire = opened()
    first = session.publish_soon("t", b"held")
    await asyncio.sleep(0)
    for number in range(2, 66_000):
        session.publish_soon("t", b"")
        await asyncio.sleep(0)
        (last,) = wire.writes.pop()
        assert last.packet_id != 1
        if number > 65_530:
            assert last.packet_id == (number if number <= 65_535 else number - 65_534)
        session.data_received(mqtt5.PubAckPacket(last.packet_id).write())
    assert not first.done()


# -- ending -------------------------------------------------------------------------------------------------------


async def test_everybody_who_waits_learns_why_the_connection_ended() -> None:
    session, _ = opened(receive_max=1)
    flying, queued = session.publish_soon("t", b"1"), session.publish_soon("t", b"2")
    receiving = asyncio.create_task(session.receive())
    asking = asyncio.create_task(session.subscribe([("a", 1)]))
    await asyncio.sleep(0)
    taken_over = mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER)
    session.data_received(taken_over.write())
    for waiting in (flying, queued, receiving, asking):
        with pytest.raises(LinkLost, match="SESSION_TAKEN_OVER") as lost:
            await waiting
        assert lost.value.taken_over
    with pytest.raises(LinkLost):
        session.publish_soon("t", b"")


async def test_acknowledging_after_the_end_does_nothing() -> None:
    session, wire = opened()
    session.data_received(publish(1))
    session.connection_lost(None)
    session.acknowledge(await session.receive())
    assert wire.sent(mqtt5.PubAckPacket) == []


@pytest.mark.parametrize(("with_will", "code"), [(False, 0x00), (True, 0x04)])
async def test_closing_says_goodbye_after_what_was_queued(with_will: bool, code: int) -> None:
    session, wire = opened()
    session.publish_soon("t", b"last", qos=0)
    closing = asyncio.create_task(session.close(with_will=with_will))
    await asyncio.sleep(0)
    session.connection_lost(None)
    await closing
    assert [type(packet).__name__ for write in wire.writes for packet in write] == [
        "ConnectPacket",
        "PublishPacket",
        "DisconnectPacket",
    ]
    assert wire.goodbye() == code
    await session.close()


async def test_a_silent_server_is_given_up_and_a_paused_inbox_is_not_silence() -> None:
    session, wire = opened(ConnectOptions("h", 1, "v", inbox_messages=1), server_keep_alive=10)
    later = asyncio.get_running_loop().time() + 11
    session._loop = FixedClock(later)  # type: ignore[assignment]
    session._is_reading = False
    session._ping()
    assert (len(wire.sent(mqtt5.PingReqPacket)), wire.is_closed) == (1, False)
    session._is_reading = True
    session._ping()
    assert wire.is_closed
    with pytest.raises(LinkLost, match="silent"):
        await session.receive()


class FixedClock:
    """An event loop's clock that stands still; timers are taken and never run."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(3600, callback)


async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_server_that_answers_no_connect_is_unreachable() -> None:
    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Exception, match="no answer in time"):
        await connect(ConnectOptions("127.0.0.1", port, "v", connect_timeout_s=0.05))
    server.close()


# -- checksum -----------------------------------------------------------------------------------------------------


async def test_what_is_published_says_its_checksum_and_what_comes_changed_is_not_intact() -> None:
    session, wire = opened()
    wire.writes.clear()
    session.publish_soon("t", b"rows", user_properties=[("traceparent", "00")])
    await asyncio.sleep(0)
    ((sent,),) = wire.writes
    assert sent.user_properties == [("traceparent", "00"), ("crc32", "0a8bf4a1")]
    for payload, properties in (
        (b"rows", [("traceparent", "00"), ("crc32", "0a8bf4a1")]),
        (b"rowz", [("crc32", "0a8bf4a1")]),
        (b"row", [("crc32", "0a8bf4a1")]),
        (b"rows", [("crc32", "0A8BF4A1")]),
        (b"rows", [("crc32", "0a8bf4a1"), ("crc32", "00000000")]),
        (b"rows", []),
    ):
        session.data_received(publish(1, payload=payload, user_properties=properties))
    received = await session.receive()
    assert [each.intact for each in received] == [True, False, False, False, False, True]
    assert [each.user_properties for each in received] == [[("traceparent", "00")], [], [], [], [], []]
