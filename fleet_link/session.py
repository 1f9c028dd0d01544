"""One MQTT 5 connection as an asyncio session over the `mqtt5` codec. Knows no topic and no message of ours,
never reconnects and keeps nothing from one connection to the next: both are the caller's.

The codec's enumerations are declared as IntEnum and are none: they compare equal to an int, but do not order or
hash. So they become int where a packet enters.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import Final, cast

import mqtt5
from mqtt5 import DisconnectReasonCode, QoS

from fleet_link.errors import LinkLost, LinkRefused, LinkUnreachable, OutboxFull, PacketTooLarge
from fleet_link.framing import Framer
from fleet_link.inbox import AckOrder, Inbox, Message, checksum
from fleet_link.options import ConnectOptions, ServerLimits, Will
from fleet_link.outbox import Outbox

__all__ = ["Session", "connect"]

_QOS: Final = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE)
_REFUSAL: Final = 0x80  # reason codes from here on are failures (MQTT 5, 2.4)
_CLOSE_S: Final = 2.0
_WRITE_BUFFER_BYTES: Final = 1 << 20


async def connect(options: ConnectOptions) -> "Session":
    """Open a connection and wait for CONNACK. Raise LinkUnreachable or LinkRefused."""
    loop = asyncio.get_running_loop()
    session = Session(options, loop)
    try:
        async with asyncio.timeout(options.connect_timeout_s):
            await loop.create_connection(lambda: session, options.host, options.port, ssl=options.tls)
            await session.opened
    except (OSError, LinkLost) as error:  # TimeoutError and every TLS error are OSError
        session.abort()
        what = str(error) or "no answer in time"
        raise LinkUnreachable(f"{options.host}:{options.port}: {what}") from error
    except BaseException:
        session.abort()
        raise
    return session


class Session(asyncio.Protocol):
    """An open connection. Made by `connect`; one task may receive, any number may publish.

    The methods of asyncio.Protocol (`data_received` and its like) are for the event loop alone. `bytes_moved` counts
    what was sent and received.
    """

    server: ServerLimits

    def __init__(self, options: ConnectOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.opened: asyncio.Future[None] = loop.create_future()
        self.bytes_moved = 0
        self._options = options
        self._loop = loop
        self._framer = Framer(options.max_packet_size)
        self._inbox = Inbox(options.inbox_messages, options.inbox_bytes)
        self._unacknowledged = AckOrder()
        self._outbox = Outbox(options.outbox_messages, options.outbox_bytes, window=1)
        self._transport: asyncio.Transport | None = None
        self._closed: LinkLost | None = None
        self._gone = asyncio.Event()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._may_write = True
        self._flush_due = False
        self._is_reading = True
        self._heard_at_s = 0.0
        self._keep_alive: asyncio.TimerHandle | None = None

    # -- receiving ------------------------------------------------------------------------------------------------

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to (filter, highest QoS) pairs. Raise LinkRefused when the server refuses one of them."""
        self._check_open()
        packet_id = self._outbox.new_id()
        answer = self._loop.create_future()
        self._outbox.expect(packet_id, answer)
        # So that only what the server had stored is marked as retained, and not what is said now.
        wanted = [mqtt5.TopicFilter(pattern, max_qos=_QOS[qos], retain_as_published=False) for pattern, qos in filters]
        self._write(mqtt5.SubscribePacket(packet_id, wanted).write())
        code = await answer
        if code >= _REFUSAL:
            what = f"subscription to {', '.join(pattern for pattern, _ in filters)}"
            raise LinkRefused(code, mqtt5.SubAckReasonCode(code).name, what)

    async def receive(self, max_messages: int = 4096) -> list[Message]:
        """Return all messages that wait, at least one.

        Raise LinkLost once the connection has ended and none is left.
        """
        while not self._inbox:
            self._check_open()
            self._arrived.clear()
            await self._arrived.wait()
        messages = self._inbox.take(max_messages)
        if not self._is_reading and self._inbox.has_room:
            self._read_on()
        return messages

    def acknowledge(self, messages: Iterable[Message]) -> None:
        """Acknowledge messages in any order, at any time; after the connection has ended it does nothing.

        The PUBACKs leave in the order of receipt, in one write, each as soon as no older message is open.
        """
        pubacks = self._unacknowledged.acknowledge(messages)
        if pubacks:
            self._write(pubacks)

    # -- publishing -----------------------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str | None = None,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Publish and wait for the answer: PUBACK's reason code (0, or 0x10 nobody subscribed); 0 at QoS 0.

        Raise PacketTooLarge before anything is sent, LinkRefused for a failing code, LinkLost when the connection
        ended first: then nobody knows whether the message was taken.
        """
        await self.drain()
        return await self.publish_soon(
            topic,
            payload,
            qos=qos,
            retain=retain,
            content_type=content_type,
            expiry_s=expiry_s,
            response_topic=response_topic,
            correlation=correlation,
            user_properties=user_properties,
        )

    def publish_soon(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content_type: str | None = None,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> asyncio.Future[int]:
        """Queue a publish and return what `publish` would wait for.

        Await `drain` before each call: without room it raises OutboxFull.

        Messages leave in the order of the calls. A future that nobody awaits stays silent about its error.
        """
        self._check_open()
        if self._outbox.is_full:
            raise OutboxFull("await drain() before publishing on")
        self._check_offered(qos, retain=retain)
        packet_id = self._outbox.new_id() if qos else None
        packet = mqtt5.PublishPacket(
            topic,
            payload,
            qos=_QOS[qos],
            retain=retain,
            packet_id=packet_id,
            message_expiry_interval=expiry_s,
            content_type=content_type,
            response_topic=response_topic,
            correlation_data=correlation,
            user_properties=[*user_properties, checksum(payload)],
        ).write()
        if len(packet) > self.server.max_packet_size:
            raise PacketTooLarge(len(packet), self.server.max_packet_size)
        answer = self._loop.create_future()
        if packet_id is not None:
            self._outbox.expect(packet_id, answer)
        self._outbox.put(packet, answer, in_window=qos > 0)
        self._flush_soon()
        return answer

    async def drain(self) -> None:
        """Wait until `publish_soon` has room. Raise LinkLost when the connection has ended."""
        self._check_open()
        while self._outbox.is_full:
            self._room.clear()
            await self._room.wait()
            self._check_open()

    # -- ending ---------------------------------------------------------------------------------------------------

    async def close(self, *, with_will: bool = False) -> None:
        """Say goodbye and close; never raises. `with_will` asks the server to publish the Will all the same."""
        if self._closed is None:
            self._flush()
            code = (
                DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
                if with_will
                else DisconnectReasonCode.NORMAL_DISCONNECTION
            )
            self._end(LinkLost("closed by us"), say=code)
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._gone.wait()
        except TimeoutError:  # a peer that takes no more bytes would hold the socket open for ever
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once, without goodbye: the server will publish the Will."""
        if self._transport is not None:
            self._transport.abort()

    # -- the event loop's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        # With Nagle's algorithm a request and its reply take some 40 ms a hop.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._write(_connect_packet(self._options))

    def data_received(self, data: bytes) -> None:
        """Take all packets that are complete; one wake-up for all messages among them."""
        self._heard_at_s = self._loop.time()
        self.bytes_moved += len(data)
        for packet in self._framer.feed(data):
            if type(packet) is mqtt5.PublishPacket:
                self._on_publish(packet)
            else:
                self._on_control(packet)
        if self._framer.fault is not None:
            self._break(self._framer.fault.code, str(self._framer.fault))
        if self._inbox:
            self._arrived.set()
            if self._inbox.is_full:
                self._pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give everybody who waits the reason."""
        self._end(LinkLost(str(exc) if exc else "the server closed the connection"))
        self._gone.set()

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._may_write = False

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._may_write = True
        self._flush()

    # -- packets --------------------------------------------------------------------------------------------------

    def _on_publish(self, packet: mqtt5.PublishPacket) -> None:
        if self._closed is not None:
            return
        if packet.topic_alias is not None:  # we announced none
            self._break(DisconnectReasonCode.TOPIC_ALIAS_INVALID, "topic alias")
            return
        if packet.qos == QoS.EXACTLY_ONCE or not self.opened.done():
            self._break(DisconnectReasonCode.PROTOCOL_ERROR, "a message at QoS 2, or before CONNACK")
            return
        message = Message.of(packet)
        if message.qos:
            self._unacknowledged.received(message)
        self._inbox.put(message)

    def _on_control(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.ConnAckPacket() if not self.opened.done():
                self._on_connack(packet)
            case mqtt5.PubAckPacket() if self.opened.done():
                self._on_answer(packet.packet_id, int(packet.reason_code), in_window=True)
            case mqtt5.SubAckPacket() if self.opened.done():
                self._on_answer(packet.packet_id, max(map(int, packet.reason_codes)), in_window=False)
            case mqtt5.PingRespPacket():
                pass  # having heard it is all that counts
            case mqtt5.DisconnectPacket():
                self._end(LinkLost(f"the server disconnected us: {packet.reason_code.name}", int(packet.reason_code)))
            case _:
                self._break(DisconnectReasonCode.PROTOCOL_ERROR, f"unexpected {type(packet).__name__}")

    def _on_connack(self, connack: mqtt5.ConnAckPacket) -> None:
        code = int(connack.reason_code)
        if code >= _REFUSAL:
            refusal = LinkRefused(code, connack.reason_code.name, f"connection of {self._options.client_id}")
            self.opened.set_exception(refusal)
            return
        self.server = ServerLimits.of(connack, self._options)
        self._outbox = Outbox(self._options.outbox_messages, self._options.outbox_bytes, self.server.receive_max)
        self.opened.set_result(None)
        if self.server.keep_alive_s:
            self._ping_later()

    def _on_answer(self, packet_id: int, code: int, *, in_window: bool) -> None:
        answer = self._outbox.answered(packet_id, in_window=in_window)
        if answer is None:
            return
        self._flush_soon()
        if answer.done():  # whoever waited was cancelled
            return
        if in_window and code >= _REFUSAL:
            _fail(answer, LinkRefused(code, mqtt5.PubAckReasonCode(code).name, "message"))
        else:
            answer.set_result(code)

    # -- writing --------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._transport is not None and self._closed is None:
            self.bytes_moved += len(data)
            self._transport.write(data)

    def _flush_soon(self) -> None:
        # Publishes of one turn of the loop leave in one write.
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        for joined in self._outbox.writes(lambda: self._may_write):
            self._write(joined)
        if self._outbox.has_room:
            self._room.set()

    # -- staying alive and ending ---------------------------------------------------------------------------------

    def _pause_reading(self) -> None:
        if self._is_reading and self._transport is not None and self._closed is None:
            self._is_reading = False
            self._transport.pause_reading()

    def _read_on(self) -> None:
        self._is_reading = True
        self._heard_at_s = self._loop.time()
        if self._transport is not None and self._closed is None:
            self._transport.resume_reading()

    def _ping_later(self) -> None:
        self._keep_alive = self._loop.call_later(self.server.keep_alive_s / 2, self._ping)

    def _ping(self) -> None:
        silent_s = self._loop.time() - self._heard_at_s
        if self._is_reading and silent_s > self.server.keep_alive_s:
            self._break(DisconnectReasonCode.UNSPECIFIED_ERROR, f"the server was silent for {silent_s:.0f} s")
            self.abort()
            return
        self._write(mqtt5.PingReqPacket().write())
        self._ping_later()

    def _break(self, code: DisconnectReasonCode, reason: str) -> None:
        self._end(LinkLost(reason, int(code)), say=code)

    def _end(self, reason: LinkLost, *, say: DisconnectReasonCode | None = None) -> None:
        """Close for `reason`; only the first one counts."""
        if self._closed is not None:
            return
        if say is not None:
            self._write(mqtt5.DisconnectPacket(reason_code=say).write())
        self._closed = reason
        if self._keep_alive is not None:
            self._keep_alive.cancel()
        if self._transport is not None:
            self._transport.close()
        if not self.opened.done():
            _fail(self.opened, self._lost())
        for answer in self._outbox.abandon():
            if not answer.done():
                _fail(answer, self._lost())
        self._arrived.set()
        self._room.set()

    def _lost(self) -> LinkLost:
        # A new object each time: one that is raised in several tasks would collect all their tracebacks.
        assert self._closed is not None
        return LinkLost(self._closed.reason, self._closed.code)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._lost()

    def _check_offered(self, qos: int, *, retain: bool) -> None:
        if qos > self.server.max_qos:
            raise LinkRefused(0x9B, "QOS_NOT_SUPPORTED", f"QoS {qos}")
        if retain and not self.server.retain_available:
            raise LinkRefused(0x9A, "RETAIN_NOT_SUPPORTED", "retained message")


def _fail(waiting: asyncio.Future[int] | asyncio.Future[None], error: Exception) -> None:
    waiting.set_exception(error)
    waiting.exception()  # asyncio logs an exception that nobody has looked at


def _connect_packet(options: ConnectOptions) -> bytes:
    return mqtt5.ConnectPacket(
        options.client_id,
        username=options.username,
        password=options.password,
        clean_start=options.clean_start,
        will=_will(options.will) if options.will else None,
        keep_alive=options.keep_alive_s,
        session_expiry_interval=options.session_expiry_s,
        receive_max=options.receive_max,
        topic_alias_max=0,
        max_packet_size=options.max_packet_size,
    ).write()


def _will(will: Will) -> mqtt5.Will:
    return mqtt5.Will(
        will.topic,
        payload=will.payload,
        qos=_QOS[will.qos],
        retain=will.retain,
        content_type=will.content_type,
        will_delay_interval=will.delay_s,
    )
