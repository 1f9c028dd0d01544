"""What the coordinator needs of any blob store, asked of a folder and of a store opened by URL."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import pytest

from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.errors import Rejected, ResourceMissing, StoreUnavailable
from coordinator.ports import BlobStore
from fleet_wire.api import BlobView
from tests.blobs import keep, pieces_of

SIZES = [0, 1, 70_000, 11 << 20]


@pytest.fixture(params=["folder", "url"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return ObjectBlobs.in_folder(tmp_path / "blobs") if request.param == "folder" else ObjectBlobs.at_url("memory:///")


def sample(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def collect(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("size", SIZES)
async def test_streamed_bytes_come_back(blobs: BlobStore, size: int) -> None:
    data = sample(size)
    digest = digest_of(data)
    assert await blobs.put(pieces_of(data), digest) == BlobView(digest, size)
    assert await blobs.size(digest) == size
    assert await blobs.read(digest, 0, size) == data
    assert await collect(blobs.stream(digest, 0, size)) == data


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (65_530, 65_545), (69_999, 70_000), (5, 5), (69_990, 99_999)])
async def test_a_range_is_a_slice(blobs: BlobStore, start: int, stop: int) -> None:
    data = sample(70_000)
    digest = await keep(blobs, data)
    assert await blobs.read(digest, start, stop) == data[start:stop]
    assert await collect(blobs.stream(digest, start, stop)) == data[start:stop]


async def test_a_range_behind_the_end_is_empty(blobs: BlobStore) -> None:
    digest = await keep(blobs, b"short")
    assert await blobs.read(digest, 5, 9) == b""
    assert await collect(blobs.stream(digest, 7, 9)) == b""


@pytest.mark.parametrize("size", SIZES)
async def test_a_wrong_digest_is_refused_and_nothing_is_kept(blobs: BlobStore, size: int, tmp_path: Path) -> None:
    data, claimed = sample(size), digest_of(b"something else")
    with pytest.raises(Rejected) as refusal:
        await blobs.put(pieces_of(data), claimed)
    assert refusal.value.code == "digest_mismatch"
    for digest in (claimed, digest_of(data)):
        with pytest.raises(ResourceMissing):
            await blobs.size(digest)
    assert files_in(tmp_path) == []


async def test_a_blob_that_is_there_still_wants_the_right_bytes(blobs: BlobStore) -> None:
    digest = await keep(blobs, b"original")
    with pytest.raises(Rejected):
        await blobs.put(pieces_of(b"forged"), digest)
    assert await blobs.put(pieces_of(b"original"), digest) == BlobView(digest, 8)
    assert await blobs.read(digest, 0, 8) == b"original"


async def test_a_sender_that_breaks_off_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield sample(8 << 20)
        raise ConnectionResetError("peer is gone")

    digest = digest_of(sample(8 << 20))
    with pytest.raises((ConnectionResetError, StoreUnavailable)):
        await blobs.put(broken(), digest)
    with pytest.raises(ResourceMissing):
        await blobs.size(digest)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "0" * 63 + "G"])
async def test_what_is_not_there_is_missing(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(ResourceMissing):
        await blobs.size(digest)
    for start, stop in ((0, 10), (3, 3)):
        with pytest.raises(ResourceMissing):
            await blobs.read(digest, start, stop)
        with pytest.raises(ResourceMissing):
            await collect(blobs.stream(digest, start, stop))


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "0" * 63 + "G", "0" * 65])
async def test_a_digest_that_is_none_is_refused(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(Rejected):
        await blobs.put(pieces_of(b"data"), digest)


def test_a_place_that_cannot_be_used_is_named() -> None:
    with pytest.raises(StoreUnavailable):
        ObjectBlobs.at_url("nonsense://bucket/prefix")


async def change(blobs: BlobStore, digest: str, data: bytes) -> None:
    """What a bad disk, a power failure, or a wrong object does: the name stays, the bytes are others."""
    await obstore.put_async(blobs._store, f"sha256/{digest[:2]}/{digest}", data)  # type: ignore[attr-defined]


@pytest.mark.parametrize("changed", [b"", b"x" * 69_999, b"x" * 70_000], ids=["empty", "truncated", "another"])
async def test_bytes_that_changed_in_the_store_are_put_aside_and_can_be_put_again(
    blobs: BlobStore, changed: bytes
) -> None:
    data = sample(70_000)
    digest = await keep(blobs, data)
    assert await blobs.whole(digest) == data
    await blobs.check(digest)
    for find_out in (blobs.check, blobs.whole):
        await change(blobs, digest, changed)
        with pytest.raises(ResourceMissing, match="send it again") as damaged:
            await find_out(digest)
        assert damaged.value.code == "blob_damaged"
        with pytest.raises(ResourceMissing) as missing:
            await blobs.size(digest)
        assert missing.value.code == "blob_missing"
        kept = await obstore.get_async(blobs._store, f"damaged/{digest}")  # type: ignore[attr-defined]
        assert bytes(await kept.bytes_async()) == changed
        assert await keep(blobs, data) == digest
        assert await blobs.whole(digest) == data


async def test_the_right_bytes_replace_changed_ones_that_nobody_had_found(blobs: BlobStore) -> None:
    data = sample(70_000)
    digest = await keep(blobs, data)
    await change(blobs, digest, data[:500])
    await keep(blobs, data)
    assert await blobs.read(digest, 0, len(data)) == data


async def test_what_is_not_there_cannot_be_checked(blobs: BlobStore) -> None:
    for find_out in (blobs.check, blobs.whole):
        with pytest.raises(ResourceMissing):
            await find_out("0" * 64)
