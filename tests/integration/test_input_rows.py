"""Rows read out of a stored bundle are those that numpy slices out of the arrays, for every element type."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.adapters.input_rows import InputRows
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.errors import Rejected, ResourceMissing
from fleet_wire.bundle import BundleEntry, encode_bundle
from fleet_wire.tensors import DTYPES, Array, Tensor, decode_tensors
from tests.blobs import keep

Ranges = Sequence[tuple[int, int]]


def blobs_in_memory() -> ObjectBlobs:
    return ObjectBlobs.at_url("memory:///")


def assert_same(tensors: list[Tensor], arrays: dict[str, Array], ranges: Ranges) -> None:
    found = decode_tensors(tensors)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        expected = np.concatenate([array[:0], *(array[start:stop] for start, stop in ranges)])
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
        if expected.dtype == object:
            assert found[name].tolist() == expected.tolist()
        else:
            assert found[name].tobytes() == expected.tobytes()


@st.composite
def arrays_of(draw: st.DrawFn, dtype: str, rows: int) -> Array:
    shape = (rows, *draw(st.lists(st.integers(0, 3), max_size=2)))
    count = int(np.prod(shape))
    if dtype == "string":
        array = np.empty(count, dtype=object)
        array[:] = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        return array.reshape(shape)
    size = count * DTYPES[dtype].itemsize
    data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
    if dtype == "bool":
        data = data & 1
    elif dtype in {"uint4", "float4e2m1"}:
        data = data & 0x0F
    elif dtype == "int4":  # ml_dtypes keeps the sign in all eight bits
        data = np.where(data & 8, data | 0xF0, data & 0x0F)
    return data.astype(np.uint8).view(DTYPES[dtype]).reshape(shape)


@given(data=st.data())
def test_any_ranges_equal_slices_for_every_element_type(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    dtypes = data.draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    arrays = {f"input {n}": data.draw(arrays_of(dtype, rows)) for n, dtype in enumerate(dtypes)}
    bounds = st.tuples(st.integers(0, rows), st.integers(0, rows)).map(lambda pair: (min(pair), max(pair)))
    ranges = data.draw(st.lists(bounds, max_size=8))

    async def read() -> list[Tensor]:
        blobs = blobs_in_memory()
        digest = await keep(blobs, encode_bundle(arrays))
        return await InputRows(blobs).gather(digest, ranges)

    assert_same(asyncio.run(read()), arrays, ranges)


@pytest.mark.parametrize("cache_bytes", [0, 3 << 20, 64 << 20])
async def test_rows_on_both_sides_of_a_page_come_whole(cache_bytes: int, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    texts = np.array([f"row {n} " * (n % 40) for n in range(30_000)], dtype=object)
    arrays: dict[str, Array] = {"x": random.random((30_000, 33)), "s": texts, "flag": random.random(30_000) > 0.5}
    blobs = ObjectBlobs.in_folder(tmp_path)
    digest = await keep(blobs, encode_bundle(arrays))
    inputs = InputRows(blobs, cache_bytes)
    starts = random.integers(0, 29_000, 200).tolist()
    scattered = [(start, start + int(random.integers(0, 60))) for start in starts]
    for ranges in (scattered, [(0, 30_000)], [(100, 20_000), (3, 25_000)], [(n, n + 1) for n in range(3900, 4100)]):
        assert_same(await inputs.gather(digest, ranges), arrays, ranges)
    assert_same(await inputs.gather(digest, [(17, 18)]), arrays, [(17, 18)])


async def test_pages_are_read_once_and_only_so_many_are_kept() -> None:
    blobs = CountingBlobs.at_url("memory:///")
    array = np.arange(8 << 20, dtype=np.uint8).reshape(-1, 1024)
    digest = await keep(blobs, encode_bundle({"x": array}))
    inputs = InputRows(blobs, cache_bytes=4 << 20)
    await inputs.open(digest)
    blobs.reads.clear()
    for row in range(1500):
        assert_same(await inputs.gather(digest, [(row, row + 1)]), {"x": array}, [(row, row + 1)])
    assert len(blobs.reads) == 2
    for row in range(0, 8192, 64):
        await inputs.gather(digest, [(row, row + 1)])
    assert len(blobs.reads) == 8
    await inputs.gather(digest, [(0, 1)])  # the longest unused page has made room
    assert len(blobs.reads) == 9


class CountingBlobs(ObjectBlobs):
    """Notes what was read."""

    reads: list[tuple[int, int]] = []  # noqa: RUF012 - one test at a time uses it

    async def read(self, digest: str, start: int, stop: int) -> bytes:
        self.reads.append((start, stop))
        return await super().read(digest, start, stop)


async def test_the_header_tells_what_is_inside_and_is_read_once() -> None:
    blobs = CountingBlobs.at_url("memory:///")
    arrays = {"x": np.zeros((3, 2), dtype=np.float32), "s": np.array(["a", "b", "c"])}
    digest = await keep(blobs, encode_bundle(arrays))
    inputs = InputRows(blobs)
    header = await inputs.open(digest)
    assert [(entry.name, entry.dtype, entry.shape) for entry in header.entries] == [
        ("x", "float", (3, 2)),
        ("s", "string", (3,)),
    ]
    blobs.reads.clear()
    assert await inputs.open(digest) is header
    assert blobs.reads == []


@pytest.mark.parametrize("ranges", [[(0, 4)], [(-1, 1)], [(2, 1)], [(0, 1), (3, 4)], [(0, 2), (2, 1)]])
async def test_rows_that_are_not_there_are_refused(ranges: Ranges) -> None:
    blobs = blobs_in_memory()
    digest = await keep(blobs, encode_bundle({"x": np.zeros(3)}))
    with pytest.raises(Rejected) as refusal:
        await InputRows(blobs).gather(digest, ranges)
    assert refusal.value.code == "rows_out_of_range"


def bundle_of(entries: list[BundleEntry], data: bytes) -> bytes:
    header = msgspec.msgpack.encode(entries)
    head = b"IWTENS1\n" + len(header).to_bytes(8, "little") + header
    return head + bytes(-len(head) % 64) + data


def strings(*offsets: int, text: bytes) -> bytes:
    return np.array(offsets, dtype="<u4").tobytes() + text


ENTRY = BundleEntry("x", "float", (2, 3), 0, 24)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing of the kind",
        b"IWTENS1\n" + bytes([255] * 8),
        b"IWTENS1\n" + (2 << 20).to_bytes(8, "little") + bytes(2 << 20),
        encode_bundle({"x": np.zeros(8)})[:-1],
        bundle_of([ENTRY], bytes(23)),
        bundle_of([BundleEntry("x", "float", (2, 3), 0, 20)], bytes(24)),
        bundle_of([BundleEntry("x", "float", (2, 3), -8, 24)], bytes(24)),
        bundle_of([BundleEntry("x", "float", (-2, -3), 0, 24)], bytes(24)),
        bundle_of([BundleEntry("x", "float", (), 0, 4)], bytes(24)),
        bundle_of([BundleEntry("x", "decimal", (2, 3), 0, 24)], bytes(24)),
        bundle_of([ENTRY, ENTRY], bytes(24)),
        bundle_of([BundleEntry("x", "float", (1 << 40, 0), 0, 0)], b""),
        bundle_of([BundleEntry("s", "string", (2,), 0, 11)], strings(0, 1, 2, text=b"")),
        bundle_of([BundleEntry("s", "string", (2,), 0, 14)], strings(0, 2, 1, text=b"ab")),
        bundle_of([BundleEntry("s", "string", (2,), 0, 14)], strings(1, 1, 2, text=b"ab")),
        bundle_of([BundleEntry("s", "string", (2,), 0, 14)], strings(0, 1, 3, text=b"ab")),
        bundle_of([BundleEntry("s", "string", (2,), 0, 14)], strings(0, 1, 1, text=b"ab")),
    ],
)
async def test_what_is_no_sound_bundle_is_refused(data: bytes) -> None:
    blobs = blobs_in_memory()
    digest = await keep(blobs, data)
    with pytest.raises(Rejected) as refusal:
        await InputRows(blobs).open(digest)
    assert refusal.value.code == "inputs_malformed"


async def test_a_bundle_that_is_not_there_is_missing() -> None:
    with pytest.raises(ResourceMissing):
        await InputRows(blobs_in_memory()).open("0" * 64)
