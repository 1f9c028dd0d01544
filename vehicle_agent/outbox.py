"""Result messages on their way out, over the link or onto the disk. Never blocks and never decides what is sent.

What it promises: a message is forgotten only when the broker has acknowledged it, refused it for good, or the spool's
bound has shed it (counted). While connected, messages are in memory only and written to the spool when the link
breaks or the agent shuts down: an agent that is killed loses what was not acknowledged, and those rows are leased
again. While not connected they go to the spool at once. A message may be delivered twice, and one that was spooled
may come after later ones.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from fleet_link import LinkError, LinkLost, LinkRefused
from fleet_link import Session as Link
from fleet_wire.codec import RESULT
from vehicle_agent.spool import Outgoing, Properties, Spool

__all__ = ["Outbox"]

_NOBODY_SUBSCRIBED = 0x10
_SPOOLED_AT_ONCE = 32


@dataclass(slots=True, eq=False)
class _Entry:
    message: Outgoing
    outlives_link: bool
    spool_id: int | None = None


class Outbox:
    """Keeps at most `window` messages unacknowledged; `on_full` hears when it gets full and when it has room again."""

    def __init__(
        self,
        spool: Spool,
        counters: Counter[str],
        on_full: Callable[[bool], None],
        *,
        window: int = 64,
        max_bytes: int = 8 << 20,
    ) -> None:
        self._spool = spool
        self._counters = counters
        self._on_full = on_full
        self._window = window
        self._max_bytes = max_bytes
        self._link: Link | None = None
        self._waiting: deque[_Entry] = deque()
        self._in_flight: dict[asyncio.Future[int], _Entry] = {}
        self._bytes = 0
        self._is_full = False
        self._from_spool = 0  # messages in memory that are in the spool too
        self._last_spooled = self._spooled_until = 0
        self._settled = asyncio.Event()

    def put(self, topic: str, payload: bytes, *, outlives_link: bool, properties: Properties = ()) -> None:
        """Send a message; without a link spool it, or forget it when it means nothing on another connection."""
        entry = _Entry(Outgoing(topic, payload, properties), outlives_link)
        if self._link is None:
            self._store([entry])
            return
        self._append(entry)
        self._pump()

    def online(self, link: Link) -> None:
        """Send over this link from now on, what was spooled first."""
        self._link = link
        self.retry()

    def retry(self) -> None:
        """Send spooled messages again, as when somebody has come who listens."""
        if self._link is not None and not self._from_spool:
            self._last_spooled, self._spooled_until = 0, self._spool.last_id()
            self._pump()

    def offline(self) -> None:
        """Spool all that is not acknowledged: the link is gone."""
        self._link = None
        kept = [*self._in_flight.values(), *self._waiting]
        self._in_flight.clear()
        self._waiting.clear()
        self._bytes = self._from_spool = 0
        self._store(kept)
        self._report()

    async def flush(self) -> None:
        """Wait until nothing is in memory; when the link breaks, that is soon."""
        while self._waiting or self._in_flight:
            self._settled.clear()
            await self._settled.wait()

    def _store(self, entries: list[_Entry]) -> None:
        kept = [each.message for each in entries if each.outlives_link and each.spool_id is None]
        if kept:
            self._spool.put(kept)

    def _append(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._bytes += len(entry.message.payload)

    def _pump(self) -> None:
        """Hand messages to the link while the window is open."""
        self._refill()
        while self._link is not None and self._waiting and len(self._in_flight) < self._window:
            entry = self._waiting.popleft()
            try:
                answer = self._link.publish_soon(
                    entry.message.topic,
                    entry.message.payload,
                    content_type=RESULT.content_type,
                    user_properties=entry.message.properties,
                )
            except LinkLost:
                self._waiting.appendleft(entry)  # whoever receives on the link learns of it and calls `offline`
                break
            except LinkError:  # it will never fit
                self._counters["result_unsendable"] += 1
                self._forget(entry)
                continue
            self._in_flight[answer] = entry
            answer.add_done_callback(self._answered)
        self._report()

    def _refill(self) -> None:
        """Take spooled messages into memory, some at a time; those spooled since `retry` wait for the next one."""
        if self._link is None or self._from_spool or self._last_spooled >= self._spooled_until:
            return
        for message_id, message in self._spool.between(self._last_spooled, self._spooled_until, _SPOOLED_AT_ONCE):
            self._last_spooled = message_id
            self._from_spool += 1
            self._append(_Entry(message, True, message_id))
        if not self._from_spool:
            self._last_spooled = self._spooled_until

    def _answered(self, answer: asyncio.Future[int]) -> None:
        entry = self._in_flight.pop(answer, None)
        if entry is None:  # it was spooled when the link broke
            return
        if answer.cancelled() or isinstance(answer.exception(), LinkLost):
            self._in_flight[answer] = entry  # whether it was taken nobody knows: `offline` will spool it
            return
        if isinstance(answer.exception(), LinkRefused):
            self._counters["result_refused"] += 1
            self._forget(entry)
        elif answer.result() == _NOBODY_SUBSCRIBED:
            self._counters["result_unheard"] += 1
            self._keep_for_later(entry)
        else:
            self._forget(entry)
        self._pump()

    def _forget(self, entry: _Entry) -> None:
        self._bytes -= len(entry.message.payload)
        if entry.spool_id is not None:
            self._from_spool -= 1
            self._spool.remove(entry.spool_id)

    def _keep_for_later(self, entry: _Entry) -> None:
        """Spool a message that nobody heard; `retry` sends it."""
        self._bytes -= len(entry.message.payload)
        if entry.spool_id is not None:
            self._from_spool -= 1
        self._store([entry])

    def _report(self) -> None:
        is_full = self._bytes >= self._max_bytes or (self._is_full and self._bytes * 2 > self._max_bytes)
        if is_full != self._is_full:
            self._is_full = is_full
            self._on_full(is_full)
        if not self._waiting and not self._in_flight:
            self._settled.set()
