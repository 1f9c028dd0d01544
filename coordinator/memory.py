"""Keeps what was learned of the cars' availability beyond this process: in a file, and at first from the store.

Not to know is no reason not to work: what can't be read or written is counted, and said once on standard error.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from coordinator.availability import UnreadableState
from coordinator.core import Core
from coordinator.errors import StoreUnavailable
from coordinator.events import PlugHistory
from coordinator.local_time import utc_offsets_ms
from coordinator.ports import SavedState

__all__ = ["AvailabilityMemory"]

_DAY_MS = 24 * 3_600_000
# What a fleet learns in four weeks covers every hour of the week four times; reading more takes long for large fleets.
_HISTORY_DAYS = 28


class AvailabilityMemory:
    """`history` asks the telemetry store for what was heard since a moment."""

    def __init__(self, core: Core, file: SavedState, history: Callable[[int], Awaitable[PlugHistory]]) -> None:
        self._core = core
        self._file = file
        self._history = history

    async def recall(self, now_ms: int) -> None:
        """Go on from the file, and from what the store heard since; to be called before any event."""
        foresight = self._core.foresight
        try:
            data = await asyncio.to_thread(self._file.read)
            if data is not None:
                foresight.restore(data)
        except (UnreadableState, StoreUnavailable) as error:
            self._complain("availability_unreadable", f"what was learned of availability is not used: {error}")
        since_ms = max(now_ms - _HISTORY_DAYS * _DAY_MS, foresight.heard_until_ms())
        try:
            foresight.learn(await self._history(since_ms), utc_offsets_ms)
        except StoreUnavailable as error:
            self._complain("availability_unlearned", f"no history of availability is learned: {error}")

    async def keep_saving(self, every_s: float) -> None:
        """Save now and then until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.save()

    async def save(self) -> None:
        """Save all that was learned."""
        try:
            await asyncio.to_thread(self._file.write, self._core.foresight.to_bytes())
        except StoreUnavailable as error:
            self._complain("availability_unsaved", f"what was learned of availability is not saved: {error}")

    def _complain(self, code: str, detail: str) -> None:
        if not self._core.refusals[code]:
            sys.stderr.write(f"coordinator: {detail}\n")
        self._core.refusals[code] += 1
