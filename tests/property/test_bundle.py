"""A bundle of tensors can be read whole or by byte range, and a broken one is refused."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleet_wire.bundle import PREFIX_BYTES, BundleHeader, decode_bundle, encode_bundle, header_length
from fleet_wire.errors import WireError
from fleet_wire.tensors import DTYPES, Array

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
ARRAYS = hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8]), SHAPES) | hnp.arrays(
    object, SHAPES, elements=st.text(max_size=4), fill=st.nothing()
)
BUNDLES = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4)


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and (one[name].dtype == object or one[name].tobytes() == other[name].tobytes())
        and (one[name].dtype != object or one[name].tolist() == other[name].tolist())
        for name in one
    )


def framed(header: bytes, data: bytes = b"") -> bytes:
    return b"IWTENS1\n" + len(header).to_bytes(8, "little") + header + data


@given(BUNDLES)
def test_arrays_come_back_in_order(arrays: dict[str, Array]) -> None:
    assert same(decode_bundle(encode_bundle(arrays)), arrays)


@given(BUNDLES)
def test_a_bundle_cut_short_is_refused_or_still_whole(arrays: dict[str, Array]) -> None:
    data = encode_bundle(arrays)
    for length in range(len(data)):
        try:
            back = decode_bundle(data[:length])
        except WireError:
            continue
        assert same(back, arrays)  # only padding was cut off


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_bundle(data)


@given(st.binary(max_size=60))
def test_a_garbled_header_is_refused_or_describes_what_is_there(header: bytes) -> None:
    try:
        arrays = decode_bundle(framed(header, bytes(64)))
    except WireError:
        return
    assert len(arrays) == len(msgspec.msgpack.decode(header))


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(["x", "float", [1], -4, 4], id="negative offset"),
        pytest.param(["x", "float", [1], 0, -1], id="negative size"),
        pytest.param(["x", "float", [1], 2**63, 4], id="offset behind the end"),
        pytest.param(["x", "float", [1], 0, 2**63], id="size behind the end"),
        pytest.param(["x", "float", [2**62, 0], 0, 0], id="impossible shape"),
        pytest.param(["x", "float", [1], 0, 8], id="size that does not fit the shape"),
        pytest.param(["x", "decimal", [1], 0, 4], id="unknown element type"),
        pytest.param(["x", "float", [1]], id="too few fields"),
    ],
)
def test_an_entry_that_lies_is_refused(entry: list[object]) -> None:
    with pytest.raises(WireError):
        decode_bundle(framed(msgspec.msgpack.encode([entry]), bytes(256)))


def test_names_and_nesting_that_can_not_be_decoded_are_refused() -> None:
    for header in (
        b"\x91\x95\xa1\xff\xa4bool\x91\x00\x00\x00",
        b"\x91\x96\xa1x\xa4bool\x91\x00\x00\x00" + b"\x91" * 9999,
    ):
        with pytest.raises(WireError):
            decode_bundle(framed(header, bytes(64)))


def test_a_header_of_absurd_length_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="header"):
        header_length(b"IWTENS1\n" + (1 << 40).to_bytes(8, "little"))


def test_fields_of_a_later_version_are_passed_over() -> None:
    entry = ["x", "uint8", [2], 0, 2, "something new"]
    header = msgspec.msgpack.encode([entry])
    padding = -(PREFIX_BYTES + len(header)) % 64
    assert decode_bundle(framed(header, bytes(padding) + b"\1\2"))["x"].tolist() == [1, 2]


def test_rows_can_be_read_by_byte_range() -> None:
    arrays: dict[str, Array] = {"a": np.arange(20, dtype=np.float32).reshape(10, 2), "b": np.arange(10, dtype=np.int64)}
    data = encode_bundle(arrays)
    header = BundleHeader.parse(data[: PREFIX_BYTES + header_length(data[:PREFIX_BYTES])])
    assert header.data_start % 64 == 0
    for entry in header.entries:
        assert entry.offset % 64 == 0
        row = entry.size // 10
        start = header.data_start + entry.offset + 3 * row
        piece = np.frombuffer(data[start : start + 4 * row], dtype=DTYPES[entry.dtype])
        assert piece.tobytes() == arrays[entry.name][3:7].tobytes()


def test_numbers_are_viewed_in_place() -> None:
    data = np.frombuffer(encode_bundle({"x": np.arange(100, dtype=np.float64)}), dtype=np.uint8)
    assert np.shares_memory(decode_bundle(data.data)["x"], data)
