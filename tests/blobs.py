"""Puts bytes into a blob store as a client's upload does."""

import hashlib
from collections.abc import AsyncIterator

from coordinator.ports import BlobStore


async def keep(blobs: BlobStore, data: bytes) -> str:
    """Return the digest under which the bytes are kept."""
    digest = hashlib.sha256(data).hexdigest()
    await blobs.put(pieces_of(data), digest)
    return digest


async def pieces_of(data: bytes, step: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        yield data[start : start + step]
