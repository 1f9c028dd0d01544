"""A TCP proxy on loopback whose connections can be cut, slowed, stalled and swallowed, and whose MQTT messages can be
changed on the way. It remembers which messages a client acknowledged. Never decides when something goes wrong.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Final
from zlib import crc32

from tests.system.chaos.plan import Fault, Kind

__all__ = ["Acknowledged", "Packet", "PacketStream", "ProxiedLink"]

_PUBLISH: Final = 3
_PUBACK: Final = 4
_REFUSAL: Final = 0x80
_READ_BYTES: Final = 1 << 16
_LAPSE_S: Final = 5.0
_RESET: Final = struct.pack("ii", 1, 0)


class Packet:
    """One MQTT packet as bytes, and what a PUBLISH consists of."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.kind = data[0] >> 4
        self.body = _length(data, 1)[1]

    @property
    def qos(self) -> int:
        return self.data[0] >> 1 & 3

    @property
    def topic(self) -> str:
        (size,) = struct.unpack_from(">H", self.data, self.body)
        return self.data[self.body + 2 : self.body + 2 + size].decode()

    @property
    def packet_id(self) -> int:
        """Of a PUBLISH at QoS 1, or of a PUBACK."""
        place = self.body + 2 + len(self.topic.encode()) if self.kind == _PUBLISH else self.body
        return int(struct.unpack_from(">H", self.data, place)[0])

    @property
    def is_taken(self) -> bool:
        """Whether a PUBACK says that the message was taken."""
        return len(self.data) < self.body + 3 or self.data[self.body + 2] < _REFUSAL

    @property
    def is_intact(self) -> bool:
        """Whether a PUBLISH has the checksum that it says, if it says one."""
        head = self.data[self.body : self._payload_at]
        return b"crc32" not in head or f"{crc32(self.payload):08x}".encode() in head

    @property
    def payload(self) -> bytes:
        return self.data[self._payload_at :]

    @property
    def _payload_at(self) -> int:
        place = self.body + 2 + len(self.topic.encode()) + (2 if self.qos else 0)
        size, place = _length(self.data, place)
        return place + size

    def with_payload(self, payload: bytes) -> "Packet":
        """The same PUBLISH with another payload, well formed."""
        rest = self.data[self.body : self._payload_at] + payload
        return Packet(self.data[:1] + _length_bytes(len(rest)) + rest)


def _length(data: bytes | bytearray, place: int) -> tuple[int, int]:
    """A variable byte integer and where it ends; ValueError while it is not all there."""
    value = 0
    for shift in range(0, 28, 7):
        if place >= len(data):
            raise ValueError("more to come")
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ConnectionError("no length of MQTT")


def _length_bytes(value: int) -> bytes:
    data = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        data.append(low | (0x80 if value else 0))
        if not value:
            return bytes(data)


