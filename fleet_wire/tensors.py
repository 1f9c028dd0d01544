"""Tensors on the wire: every ONNX element type, any rank, zero rows; numbers are viewed, never copied, on decoding.

Knows nothing of messages or files: see `messages` and `bundle` for what carries tensors.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_wire.errors import WireError, WireFault

__all__ = ["DTYPES", "Array", "Tensor", "decode_tensors", "dtype_name", "encode_tensors", "tensor_bytes"]

Array = NDArray[Any]

STRING = "string"
# ONNX element type (TensorProto.DataType, lower case) to the numpy type that holds it.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "float": "<f4",
        "double": "<f8",
        "float16": "<f2",
        "bfloat16": ml_dtypes.bfloat16,
        "float8e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8e5m2": ml_dtypes.float8_e5m2,
        "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8e8m0": ml_dtypes.float8_e8m0fnu,
        "int4": ml_dtypes.int4,
        "uint4": ml_dtypes.uint4,
        "float4e2m1": ml_dtypes.float4_e2m1fn,
        "int8": "i1",
        "int16": "<i2",
        "int32": "<i4",
        "int64": "<i8",
        "uint8": "u1",
        "uint16": "<u2",
        "uint32": "<u4",
        "uint64": "<u8",
        "bool": "?",
        "complex64": "<c8",
        "complex128": "<c16",
        STRING: object,
    }.items()
}
# Two elements a byte, the first in the low nibble, as ONNX packs raw_data.
_PACKED = frozenset({"int4", "uint4", "float4e2m1"})
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_RANK = 32
# What numpy can address with the widest element, zero axes aside: a tensor without rows still has its other axes.
_MAX_EXTENT = (2**63 - 1) // 16
_OFFSET = np.dtype("<u4")


class Tensor(msgspec.Struct, array_like=True, frozen=True):
    """`[name, dtype, shape, data]`: a tensor as it crosses the wire.

    `data` is C-ordered little-endian elements. For strings: n + 1 offsets (uint32, from 0) and then the UTF-8 bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> Array:
        """View `data` as an array of `shape` (strings and 4-bit types are unpacked). Raises WireError(BAD_TENSOR)."""
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            raise WireError(WireFault.BAD_TENSOR, f"{self.name!r} has unknown element type {self.dtype!r}")
        if len(self.shape) > _MAX_RANK or any(axis < 0 for axis in self.shape) or _extent(self.shape) > _MAX_EXTENT:
            raise WireError(WireFault.BAD_TENSOR, f"{self.name!r} has an impossible shape {self.shape}")
        count = prod(self.shape)
        if self.dtype == STRING:
            return _unpack_strings(self.name, self.data, count).reshape(self.shape)
        _expect_size(self.name, self.data, _packed_size(self.dtype, count))
        if self.dtype in _PACKED:
            return _unpack_nibbles(self.data, count, dtype).reshape(self.shape)
        if self.dtype == "bool" and count and np.frombuffer(self.data, dtype=np.uint8).max() > 1:
            raise WireError(WireFault.BAD_TENSOR, f"{self.name!r} has truth values other than 0 and 1")
        return np.frombuffer(self.data, dtype=dtype, count=count).reshape(self.shape)


def dtype_name(array: Array) -> str:
    """ONNX element type of an array; unicode is string. Raises WireError(BAD_TENSOR) for dates and the like."""
    if array.dtype.kind in "OU":
        return STRING
    name = _NAMES.get(array.dtype.newbyteorder("<") if array.dtype.kind in "iufc" else array.dtype)
    if name is None:
        raise WireError(WireFault.BAD_TENSOR, f"numpy type {array.dtype} has no ONNX element type")
    return name


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of data that a tensor of fixed-size elements takes on the wire."""
    return _packed_size(dtype, prod(shape))


def encode_tensor(name: str, array: Array) -> Tensor:
    """Make the wire form of an array; contiguous little-endian numbers are not copied."""
    dtype = dtype_name(array)
    if dtype == STRING:
        return Tensor(name, dtype, array.shape, memoryview(_pack_strings(name, array)))
    if dtype in _PACKED:
        return Tensor(name, dtype, array.shape, memoryview(_pack_nibbles(array)))
    flat = np.ascontiguousarray(array, dtype=DTYPES[dtype]).reshape(-1)
    return Tensor(name, dtype, array.shape, flat.view(np.uint8).data)


def encode_tensors(arrays: dict[str, Array]) -> list[Tensor]:
    """Wire form of named arrays, in their order."""
    return [encode_tensor(name, array) for name, array in arrays.items()]


def decode_tensors(tensors: Sequence[Tensor]) -> dict[str, Array]:
    """Named arrays from their wire form. Raises WireError(BAD_TENSOR), also for a name that comes twice."""
    arrays = {tensor.name: tensor.array() for tensor in tensors}
    if len(arrays) != len(tensors):
        raise WireError(WireFault.BAD_TENSOR, "two tensors have one name")
    return arrays


def _extent(shape: Sequence[int]) -> int:
    return prod(axis for axis in shape if axis)


def _packed_size(dtype: str, count: int) -> int:
    return (count + 1) // 2 if dtype in _PACKED else count * DTYPES[dtype].itemsize


def _expect_size(name: str, data: memoryview, size: int) -> None:
    if len(data) != size:
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} should have {size} bytes of data and has {len(data)}")


def _pack_strings(name: str, array: Array) -> bytes:
    elements = array.reshape(-1).tolist()
    if not all(isinstance(element, str) for element in elements):
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} is an object array with elements that are no strings")
    try:
        encoded = [element.encode() for element in elements]
    except UnicodeEncodeError as error:
        raise WireError(
            WireFault.BAD_TENSOR, f"{name!r} has a string that is not valid Unicode: {error.reason}"
        ) from None
    offsets = np.zeros(len(encoded) + 1, dtype=np.uint64)
    np.cumsum([len(element) for element in encoded], out=offsets[1:])
    if offsets[-1] > np.iinfo(_OFFSET).max:
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} has over 4 GiB of text")
    return offsets.astype(_OFFSET).tobytes() + b"".join(encoded)


def _unpack_strings(name: str, data: memoryview, count: int) -> Array:
    head = (count + 1) * _OFFSET.itemsize
    if len(data) < head:
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} is too short for the offsets of {count} strings")
    offsets = np.frombuffer(data, dtype=_OFFSET, count=count + 1)
    text = bytes(data[head:])
    if offsets[0] != 0 or offsets[-1] != len(text) or np.any(offsets[1:] < offsets[:-1]):
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} has string offsets that do not fit its text")
    bounds = offsets.tolist()
    strings = np.empty(count, dtype=object)
    try:
        strings[:] = [text[start:stop].decode() for start, stop in pairwise(bounds)]
    except UnicodeDecodeError:
        raise WireError(WireFault.BAD_TENSOR, f"{name!r} has a string that is not UTF-8") from None
    return strings


def _pack_nibbles(array: Array) -> bytes:
    nibbles = array.reshape(-1).view(np.uint8) & 0x0F
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()


def _unpack_nibbles(data: memoryview, count: int, dtype: np.dtype[Any]) -> Array:
    packed = np.frombuffer(data, dtype=np.uint8)
    nibbles = np.empty(packed.size * 2, dtype=np.uint8)
    nibbles[0::2] = packed & 0x0F
    nibbles[1::2] = packed >> 4
    if dtype == DTYPES["int4"]:  # ml_dtypes keeps the sign in all eight bits
        nibbles = np.where(nibbles > 7, nibbles | 0xF0, nibbles)
    return nibbles[:count].view(dtype)
