"""What waits to be sent: packet ids, the server's receive window, and the bounds. Never touches a socket."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["Outbox"]

_PACKET_IDS: Final = 0xFFFF
_WRITE_BYTES: Final = 1 << 18  # what is joined into one write

Answer = asyncio.Future[int]


class Outbox:
    """Publishes in order: queued, then within the server's window in flight, then answered.

    `open` counts what is queued or in flight. A packet's bytes are let go when they are written: a message that is
    unanswered when the connection ends is the caller's to send again, on the next connection.
    """

    __slots__ = (
        "_answers",
        "_in_flight",
        "_last_id",
        "_max_bytes",
        "_max_messages",
        "_queue",
        "_queued_bytes",
        "_window",
    )

    def __init__(self, max_messages: int, max_bytes: int, window: int) -> None:
        self._max_messages = min(max_messages, _PACKET_IDS // 2)  # so that a free packet id is near
        self._max_bytes = max_bytes
        self._window = window
        self._queue: deque[tuple[bytes, Answer, bool]] = deque()
        self._queued_bytes = 0
        self._answers: dict[int, Answer] = {}
        self._in_flight = 0
        self._last_id = 0

    @property
    def is_full(self) -> bool:
        """No more may be put in."""
        return self._open >= self._max_messages or self._queued_bytes >= self._max_bytes

    @property
    def has_room(self) -> bool:
        """Publishers that waited may go on (a low mark at half, so that they come back in bulk)."""
        return self._open * 2 <= self._max_messages and self._queued_bytes * 2 <= self._max_bytes

    @property
    def _open(self) -> int:
        return len(self._queue) + self._in_flight

    def new_id(self) -> int:
        """Return a packet id that nothing unanswered uses."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % _PACKET_IDS + 1
            if packet_id not in self._answers:
                self._last_id = packet_id
                return packet_id

    def expect(self, packet_id: int, answer: Answer) -> None:
        """Hold an id for an answer to come."""
        self._answers[packet_id] = answer

    def put(self, packet: bytes, answer: Answer, *, in_window: bool) -> None:
        """Queue a publish; `in_window` says that it counts in the server's window (QoS 1)."""
        self._queue.append((packet, answer, in_window))
        self._queued_bytes += len(packet)

    def writes(self, may_write: Callable[[], bool]) -> Iterator[bytes]:
        """Joined packets that may be sent now, asking before each write."""
        while self._queue and may_write():
            joined = b"".join(self._next_packets())
            if not joined:
                return
            yield joined

    def _next_packets(self) -> Iterator[bytes]:
        size = 0
        while self._queue and size < _WRITE_BYTES:
            packet, answer, in_window = self._queue[0]
            if in_window and self._in_flight >= self._window:
                return
            self._queue.popleft()
            self._queued_bytes -= len(packet)
            size += len(packet)
            if in_window:
                self._in_flight += 1
            elif not answer.done():
                answer.set_result(0)  # QoS 0: written is all there is to know
            yield packet

    def answered(self, packet_id: int, *, in_window: bool) -> Answer | None:
        """Take the answer that a PUBACK (in the window) or a SUBACK settles; None when nobody waits for that id."""
        answer = self._answers.pop(packet_id, None)
        if answer is not None and in_window:
            self._in_flight -= 1
        return answer

    def abandon(self) -> list[Answer]:
        """Empty everything and return all that will never be answered."""
        left = [*self._answers.values(), *(answer for _, answer, in_window in self._queue if not in_window)]
        self._answers.clear()
        self._queue.clear()
        self._queued_bytes = self._in_flight = 0
        return left
