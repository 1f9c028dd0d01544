"""Blobs by their SHA-256 in any object store: a folder, S3, GCS or Azure. Never holds a whole blob that is streamed."""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from coordinator.errors import Rejected, ResourceMissing, StoreUnavailable
from fleet_wire.api import BlobView

__all__ = ["ObjectBlobs"]

_UPLOAD_PART_BYTES = 5 << 20  # the least that S3 takes as a part
_UPLOADS_AT_ONCE = 2
_PIECE_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class ObjectBlobs:
    """Content-addressed as `sha256/ab/abcd…`. A put of the store is atomic: a blob is there whole or not at all.

    What is found to have changed since goes to `damaged/abcd…`, for a person to look at: it is served no more.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Blobs in a folder, made when it is missing. Raises StoreUnavailable."""
        with _failures():
            return cls(LocalStore(folder, mkdir=True))

    @classmethod
    def at_url(cls, url: str) -> Self:
        """Blobs at s3://, gs://, az:// and the like; credentials come from the environment. Raises StoreUnavailable.

        file:// is a folder that several coordinators share.
        """
        with _failures():
            return cls(LocalStore.from_url(url, mkdir=True) if url.startswith("file:") else from_url(url))

    async def put(self, chunks: AsyncIterator[bytes], digest: str) -> BlobView:
        """Keep the bytes if they have this digest. Raises Rejected("digest_mismatch"), StoreUnavailable."""
        if not _DIGEST.fullmatch(digest):
            raise Rejected("digest_mismatch", f"{digest[:80]!r} is no SHA-256 in lower-case hexadecimal")
        checked = _CheckedStream(chunks, digest)
        with _failures():
            if await self._is_kept_whole(digest):
                async for _ in checked:
                    pass
            else:
                await obstore.put_async(
                    self._store,
                    _path(digest),
                    aiter(checked),
                    chunk_size=_UPLOAD_PART_BYTES,
                    max_concurrency=_UPLOADS_AT_ONCE,
                )
        return BlobView(digest, checked.size)

    async def size(self, digest: str) -> int:
        """Length in bytes. Raises ResourceMissing."""
        with _failures(digest):
            return (await obstore.head_async(self._store, _path(digest)))["size"]

    async def read(self, digest: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` (excluded); fewer where the blob ends before. Raises ResourceMissing."""
        if start >= stop:
            await self.size(digest)
            return b""
        try:
            with _failures(digest):
                return bytes(await obstore.get_range_async(self._store, _path(digest), start=start, end=stop))
        except StoreUnavailable:
            if start >= await self.size(digest):
                return b""
            raise

    async def stream(self, digest: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """The same in pieces. Raises ResourceMissing at the first piece."""
        stop = min(stop, await self.size(digest))
        with _failures(digest):
            if start < stop:
                found = await obstore.get_async(self._store, _path(digest), options={"range": (start, stop)})
                async for piece in found.stream(_PIECE_BYTES):
                    yield bytes(piece)

    async def whole(self, digest: str) -> bytes:
        """All bytes. Raises ResourceMissing, with "blob_damaged" where they changed and are put aside now."""
        data = await self.read(digest, 0, await self.size(digest))
        if await asyncio.to_thread(_digest_of, data) != digest:
            raise await self._put_aside(digest)
        return data

    async def check(self, digest: str) -> None:
        """The same without the bytes, however many they are."""
        found = hashlib.sha256()
        async for piece in self.stream(digest, 0, await self.size(digest)):
            found.update(piece)
        if found.hexdigest() != digest:
            raise await self._put_aside(digest)

    async def _put_aside(self, digest: str) -> ResourceMissing:
        with _failures(digest):
            await obstore.rename_async(self._store, _path(digest), f"damaged/{digest}")
        _log.warning("blob %s has changed in the store, and was moved to damaged/", digest)
        return ResourceMissing("blob_damaged", f"blob {digest} has changed in the store: send it again")

    async def _is_kept_whole(self, digest: str) -> bool:
        try:
            await self.check(digest)
        except ResourceMissing:
            return False
        return True


class _CheckedStream:
    """Chunks as they come, which end in Rejected, and so in an upload that is given up, when the digest is wrong."""

    def __init__(self, chunks: AsyncIterator[bytes], digest: str) -> None:
        self._chunks = chunks
        self._digest = digest
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        found = hashlib.sha256()
        async for chunk in self._chunks:
            found.update(chunk)
            self.size += len(chunk)
            yield chunk
        if found.hexdigest() != self._digest:
            raise Rejected(
                "digest_mismatch", f"the bytes have SHA-256 {found.hexdigest()}, not {self._digest}: send them again"
            )


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _path(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):  # it may come from a URL, and must not lead out of the folder
        raise ResourceMissing("blob_missing", f"there is no blob {digest[:80]!r}")
    return f"sha256/{digest[:2]}/{digest}"


@contextmanager
def _failures(digest: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ResourceMissing("blob_missing", f"there is no blob {digest}") from None
    except (BaseError, OSError) as error:
        first_line, _, _ = str(error).partition("\n")
        raise StoreUnavailable("blobs_unavailable", f"the blob store: {first_line}") from error
