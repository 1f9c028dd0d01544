"""Row ranges out of a bundle of inputs that lies in a blob store. Reads in pages and keeps a bounded number of them."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from coordinator.errors import Rejected
from coordinator.ports import BlobStore
from fleet_wire.bundle import PREFIX_BYTES, BundleEntry, BundleHeader, header_length
from fleet_wire.errors import WireError
from fleet_wire.tensors import DTYPES, Tensor, tensor_bytes

__all__ = ["InputRows"]

_PAGE_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_HEADERS = 64
_CHECKED_BYTES = 1 << 30  # of a larger bundle only that it is whole: to read all of it would keep others waiting
_STRING = "string"
_OFFSET = np.dtype("<u4")

Range = tuple[int, int]


class InputRows:
    """Opens bundles and reads rows. A bundle is checked when it is opened; what was read then stays right."""

    def __init__(self, blobs: BlobStore, cache_bytes: int = 64 << 20) -> None:
        self._blobs = blobs
        self._pages_kept = max(1, cache_bytes // _PAGE_BYTES)
        self._pages: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._headers: OrderedDict[str, BundleHeader] = OrderedDict()

    async def open(self, digest: str) -> BundleHeader:
        """Read and check the table of contents. Raises Rejected("inputs_malformed"), ResourceMissing."""
        header = self._headers.get(digest)
        if header is None:
            try:
                header = await self._read_header(digest)
            except WireError as error:
                raise _malformed(error.detail) from None
            self._headers[digest] = header
            if len(self._headers) > _HEADERS:
                self._headers.popitem(last=False)
        return header

    async def gather(self, digest: str, ranges: Sequence[Range]) -> list[Tensor]:
        """Rows of all ranges, one after another, of every tensor. Raises Rejected, ResourceMissing."""
        header = await self.open(digest)
        joined = _joined(ranges)
        count = sum(stop - start for start, stop in joined)
        lowest, highest = min(joined, default=(0, 0))[0], max((stop for _, stop in joined), default=0)
        tensors = []
        for entry in header.entries:
            if lowest < 0 or highest > entry.shape[0]:
                raise Rejected("rows_out_of_range", f"rows {lowest} to {highest} of {entry.shape[0]} were asked for")
            data = await self._gather_entry(digest, header.data_start, entry, joined)
            tensors.append(Tensor(entry.name, entry.dtype, (count, *entry.shape[1:]), memoryview(data)))
        return tensors

    async def _gather_entry(
        self, digest: str, data_start: int, entry: BundleEntry, ranges: Sequence[Range]
    ) -> bytes | bytearray:
        base, elements = data_start + entry.offset, prod(entry.shape[1:])
        if entry.dtype == _STRING:
            return await self._gather_strings(digest, base, prod(entry.shape), elements, ranges)
        if _is_packed(entry.dtype) and elements % 2:
            return await self._gather_packed(digest, base, elements, ranges)
        row_bytes = tensor_bytes(entry.dtype, entry.shape[1:])
        return await self._bytes(digest, [(base + a * row_bytes, base + b * row_bytes) for a, b in ranges])

    async def _gather_packed(self, digest: str, base: int, elements: int, ranges: Sequence[Range]) -> bytes:
        """Rows of half bytes that may begin and end in the middle of a byte."""
        nibbles = []
        for start, stop in ranges:
            first, last = start * elements, stop * elements
            data = await self._bytes(digest, [(base + first // 2, base + (last + 1) // 2)])
            packed = np.frombuffer(data, dtype=np.uint8)
            both = np.stack([packed & 0x0F, packed >> 4], axis=1).reshape(-1)
            nibbles.append(both[first % 2 : first % 2 + last - first])
        flat = np.concatenate([*nibbles, np.zeros(1, dtype=np.uint8)])
        pairs = flat[: len(flat) // 2 * 2].reshape(-1, 2)
        return bytes(pairs[:, 0] | (pairs[:, 1] << 4))

    async def _gather_strings(
        self, digest: str, base: int, count: int, elements: int, ranges: Sequence[Range]
    ) -> bytes | bytearray:
        """Offsets counted anew from 0, then the texts."""
        text_base = base + (count + 1) * _OFFSET.itemsize
        heads: list[NDArray[np.uint32]] = [np.zeros(1, dtype=_OFFSET)]
        texts: list[Range] = []
        length = 0
        for start, stop in ranges:
            offsets = await self._offsets(digest, base, start * elements, stop * elements)
            first, last = int(offsets[0]), int(offsets[-1])
            heads.append(offsets[1:] - _OFFSET.type(first) + _OFFSET.type(length))
            texts.append((text_base + first, text_base + last))
            length += last - first
        head = np.concatenate(heads).tobytes()
        return head + await self._bytes(digest, texts)

    async def _offsets(self, digest: str, base: int, first: int, last: int) -> NDArray[np.uint32]:
        size = _OFFSET.itemsize
        data = await self._bytes(digest, [(base + first * size, base + (last + 1) * size)])
        return np.frombuffer(data, dtype=_OFFSET)

    async def _bytes(self, digest: str, ranges: Sequence[Range]) -> bytes | bytearray:
        """Byte ranges of a blob, one after another: small ones out of pages, large ones straight from the store."""
        if len(ranges) == 1 and ranges[0][1] - ranges[0][0] >= _PAGE_BYTES:
            return await self._blobs.read(digest, *ranges[0])
        whole = bytearray(sum(stop - start for start, stop in ranges))
        filled = 0
        for start, stop in ranges:
            at = start
            while at < stop:
                number, offset = divmod(at, _PAGE_BYTES)
                page = await self._page(digest, number)
                piece = memoryview(page)[offset : offset + stop - at]
                if not piece:
                    raise _malformed("the bundle is shorter than its header says")
                whole[filled : filled + len(piece)] = piece
                filled += len(piece)
                at += len(piece)
        return whole

    async def _page(self, digest: str, number: int) -> bytes:
        page = self._pages.get((digest, number))
        if page is None:
            page = await self._blobs.read(digest, number * _PAGE_BYTES, (number + 1) * _PAGE_BYTES)
            self._pages[digest, number] = page
            if len(self._pages) > self._pages_kept:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end((digest, number))
        return page

    async def _read_header(self, digest: str) -> BundleHeader:
        size = await self._blobs.size(digest)
        if size <= _CHECKED_BYTES:
            await self._blobs.check(digest)
        prefix = await self._blobs.read(digest, 0, PREFIX_BYTES)
        length = header_length(prefix)
        if length > _MAX_HEADER_BYTES:
            raise _malformed(f"its header takes {length} bytes")
        header = BundleHeader.parse(await self._blobs.read(digest, 0, PREFIX_BYTES + length))
        if len({entry.name for entry in header.entries}) != len(header.entries):
            raise _malformed("two tensors have one name")
        for entry in header.entries:
            _check_entry(entry, size - header.data_start)
            if entry.shape[0] > 2 * size:  # rows of no bytes would cost the sender nothing and us much
                raise _malformed(f"{entry.name!r} has {entry.shape[0]} rows in a file of {size} bytes")
            if entry.dtype == _STRING:
                await self._check_strings(digest, header.data_start, entry)
        return header

    async def _check_strings(self, digest: str, data_start: int, entry: BundleEntry) -> None:
        """See once that all offsets lie in order inside the text, so that no read has to look again."""
        count, base = prod(entry.shape), data_start + entry.offset
        text_bytes = entry.size - (count + 1) * _OFFSET.itemsize
        last = 0
        step = _PAGE_BYTES // _OFFSET.itemsize
        for first in range(0, count + 1, step):
            offsets = await self._offsets(digest, base, first, min(first + step, count + 1) - 1)
            if (first == 0 and offsets[0] != 0) or offsets[0] < last or np.any(offsets[1:] < offsets[:-1]):
                raise _malformed(f"{entry.name!r} has string offsets out of order")
            last = int(offsets[-1])
        if last != text_bytes:
            raise _malformed(f"{entry.name!r} has string offsets that do not fit its text")


def _check_entry(entry: BundleEntry, data_bytes: int) -> None:
    if entry.dtype not in DTYPES:
        raise _malformed(f"{entry.name!r} has unknown element type {entry.dtype!r}")
    if not entry.shape or min(entry.shape) < 0:
        raise _malformed(f"{entry.name!r} of shape {list(entry.shape)} has no first axis of rows")
    if entry.dtype == _STRING:
        fits = entry.size >= (prod(entry.shape) + 1) * _OFFSET.itemsize
    else:
        fits = entry.size == tensor_bytes(entry.dtype, entry.shape)
    if not fits or entry.offset < 0 or entry.offset + entry.size > data_bytes:
        raise _malformed(f"{entry.name!r} does not have the bytes that its shape {list(entry.shape)} takes")


def _is_packed(dtype: str) -> bool:
    return tensor_bytes(dtype, (2,)) == 1 and tensor_bytes(dtype, (1,)) == 1


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Ranges with neighbours made one; chunks mostly come in order, so that little remains to be done for each."""
    joined: list[Range] = []
    for start, stop in ranges:
        if start > stop:
            raise Rejected("rows_out_of_range", f"rows {start} to {stop} were asked for")
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif start < stop:
            joined.append((start, stop))
    return joined


def _malformed(detail: str) -> Rejected:
    return Rejected("inputs_malformed", f"the inputs are no bundle that can be read: {detail}")
