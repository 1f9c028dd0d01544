"""Small ONNX models that tests run for real."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

Value = tuple[str, int, list[Any]]


def write_model(path: Path, nodes: list[Any], inputs: list[Value], outputs: list[Any], constants: Any = ()) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) if isinstance(each, tuple) else each for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def doubling(path: Path, batch: int | str = "n", width: int | str = 3) -> Path:
    """y = x + x"""
    return write_model(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, [batch, width])],
        [("y", TensorProto.FLOAT, [batch, width])],
    )


def mixed(path: Path) -> Path:
    """Strings, a float16 and an int64 input; each comes back, the numbers changed."""
    return write_model(
        path,
        [
            helper.make_node("Identity", ["text"], ["text_out"]),
            helper.make_node("Add", ["half", "half"], ["half_out"]),
            helper.make_node("Neg", ["whole"], ["whole_out"]),
        ],
        [
            ("text", TensorProto.STRING, ["n", 2]),
            ("half", TensorProto.FLOAT16, ["n"]),
            ("whole", TensorProto.INT64, ["n", 1, 2]),
        ],
        [
            ("text_out", TensorProto.STRING, ["n", 2]),
            ("half_out", TensorProto.FLOAT16, ["n"]),
            ("whole_out", TensorProto.INT64, ["n", 1, 2]),
        ],
    )


def looking_up(path: Path, entries: int) -> Path:
    """y = table[x]: an index outside of the table makes the model raise an error."""
    return write_model(
        path,
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        [("table", np.arange(entries, dtype=np.float32) * 10)],
    )


def summing_up(path: Path) -> Path:
    """The output has lost the rows."""
    return write_model(
        path,
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, ["n", 3])],
        [("y", TensorProto.FLOAT, None)],
    )


def endless(path: Path) -> Path:
    """y = x, after as many products of two matrices as `times` says: with 1 << 40 it never ends."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "before"], ["after"]),
            helper.make_node("Identity", ["going"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [600, 600]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [600, 600]),
        ],
    )
    return write_model(
        path,
        [
            helper.make_node("ReduceMax", ["times"], ["most"], keepdims=0),
            helper.make_node("Loop", ["most", "", "zeros"], ["product"], body=body),
            helper.make_node("ReduceMax", ["product"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [("times", TensorProto.INT64, ["n"]), ("x", TensorProto.FLOAT, ["n", 3])],
        [("y", TensorProto.FLOAT, ["n", 3])],
        [("zeros", np.zeros((600, 600), np.float32))],
    )


def swelling(path: Path) -> Path:
    """y = x, after `elements` floats were summed up in memory."""
    return write_model(
        path,
        [
            helper.make_node("ReduceMax", ["elements"], ["most"]),
            helper.make_node("ConstantOfShape", ["most"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [("elements", TensorProto.INT64, ["n"]), ("x", TensorProto.FLOAT, ["n", 3])],
        [("y", TensorProto.FLOAT, ["n", 3])],
    )


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
