"""Which models the coordinator takes, how it describes them, and the one line by which it refuses the others."""

import hashlib
import subprocess
import sys
from pathlib import Path

import magika
import onnx
import pytest
from onnx import TensorProto, helper

from coordinator.adapters.onnx_inspector import OnnxInspector
from coordinator.errors import Rejected
from fleet_wire.api import ModelView, TensorSpec

FLOAT = TensorProto.FLOAT
value = helper.make_tensor_value_info


def make_model(
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    opsets: dict[str, int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A model that hands each input on as the output beside it, unless nodes are given."""
    if nodes is None:
        pairs = zip(inputs, outputs, strict=False)
        nodes = [helper.make_node("Identity", [source.name], [sink.name]) for source, sink in pairs]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers or [])
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=9)


def simple(element: int = FLOAT, shape: list[int | str | None] | None = None) -> onnx.ModelProto:
    axes = ["n", 4] if shape is None else shape
    return make_model([value("x", element, axes)], [value("y", element, axes)])


async def inspect(model: onnx.ModelProto) -> ModelView:
    return await OnnxInspector().inspect(model.SerializeToString())


async def refusal_of(data: bytes) -> str:
    with pytest.raises(Rejected) as refusal:
        await OnnxInspector().inspect(data)
    assert refusal.value.code == "model_refused"
    assert "\n" not in refusal.value.detail
    return refusal.value.detail


async def test_a_real_model_is_described() -> None:
    data = (Path(magika.__file__).parent / "models/standard_v3_3/model.onnx").read_bytes()
    view = await OnnxInspector().inspect(data)
    assert (view.digest, view.size, view.batch_rows) == (hashlib.sha256(data).hexdigest(), len(data), None)
    assert view.inputs == [TensorSpec("bytes", "int32", [None, 2048])]
    assert [(spec.dtype, len(spec.shape)) for spec in view.outputs] == [("float", 2)]


async def test_several_inputs_and_outputs_keep_their_order_types_and_open_axes() -> None:
    model = make_model(
        [
            value("z", TensorProto.STRING, ["n", 1]),
            value("a", TensorProto.FLOAT16, ["n", "height", 3]),
            value("m", TensorProto.BOOL, ["n"]),
        ],
        [
            value("strings", TensorProto.STRING, ["n", 1]),
            value("halves", TensorProto.FLOAT16, ["n", "height", 3]),
            value("flags", TensorProto.BOOL, ["n"]),
        ],
    )
    view = await inspect(model)
    assert view.inputs == [
        TensorSpec("z", "string", [None, 1]),
        TensorSpec("a", "float16", [None, None, 3]),
        TensorSpec("m", "bool", [None]),
    ]
    assert [spec.name for spec in view.outputs] == ["strings", "halves", "flags"]


async def test_inputs_with_defaults_are_no_inputs() -> None:
    weights = helper.make_tensor("w", FLOAT, [4], [1, 2, 3, 4])
    model = make_model(
        [value("x", FLOAT, ["n", 4]), value("w", FLOAT, [4])],
        [value("y", FLOAT, ["n", 4])],
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [weights],
    )
    assert [spec.name for spec in (await inspect(model)).inputs] == ["x"]


async def test_functions_inside_the_model_are_fine() -> None:
    opsets = [helper.make_opsetid("", 17)]
    double = helper.make_function("acme", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets)
    model = make_model(
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 4])],
        [helper.make_node("Double", ["x"], ["y"], domain="acme")],
        opsets={"": 17, "acme": 1},
        functions=[double],
    )
    assert (await inspect(model)).outputs == [TensorSpec("y", "float", [None, 4])]


@pytest.mark.parametrize(
    ("first_axes", "batch_rows"), [(["n", "n"], None), ([8, 8], 8), ([8, "n"], 8), (["n", 1], 1), ([None, "n"], None)]
)
async def test_the_fixed_length_of_axis_0_is_told(first_axes: list[int | str | None], batch_rows: int | None) -> None:
    inputs = [value(f"x{n}", FLOAT, [axis, 4]) for n, axis in enumerate(first_axes)]
    outputs = [value(f"y{n}", FLOAT, [axis, 4]) for n, axis in enumerate(first_axes)]
    assert (await inspect(make_model(inputs, outputs))).batch_rows == batch_rows


WHOLE = simple().SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am a text",
        b"\x00" * 1000,
        bytes(range(256)) * 20,
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        b"\x08\x07",
    ],
    ids=["empty", "text", "zeros", "bytes", "cut", "half", "header"],
)
async def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    detail = await refusal_of(data)
    assert "not an ONNX file" in detail or "empty" in detail


async def test_external_data_is_refused_by_its_tensor() -> None:
    weights = helper.make_tensor("far_away", FLOAT, [4], [1, 2, 3, 4])
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    model = make_model(
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 4])],
        [helper.make_node("Add", ["x", "far_away"], ["y"])],
        [weights],
    )
    assert "'far_away'" in await refusal_of(model.SerializeToString())
    constant = helper.make_node("Constant", [], ["c"], value=weights)
    hidden = make_model(
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 4])],
        [constant, helper.make_node("Add", ["x", "c"], ["y"])],
    )
    assert "'far_away'" in await refusal_of(hidden.SerializeToString())


async def test_custom_and_unknown_operators_are_refused_by_name() -> None:
    axes = [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])]
    custom = make_model(*axes, [helper.make_node("Foo", ["x"], ["y"], domain="acme")], opsets={"": 17, "acme": 1})
    assert "acme.Foo" in await refusal_of(custom.SerializeToString())
    unknown = make_model(*axes, [helper.make_node("Foo", ["x"], ["y"])])
    assert "Foo" in await refusal_of(unknown.SerializeToString())


async def test_an_opset_from_the_future_is_refused() -> None:
    model = make_model([value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])], opsets={"": 999})
    assert "999" in await refusal_of(model.SerializeToString())


async def test_a_classifier_with_zipmap_is_told_what_to_do() -> None:
    probabilities = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    model = make_model(
        [value("x", FLOAT, ["n", 2])],
        [helper.make_value_info("output_probability", helper.make_sequence_type_proto(probabilities))],
        [helper.make_node("ZipMap", ["x"], ["output_probability"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])],
        opsets={"": 17, "ai.onnx.ml": 1},
    )
    detail = await refusal_of(model.SerializeToString())
    assert "'output_probability' is of kind sequence" in detail
    assert "zipmap=False" in detail


async def test_sequences_and_optionals_are_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, ["n"])
    model = make_model([sequence], [helper.make_tensor_sequence_value_info("y", FLOAT, ["n"])])
    assert "'s' is of kind sequence" in await refusal_of(model.SerializeToString())
    optional = helper.make_value_info("o", helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"])))
    model = make_model([value("x", FLOAT, ["n"])], [optional], [helper.make_node("Optional", ["x"], ["o"])])
    assert "'o' is of kind optional" in await refusal_of(model.SerializeToString())


@pytest.mark.parametrize("element", ["BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4", "COMPLEX64", "FLOAT8E8M0"])
async def test_element_types_that_numpy_lacks_are_refused_by_name(element: str) -> None:
    detail = await refusal_of(simple(TensorProto.DataType.Value(element)).SerializeToString())
    assert f"'x' is {element.lower()}" in detail


async def test_models_without_rows_are_refused() -> None:
    assert "'x' is a single value" in await refusal_of(simple(shape=[]).SerializeToString())
    assert "wants no rows" in await refusal_of(simple(shape=[0, 4]).SerializeToString())
    rankless = make_model([value("x", FLOAT, None)], [value("y", FLOAT, None)])
    assert "'x' does not declare its rank" in await refusal_of(rankless.SerializeToString())
    scalar_out = make_model(
        [value("x", FLOAT, ["n"])], [value("y", FLOAT, [])], [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]
    )
    assert "'y' is a single value" in await refusal_of(scalar_out.SerializeToString())


async def test_inputs_that_disagree_about_rows_are_refused() -> None:
    model = make_model(
        [value("a", FLOAT, [2, 4]), value("b", FLOAT, [3, 4])], [value("c", FLOAT, [2, 4]), value("d", FLOAT, [3, 4])]
    )
    assert "'a' wants 2, 'b' wants 3" in await refusal_of(model.SerializeToString())


async def test_models_without_inputs_or_outputs_are_refused() -> None:
    constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", FLOAT, [1], [1]))
    assert "no inputs" in await refusal_of(make_model([], [value("y", FLOAT, [1])], [constant]).SerializeToString())
    no_outputs = make_model([value("x", FLOAT, ["n"])], [], [helper.make_node("Identity", ["x"], ["y"])])
    assert "no outputs" in await refusal_of(no_outputs.SerializeToString())


async def test_a_model_that_takes_too_long_is_refused_and_its_process_ended() -> None:
    with pytest.raises(Rejected, match=r"within 0\.01 s"):
        await OnnxInspector(timeout_s=0.01).inspect(WHOLE)


def test_the_daemon_does_not_import_onnx() -> None:
    code = "import sys, coordinator.adapters.onnx_inspector; print(not {'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True"
