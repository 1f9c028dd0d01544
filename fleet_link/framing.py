"""Cuts a byte stream into MQTT packets. Never touches a socket, never answers."""

from typing import Final

from mqtt5 import DisconnectReasonCode, Packet, read

__all__ = ["Framer", "StreamFault"]

_HEADER_MAX: Final = 5  # one byte of type and flags, at most four of length


class StreamFault(Exception):
    """The stream can't be read on; `code` is what the DISCONNECT should say."""

    def __init__(self, code: DisconnectReasonCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Framer:
    """Bytes in, whole packets out. After a fault, `fault` says why and nothing more comes out."""

    __slots__ = ("_held", "_max_packet_size", "_needed", "_parts", "fault")

    def __init__(self, max_packet_size: int) -> None:
        self._max_packet_size = max_packet_size
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = 0
        self.fault: StreamFault | None = None

    def feed(self, data: bytes) -> list[Packet]:
        """Return the packets that are complete now; keep the rest for the next call."""
        self._parts.append(data)
        self._held += len(data)
        if self._held < self._needed or self.fault is not None:
            return []
        stream = memoryview(b"".join(self._parts))
        packets: list[Packet] = []
        try:
            rest = self._cut(stream, packets)
        except StreamFault as fault:
            self.fault, rest = fault, b""
        self._parts, self._held = [rest] if rest else [], len(rest)
        return packets

    def _cut(self, stream: memoryview, packets: list[Packet]) -> bytes:
        at, end = 0, len(stream)
        try:
            while at < end:
                packet, size = read(stream[at:])
                if size > self._max_packet_size:
                    raise StreamFault(DisconnectReasonCode.PACKET_TOO_LARGE, f"packet of {size} bytes")
                packets.append(packet)
                at += size
        except IndexError:  # how the codec says that bytes are missing
            pass
        except ValueError as error:
            raise StreamFault(DisconnectReasonCode.MALFORMED_PACKET, str(error)) from None
        rest = bytes(stream[at:])
        self._needed = self._size_to_wait_for(rest)
        return rest

    def _size_to_wait_for(self, rest: bytes) -> int:
        size = _packet_size(rest)
        if size is None:
            return len(rest) + 1
        if size > self._max_packet_size:
            raise StreamFault(DisconnectReasonCode.PACKET_TOO_LARGE, f"packet of {size} bytes announced")
        if size <= len(rest):
            # All its bytes are here and the codec still asks for more: a length inside points past the end.
            raise StreamFault(DisconnectReasonCode.MALFORMED_PACKET, "a field runs past the packet's end")
        return size


def _packet_size(head: bytes) -> int | None:
    """Whole size of the packet that starts here, None while its length field is incomplete (MQTT 5, 1.5.5)."""
    length = 0
    for place, byte in enumerate(head[1:_HEADER_MAX]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return 2 + place + length
    return None
