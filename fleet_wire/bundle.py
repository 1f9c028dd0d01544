"""A file of named tensors whose rows can be read by byte range: inputs and results over HTTP and in blobs.

Layout: 8 bytes magic, 8 bytes little-endian length of the header, the header (MessagePack), then each tensor's data as
`tensors` describes it, aligned to 64 bytes from the start of the file. Never opens a file itself.
"""

from dataclasses import dataclass
from typing import Self

import msgspec

from fleet_wire.errors import WireError, WireFault
from fleet_wire.tensors import Array, Tensor, decode_tensors, encode_tensors

__all__ = ["PREFIX_BYTES", "BundleEntry", "BundleHeader", "decode_bundle", "encode_bundle", "header_length"]

_MAGIC = b"IWTENS1\n"
PREFIX_BYTES = len(_MAGIC) + 8
_MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 64


class BundleEntry(msgspec.Struct, array_like=True, frozen=True):
    """Where one tensor's data lies: `offset` and `size` in bytes from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The table of contents of a bundle; `data_start` is where the data section begins in the file."""

    entries: list[BundleEntry]
    data_start: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """Read the table from the first `PREFIX_BYTES + header_length(...)` bytes. Raises WireError(MALFORMED)."""
        length = header_length(data[:PREFIX_BYTES])
        try:
            entries = msgspec.msgpack.decode(data[PREFIX_BYTES : PREFIX_BYTES + length], type=list[BundleEntry])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(WireFault.MALFORMED, f"bundle header: {error}") from None
        return cls(entries, _aligned(PREFIX_BYTES + length))


def header_length(prefix: bytes | memoryview) -> int:
    """Length in bytes of the header that follows the prefix. Raises WireError(MALFORMED) when this is no bundle."""
    if len(prefix) < PREFIX_BYTES or bytes(prefix[: len(_MAGIC)]) != _MAGIC:
        raise WireError(WireFault.MALFORMED, "not a bundle of tensors")
    length = int.from_bytes(prefix[len(_MAGIC) : PREFIX_BYTES], "little")
    if length > _MAX_HEADER_BYTES:
        raise WireError(WireFault.MALFORMED, f"bundle header of {length} bytes")
    return length


def encode_bundle(arrays: dict[str, Array]) -> bytes:
    """The bundle of named arrays. Raises WireError(BAD_TENSOR) for element types that ONNX does not have."""
    tensors = encode_tensors(arrays)
    entries, offset = [], 0
    for tensor in tensors:
        entries.append(BundleEntry(tensor.name, tensor.dtype, tensor.shape, offset, len(tensor.data)))
        offset = _aligned(offset + len(tensor.data))
    header = msgspec.msgpack.encode(entries)
    start = _aligned(PREFIX_BYTES + len(header))
    parts: list[bytes | memoryview] = [
        _MAGIC,
        len(header).to_bytes(8, "little"),
        header,
        bytes(start - PREFIX_BYTES - len(header)),
    ]
    for tensor in tensors:
        parts += [tensor.data, bytes(_aligned(len(tensor.data)) - len(tensor.data))]
    return b"".join(parts)


def decode_bundle(data: bytes | memoryview) -> dict[str, Array]:
    """Named arrays of a whole bundle, viewed in place. Raises WireError(MALFORMED or BAD_TENSOR)."""
    header = BundleHeader.parse(data)
    view = memoryview(data)[header.data_start :]
    tensors = []
    for entry in header.entries:
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > len(view):
            raise WireError(WireFault.MALFORMED, f"bundle ends before {entry.name!r}")
        tensors.append(Tensor(entry.name, entry.dtype, entry.shape, view[entry.offset : entry.offset + entry.size]))
    return decode_tensors(tensors)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
