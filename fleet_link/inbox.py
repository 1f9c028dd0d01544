"""Messages that came in, and the order in which they must be acknowledged. Never touches a socket."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from mqtt5 import PubAckPacket, PublishPacket

__all__ = ["AckOrder", "Inbox", "Message", "checksum"]

_CHECKSUM: Final = "crc32"


def checksum(payload: bytes) -> tuple[str, str]:
    """The user property that tells whether a payload is what was sent: TCP's own check passes some faults."""
    return _CHECKSUM, f"{crc32(payload):08x}"


@dataclass(slots=True, eq=False)
class Message:
    """One PUBLISH as received. `acknowledged` belongs to the session.

    It is `intact` unless its checksum says otherwise, which is not among the `user_properties` any more.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str | None
    response_topic: str | None
    correlation: bytes | None
    user_properties: list[tuple[str, str]]
    packet_id: int | None
    acknowledged: bool = False
    intact: bool = True

    @staticmethod
    def of(packet: PublishPacket) -> "Message":
        """Take over what the codec read, at QoS 0 or 1."""
        packet_id = packet.packet_id
        told = [each for each in packet.user_properties if each[0] == _CHECKSUM]
        return Message(
            packet.topic,
            packet.payload,
            0 if packet_id is None else 1,
            packet.retain,
            packet.content_type,
            packet.response_topic,
            packet.correlation_data,
            [each for each in packet.user_properties if each not in told] if told else packet.user_properties,
            packet_id,
            intact=not told or all(each == checksum(packet.payload) for each in told),
        )


class AckOrder:
    """Lets PUBACKs leave in the order in which the messages came (MQTT-4.6.0-2), whatever order work ends in.

    It looks at the message object, not at its packet id: a message of an earlier connection, or one that is
    acknowledged twice, can't acknowledge another that happens to carry the same id.
    """

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def received(self, message: Message) -> None:
        """Remember a QoS 1 message until it is acknowledged."""
        self._open.append(message)

    def acknowledge(self, messages: Iterable[Message]) -> bytes:
        """Return the PUBACKs that may leave now, joined; those behind an open message wait for it."""
        for message in messages:
            message.acknowledged = True
        waiting, ready = self._open, []
        while waiting and waiting[0].acknowledged:
            packet_id = waiting.popleft().packet_id
            assert packet_id is not None
            ready.append(PubAckPacket(packet_id).write())
        return b"".join(ready)


class Inbox:
    """What waits for the application, bounded in messages and bytes with a low mark at half."""

    __slots__ = ("_bytes", "_max_bytes", "_max_messages", "_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: list[Message] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Reading from the socket should stop."""
        return len(self._messages) >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def has_room(self) -> bool:
        """Reading from the socket may go on."""
        return len(self._messages) * 2 <= self._max_messages and self._bytes * 2 <= self._max_bytes

    def put(self, message: Message) -> None:
        """Add one message; the bound is the reader's to obey."""
        self._messages.append(message)
        self._bytes += len(message.payload)

    def take(self, max_messages: int) -> list[Message]:
        """Remove and return the oldest messages."""
        if len(self._messages) <= max_messages:
            taken, self._messages, self._bytes = self._messages, [], 0
            return taken
        taken = self._messages[:max_messages]
        del self._messages[:max_messages]
        self._bytes -= sum(len(message.payload) for message in taken)
        return taken
