"""Looks at blobs of which a vehicle complained, so that no job waits for bytes that nobody has. Never mends one."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Final, Protocol

from coordinator.commands import CheckBlob
from coordinator.errors import ResourceMissing, StoreUnavailable
from coordinator.events import BlobLost
from coordinator.ports import BlobStore

__all__ = ["BlobWatch"]

_TRUSTED_S: Final = 60.0  # a large model takes a while to read, and a fleet may complain of its own bad link


class Lost(Protocol):
    """Takes what was found out."""

    def __call__(self, event: BlobLost) -> None: ...


class BlobWatch:
    """Answers `CheckBlob`, one after the other: each blob once, however many ask, and a right one only now and then."""

    def __init__(self, blobs: BlobStore, lost: Lost) -> None:
        self.counters: Counter[str] = Counter()
        self._blobs = blobs
        self._lost = lost
        self._waiting: dict[str, None] = {}
        self._right_s: dict[str, float] = {}
        self._wake = asyncio.Event()

    def put(self, commands: Sequence[CheckBlob]) -> None:
        """Queue blobs; as many as running jobs have at the most."""
        self._waiting.update(dict.fromkeys(command.digest for command in commands))
        self._wake.set()

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                digest = next(iter(self._waiting))
                await self._check(digest)
                del self._waiting[digest]

    async def _check(self, digest: str) -> None:
        now_s = monotonic()
        self._right_s = {each: at_s for each, at_s in self._right_s.items() if now_s < at_s + _TRUSTED_S}
        if digest in self._right_s:
            return
        try:
            await self._blobs.check(digest)
        except ResourceMissing as error:
            self.counters[error.code] += 1
            self._lost(BlobLost(digest, error.detail))
        except StoreUnavailable as error:
            self.counters[error.code] += 1  # somebody will complain again
        else:
            self._right_s[digest] = monotonic()