class PacketStream:
    """Bytes in, whole packets out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        self._buffer += data
        while len(self._buffer) > 1:
            try:
                size, place = _length(self._buffer, 1)
            except ValueError:
                return
            if len(self._buffer) < place + size:
                return
            yield Packet(bytes(self._buffer[: place + size]))
            del self._buffer[: place + size]


class Acknowledged:
    """A message that the client behind a link took: topic and payload as they came to it."""

    __slots__ = ("payload", "topic")

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic = topic
        self.payload = payload


class ProxiedLink:
    """A way to `port` on loopback. Message faults hold for the next PUBLISH packets of their direction."""

    def __init__(self, name: str, port: int, rng: Random, *, mqtt: bool) -> None:
        self.name = name
        self.port = 0
        self.acknowledged: list[Acknowledged] = []
        self._target = port
        self._rng = rng
        self._mqtt = mqtt
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_cut = self.swallows = False
        self.delay_s = 0.0
        self.passes = asyncio.Event()
        self.passes.set()
        self._due: dict[str, deque[Fault]] = {"up": deque(), "down": deque()}

    async def open(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more and end every connection."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def suffer(self, fault: Fault) -> None:
        """Let the link be as `fault` says, for as long as it says."""
        match fault.kind:
            case Kind.CUT:
                self.is_cut = True
                self.reset()
                await asyncio.sleep(fault.for_s)
                self.is_cut = False
            case Kind.DELAY:
                self.delay_s = fault.amount / 1000
                await asyncio.sleep(fault.for_s)
                self.delay_s = 0.0
            case Kind.LOSS:
                self.passes.clear()
                await asyncio.sleep(fault.for_s)
                self.passes.set()
                self.reset()
            case Kind.HALF_OPEN:
                self.swallows = True
                await asyncio.sleep(fault.for_s)
                self.swallows = False
                self.reset()
            case _:
                self._due[fault.direction].extend([fault] * fault.amount)
                asyncio.get_running_loop().call_later(_LAPSE_S, self._lapse, fault)

    def _lapse(self, fault: Fault) -> None:
        """What has met no message never happens: a car without work says little, and may be needed for some."""
        due = self._due[fault.direction]
        self._due[fault.direction] = deque(each for each in due if each is not fault)

    def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            connection.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            if self.is_cut:
                return
            there, onward = await asyncio.open_connection("127.0.0.1", self._target)
            connection.writers.append(onward)
            for each in connection.writers:
                each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(connection.pump(reader, onward, "up"))
                pumps.create_task(connection.pump(there, writer, "down"))
        except* (OSError, _Ended):
            pass
        finally:
            connection.reset()
            self._connections.discard(connection)
            self._tasks.discard(task)

    def next_fault(self, direction: str) -> Fault | None:
        """What is to be done to the next PUBLISH."""
        due = self._due[direction]
        if not due:
            return None
        return due.popleft()

    def remember(self, message: Packet) -> None:
        """Keep a message that the client has acknowledged."""
        self.acknowledged.append(Acknowledged(message.topic, message.payload))

    @property
    def random(self) -> Random:
        return self._rng

    @property
    def is_mqtt(self) -> bool:
        return self._mqtt


class _Ended(Exception):
    """One side closed: both are closed."""


class _Connection:
    def __init__(self, link: ProxiedLink, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self._link = link
        self._open: dict[int, Packet] = {}
        self._held: dict[str, Packet] = {}

    def reset(self) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError, ValueError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        packets = PacketStream()
        while data := await reader.read(_READ_BYTES):
            link = self._link
            if link.swallows:
                continue
            if link.delay_s:
                await asyncio.sleep(link.delay_s)
            await link.passes.wait()
            if not link.is_mqtt:
                writer.write(data)
            else:
                for packet in packets.feed(data):
                    for each in self._passed(packet, writer, direction):
                        writer.write(each.data)
                        self._note(each, direction)
            await writer.drain()
        raise _Ended

    def _note(self, packet: Packet, direction: str) -> None:
        """Remember what the client acknowledges, as it came to it."""
        if direction == "down" and packet.kind == _PUBLISH and packet.qos:
            self._open[packet.packet_id] = packet
        elif direction == "up" and packet.kind == _PUBACK and packet.is_taken:
            message = self._open.pop(packet.packet_id, None)
            if message is not None and message.is_intact:  # others were refused, and told so
                self._link.remember(message)

    def _passed(self, packet: Packet, writer: asyncio.StreamWriter, direction: str) -> list[Packet]:
        """What goes on in place of this packet."""
        if packet.kind != _PUBLISH:
            return [packet]
        held = self._held.get(direction)
        if held is not None and held.topic != packet.topic:
            del self._held[direction]
            return [packet, held]
        fault = self._link.next_fault(direction)
        if fault is None:
            return [packet]
        rng, payload = self._link.random, packet.payload
        match fault.kind:
            case Kind.DUPLICATE:
                return [packet, packet]
            case Kind.REORDER if held is None:
                self._held[direction] = packet
                asyncio.get_running_loop().call_later(1.0, self._release, packet, writer, direction)
                return []
            case Kind.HOLD:
                asyncio.get_running_loop().call_later(fault.for_s, self._write_late, packet, writer, direction)
                return []
            case Kind.TRUNCATE if payload:
                return [packet.with_payload(payload[: rng.randrange(len(payload))])]
            case Kind.CORRUPT if payload:
                return [packet.with_payload(_corrupted(payload, rng))]
            case Kind.BREAK:
                return [_Broken(packet.data)]
        return [packet]

    def _release(self, packet: Packet, writer: asyncio.StreamWriter, direction: str) -> None:
        """Nothing of another topic came: send it all the same."""
        if self._held.get(direction) is packet:
            del self._held[direction]
            self._write_late(packet, writer, direction)

    def _write_late(self, packet: Packet, writer: asyncio.StreamWriter, direction: str) -> None:
        if not writer.transport.is_closing() and not self._link.swallows:
            writer.write(packet.data)
            self._note(packet, direction)


class _Broken(Packet):
    """A PUBLISH whose length is not its own, so that what follows is read as what it is not."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data[:-1]
        self.kind = 0


def _corrupted(payload: bytes, rng: Random) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
    return bytes(changed)


Clock = Callable[[], float]
