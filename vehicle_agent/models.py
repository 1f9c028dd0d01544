"""Models on the disk, by digest, within a bound. A file that is there is whole and right; never loads one."""

import asyncio
import os
import re
from pathlib import Path

from fleet_wire.messages import BlobRef
from vehicle_agent.blobs import Blobs
from vehicle_agent.errors import BlobUnavailable

__all__ = ["ModelCache"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}\..+\.part")


class ModelCache:
    """A folder of models, which several agents of one machine may share; over `max_bytes` the least used ones go.

    What was fetched in part counts too, and goes like the others when nobody asks for the rest.
    """

    def __init__(self, folder: Path, owner: str, max_bytes: int, blobs: Blobs) -> None:
        self._folder = folder
        self._owner = owner
        self._max_bytes = max_bytes
        self._blobs = blobs

    def digests(self) -> list[str]:
        """Return what is there, the least recently used first."""
        return [path.name for path in self._by_use() if _DIGEST.fullmatch(path.name)]

    def path(self, digest: str) -> Path:
        """Where a model is, when it is there."""
        return self._folder / digest

    async def obtain(self, ref: BlobRef) -> Path:
        """Return a model's file, fetched if need be; an earlier attempt is resumed. Raise BlobUnavailable."""
        path = self.path(ref.digest)
        if path.exists():
            os.utime(path)
            return path
        if ref.size > self._max_bytes:
            raise BlobUnavailable(f"a model of {ref.size} bytes, where {self._max_bytes} may be kept")
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{ref.digest}.{self._owner}.part")
        with partial.open("a+b") as sink:
            await self._blobs.fetch(ref, sink)
            sink.flush()
            await asyncio.to_thread(os.fsync, sink.fileno())
        partial.replace(path)
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        kept = self._by_use()
        size = sum(_size(path) for path in kept)
        for path in kept:
            if size <= self._max_bytes or path == newest:
                break
            size -= _size(path)
            path.unlink(missing_ok=True)

    def _by_use(self) -> list[Path]:
        found = [path for path in self._folder.glob("*") if _DIGEST.fullmatch(path.name) or _PART.fullmatch(path.name)]
        return sorted(found, key=_used_ns)


def _used_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another agent made room
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
