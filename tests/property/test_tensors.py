"""Tensors cross the wire unchanged, whatever their element type and shape, and broken ones are refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fleet_wire.errors import WireError, WireFault
from fleet_wire.tensors import (
    DTYPES,
    Array,
    Tensor,
    decode_tensors,
    dtype_name,
    encode_tensors,
    tensor_bytes,
)

NUMERIC = [name for name in DTYPES if name != "string"]
FOUR_BIT = ["int4", "uint4", "float4e2m1"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def numeric_arrays(draw: st.DrawFn, names: list[str] = NUMERIC) -> tuple[str, Array]:
    """Any bit pattern that the type has, NaN with payload among them."""
    name = draw(st.sampled_from(names))
    shape = draw(SHAPES)
    dtype = DTYPES[name]
    count = int(np.prod(shape, dtype=int))
    if name == "bool" or name in FOUR_BIT:
        bits = draw(hnp.arrays(np.uint8, count, elements=st.integers(0, 1 if name == "bool" else 15)))
        if name == "int4":
            bits = np.where(bits > 7, bits | 0xF0, bits)
        return name, bits.view(dtype).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return name, np.frombuffer(raw, dtype=dtype).reshape(shape)


def text_arrays() -> st.SearchStrategy[Array]:
    return hnp.arrays(object, SHAPES, elements=st.text(max_size=6), fill=st.nothing())


def bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def one(array: Array) -> Tensor:
    return encode_tensors({"x": array})[0]


def with_data(tensor: Tensor, data: bytes) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, tensor.shape, memoryview(data))


@given(numeric_arrays())
def test_numbers_come_back_bit_by_bit(case: tuple[str, Array]) -> None:
    name, array = case
    tensor = one(array)
    back = tensor.array()
    assert (tensor.dtype, back.dtype, back.shape) == (name, array.dtype, array.shape)
    assert bits(back) == bits(array)
    assert len(tensor.data) == tensor_bytes(name, array.shape)


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0, 5), (1, 2, 3, 1, 2)])
def test_every_type_takes_every_kind_of_shape(name: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype=DTYPES[name])
    back = one(array).array()
    assert back.shape == shape
    assert back.dtype == DTYPES[name]
    assert bits(back) == bits(array)


@given(text_arrays())
def test_strings_come_back(array: Array) -> None:
    back = one(array).array()
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_fixed_width_text_travels_as_strings() -> None:
    tensor = one(np.array([["plug", "é"], ["", "車"]]))
    assert tensor.dtype == "string"
    assert tensor.array().tolist() == [["plug", "é"], ["", "車"]]


def test_four_bit_elements_lie_two_a_byte_the_first_one_low() -> None:
    assert bytes(one(np.array([1, -2, 7], dtype=DTYPES["int4"])).data) == b"\xe1\x07"


def test_what_lies_in_memory_in_another_order_travels_in_row_order() -> None:
    rows = np.arange(12, dtype=np.int32).reshape(3, 4)
    for array in (np.asfortranarray(rows), rows.astype(">i4"), np.repeat(rows, 2, axis=1)[:, ::2]):
        assert bits(one(array).array()) == bits(rows)


def test_numbers_are_viewed_not_copied() -> None:
    for name in (name for name in NUMERIC if name not in FOUR_BIT):
        array = np.ones((4, 3), dtype=DTYPES[name])
        tensor = one(array)
        assert np.shares_memory(np.frombuffer(tensor.data, np.uint8), array.view(np.uint8)), name
        assert np.shares_memory(tensor.array().view(np.uint8), array.view(np.uint8)), name


@given(numeric_arrays() | text_arrays().map(lambda array: ("string", array)))
def test_data_of_any_other_length_is_refused(case: tuple[str, Array]) -> None:
    tensor = one(case[1])
    data = bytes(tensor.data)
    for wrong in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        with pytest.raises(WireError) as caught:
            with_data(tensor, wrong).array()
        assert caught.value.fault is WireFault.BAD_TENSOR


@given(
    dtype=st.sampled_from(list(DTYPES)) | st.text(max_size=8),
    shape=st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(0, 3), max_size=40),
    data=st.binary(max_size=64),
)
@example(dtype="float", shape=[2**62, 0], data=b"")
@example(dtype="string", shape=[2**64 - 1, 0], data=bytes(4))
@example(dtype="bool", shape=[1] * 33, data=b"\1")
def test_garbage_is_refused_or_an_array_of_that_shape(dtype: str, shape: list[int], data: bytes) -> None:
    try:
        array = Tensor("x", dtype, tuple(shape), memoryview(data)).array()
    except WireError as error:
        assert error.fault is WireFault.BAD_TENSOR
    else:
        assert array.shape == tuple(shape)
        assert dtype_name(array) == dtype


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0\0\0\0\5\0\0\0\3\0\0\0abc", id="offsets that go back"),
        pytest.param(b"\1\0\0\0\2\0\0\0\3\0\0\0abc", id="not from 0"),
        pytest.param(b"\0\0\0\0\1\0\0\0\2\0\0\0abc", id="text left over"),
        pytest.param(b"\0\0\0\0\1\0\0\0\2\0\0\0\xc3\xa9", id="a character cut in two"),
    ],
)
def test_strings_whose_offsets_and_text_disagree_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="string"):
        Tensor("x", "string", (2,), memoryview(data)).array()


def test_a_truth_value_is_0_or_1() -> None:
    with pytest.raises(WireError, match="truth"):
        Tensor("x", "bool", (2,), memoryview(b"\1\2")).array()


def test_two_tensors_of_one_name_are_refused() -> None:
    tensor = one(np.zeros(2))
    with pytest.raises(WireError, match="one name"):
        decode_tensors([tensor, tensor])


@pytest.mark.parametrize(
    "array",
    [
        np.array(["2026-01-01"], dtype="M8[D]"),
        np.zeros(1, dtype=[("a", "i4")]),
        np.zeros(1, dtype=np.longdouble),
        np.array([b"raw"]),
        np.array(["text", 1], dtype=object),
        np.array(["\ud800"], dtype=object),
    ],
)
def test_what_onnx_does_not_have_can_not_be_sent(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(WireError) as caught:
        one(array)
    assert caught.value.fault is WireFault.BAD_TENSOR
