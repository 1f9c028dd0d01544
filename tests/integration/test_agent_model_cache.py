"""Models and other blobs over a real HTTP server: resumed, checked by digest, kept within a bound."""

import hashlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from fleet_wire.messages import BlobRef
from tests.integration.blob_server import BlobServer, serve_blobs
from vehicle_agent import blobs as blobs_module
from vehicle_agent.blobs import Blobs
from vehicle_agent.errors import BlobUnavailable
from vehicle_agent.models import ModelCache

DATA = random.Random(3).randbytes(100_000)
COUNTERS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "_FIRST_WAIT_S", 0.001)
    COUNTERS.clear()


@pytest.fixture
def server() -> Iterator[BlobServer]:
    with serve_blobs() as server:
        yield server


@pytest.fixture
async def blobs(server: BlobServer) -> AsyncIterator[Blobs]:
    blobs = Blobs(server.url, random.Random(1), COUNTERS)
    yield blobs
    await blobs.close()


def put(server: BlobServer, data: bytes) -> BlobRef:
    digest = hashlib.sha256(data).hexdigest()
    server.blobs[f"/v1/blobs/{digest}"] = data
    return BlobRef(digest, len(data), f"/v1/blobs/{digest}")


async def test_a_model_is_fetched_once(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    ref = put(server, DATA)
    cache = ModelCache(tmp_path / "models", "car", 1 << 20, blobs)
    assert cache.digests() == []
    for _ in range(2):
        path = await cache.obtain(ref)
        assert path.read_bytes() == DATA
    assert server.ranges == [None]
    assert cache.digests() == [ref.digest]
    assert [each.name for each in (tmp_path / "models").iterdir()] == [ref.digest]


async def test_a_broken_transfer_goes_on_where_it_ended(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    ref = put(server, DATA)
    server.cut_after = 30_000
    cache = ModelCache(tmp_path, "car", 1 << 20, blobs)
    assert (await cache.obtain(ref)).read_bytes() == DATA
    assert server.ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


async def test_it_also_goes_on_after_the_agent_was_restarted(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    ref = put(server, DATA)
    server.cut_after = 10_000
    with pytest.raises(BlobUnavailable, match=r"peer closed"):
        await ModelCache(tmp_path, "car", 1 << 20, blobs).obtain(ref)
    server.cut_after, server.ranges = None, []
    assert (await ModelCache(tmp_path, "car", 1 << 20, blobs).obtain(ref)).read_bytes() == DATA
    assert server.ranges == ["bytes=50000-"]


async def test_a_server_without_ranges_is_read_from_the_start(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    ref = put(server, DATA)
    (tmp_path / f"{ref.digest}.car.part").write_bytes(b"x" * 500)
    server.ignore_ranges = True
    assert (await ModelCache(tmp_path, "car", 1 << 20, blobs).obtain(ref)).read_bytes() == DATA


async def test_a_wrong_beginning_is_found_by_the_digest_and_fetched_again(
    server: BlobServer, blobs: Blobs, tmp_path: Path
) -> None:
    ref = put(server, DATA)
    (tmp_path / f"{ref.digest}.car.part").write_bytes(b"x" * 500)
    assert (await ModelCache(tmp_path, "car", 1 << 20, blobs).obtain(ref)).read_bytes() == DATA
    assert server.ranges == ["bytes=500-", None]
    assert COUNTERS == {"blob_digest_mismatch": 1}


@pytest.mark.parametrize("served", [DATA[:-1] + b"x", DATA + b"more"])
async def test_bytes_that_are_not_what_was_promised_are_never_kept(
    server: BlobServer, blobs: Blobs, tmp_path: Path, served: bytes
) -> None:
    ref = put(server, DATA)
    server.blobs[ref.path] = served
    cache = ModelCache(tmp_path, "car", 1 << 20, blobs)
    with pytest.raises(BlobUnavailable, match=r"digest|promised"):
        await cache.obtain(ref)
    assert cache.digests() == []


async def test_a_source_of_wrong_bytes_is_left_alone_for_longer_and_longer(
    server: BlobServer, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(blobs_module, "monotonic", lambda: now_s)
    ref, other = put(server, DATA), put(server, b"other")
    server.blobs[ref.path] = DATA[:-1] + b"x"

    async def refused() -> str:
        with pytest.raises(BlobUnavailable) as error:
            await blobs.fetch(ref, BytesIO())
        return str(error.value)

    for lasts_s in (60, 120, 240):
        server.ranges = []
        assert await refused() == f"{server.url}{ref.path}: the bytes do not have the digest that was promised"
        assert len(server.ranges) == 2
        assert await refused() == (
            f"{server.url}{ref.path}: its bytes did not have SHA-256 {ref.digest}, "
            f"and it is not asked again for {lasts_s} s"
        )
        assert len(server.ranges) == 2
        await blobs.fetch(other, BytesIO())  # the rest of the store is not to blame
        now_s += lasts_s
    assert COUNTERS == {"blob_digest_mismatch": 6, "blob_quarantined": 3}

    server.blobs[ref.path] = DATA
    await blobs.fetch(ref, BytesIO())
    server.blobs[ref.path] = DATA[:-1] + b"x"
    await refused()
    assert "for 60 s" in await refused()


async def test_what_is_not_there_is_not_asked_for_again(server: BlobServer, blobs: Blobs) -> None:
    with pytest.raises(BlobUnavailable, match="HTTP 404"):
        await blobs.fetch(BlobRef("0" * 64, 5, "/v1/blobs/none"), BytesIO())
    assert len(server.ranges) == 1


async def test_a_server_in_trouble_is_asked_again(server: BlobServer, blobs: Blobs) -> None:
    server.status = 503
    with pytest.raises(BlobUnavailable, match="HTTP 503"):
        await blobs.fetch(put(server, DATA), BytesIO())
    assert len(server.ranges) == 5


async def test_without_a_coordinator_there_is_nowhere_to_ask() -> None:
    with pytest.raises(BlobUnavailable, match="no coordinator"):
        await Blobs("", random.Random(1), COUNTERS).fetch(BlobRef("0" * 64, 5, "/v1/blobs/x"), BytesIO())


async def test_the_least_used_models_make_room(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    refs = [put(server, bytes([number]) * 400) for number in range(4)]
    cache = ModelCache(tmp_path, "car", 1000, blobs)
    for place, ref in enumerate(refs[:2]):
        os.utime(await cache.obtain(ref), (place, place))
    await cache.obtain(refs[0])  # used again, so that the other one goes
    await cache.obtain(refs[2])
    assert sorted(cache.digests()) == sorted([refs[0].digest, refs[2].digest])


async def test_parts_that_nobody_asks_for_any_more_make_room(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    part = tmp_path / f"{'0' * 64}.car.part"
    part.write_bytes(bytes(800))
    os.utime(part, (0, 0))
    cache = ModelCache(tmp_path, "car", 1000, blobs)
    await cache.obtain(put(server, bytes(100)))
    assert part.exists()
    assert len(cache.digests()) == 1
    await cache.obtain(put(server, bytes(200)))
    assert not part.exists()
    assert len(cache.digests()) == 2


async def test_a_model_above_the_bound_is_not_fetched(server: BlobServer, blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(BlobUnavailable, match="where 10 may be kept"):
        await ModelCache(tmp_path, "car", 10, blobs).obtain(put(server, DATA))
    assert server.ranges == []


async def test_outputs_are_stored_under_their_digest(server: BlobServer, blobs: Blobs) -> None:
    ref = await blobs.store(DATA)
    assert server.blobs == {ref.path: DATA}
    assert ref.digest == hashlib.sha256(DATA).hexdigest()
    server.status = 413
    with pytest.raises(BlobUnavailable, match="HTTP 413"):
        await blobs.store(DATA)
