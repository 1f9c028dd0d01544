"""The child of the inspector: ONNX bytes on stdin, findings as JSON on stdout. Never runs a model, writes no file."""

import re
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from coordinator.adapters.onnx_confinement import confine
from coordinator.adapters.onnx_inspector import Findings
from fleet_wire.api import TensorSpec

# What every car's onnxruntime has built in; operators of other domains must be functions inside the model.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"})
# What onnxruntime takes from and gives to numpy.
_ELEMENTS = frozenset(
    "float double float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string".split()  # noqa: SIM905
)


class Refused(Exception):
    """What is wrong with the model, in one line."""


def main() -> None:
    """Answer for one model. The arguments are its size in bytes and how many seconds of CPU the answer may take."""
    size, cpu_s = (int(text) for text in sys.argv[1:])
    confine(size)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    try:
        findings = _inspect(sys.stdin.buffer.read())
    except Refused as refusal:
        findings = Findings(refused=str(refusal))
    except MemoryError:
        findings = Findings(refused="it needs too much memory to be loaded")
    sys.stdout.buffer.write(msgspec.json.encode(findings))


def _inspect(data: bytes) -> Findings:
    model = _parse(data)
    _check_self_contained(model)
    defaults = {tensor.name for tensor in model.graph.initializer}
    declared = [value for value in model.graph.input if value.name not in defaults]
    for value in declared:
        _check_value("input", value)
    for value in model.graph.output:
        _check_value("output", value)
    session = _load(data)
    inputs = [_spec(value) for value in session.get_inputs()]
    outputs = [_spec(value) for value in session.get_outputs()]
    if not inputs:
        raise Refused("it has no inputs, so there is nothing to give it rows by")
    if not outputs:
        raise Refused("it has no outputs")
    return Findings(inputs=inputs, outputs=outputs, batch_rows=_batch_rows(inputs))


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise Refused("the file is empty")
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise Refused("this is not an ONNX file, or it is cut off or damaged") from None
    if not model.HasField("graph") or not model.ir_version:
        raise Refused("this is not an ONNX file: it has no graph")
    return model


def _check_self_contained(model: onnx.ModelProto) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    for graph_or_function in (model.graph, *model.functions):
        for tensor in _tensors(graph_or_function):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise Refused(
                    f"tensor {tensor.name!r} has its data in another file: save the model with its weights inside "
                    "(onnx.save with save_as_external_data=False)"
                )
        for node in _nodes(graph_or_function.node):
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in functions:
                raise Refused(f"operator {node.domain}.{node.op_type} is a custom one, which the cars don't have")


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _nodes(graph.node)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(whole: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(whole, onnx.GraphProto):
        yield from whole.initializer
        for sparse in whole.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in whole.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for graph in _graphs(node):
            yield from _tensors(graph)


def _check_value(role: str, value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind is None:
        return  # left to be inferred
    if kind != "tensor_type":
        kind = kind.removesuffix("_type").replace("_", " ")
        hint = "; a classifier made by skl2onnx needs zipmap=False" if kind in {"sequence", "map"} else ""
        raise Refused(f"{role} {value.name!r} is of kind {kind}, and only tensors can be carried{hint}")
    tensor = value.type.tensor_type
    if tensor.elem_type not in onnx.TensorProto.DataType.values():
        raise Refused(f"{role} {value.name!r} has an element type that is not known ({tensor.elem_type})")
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if element not in _ELEMENTS:
        raise Refused(f"{role} {value.name!r} is {element}, which onnxruntime can't exchange with numpy")
    if role == "input" and not tensor.HasField("shape"):
        raise Refused(f"input {value.name!r} does not declare its rank")
    if tensor.HasField("shape") and not tensor.shape.dim:
        raise Refused(f"{role} {value.name!r} is a single value: without a first axis there are no rows")


def _load(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # computes nothing
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its errors share no base of their own
        raise Refused(f"onnxruntime {onnxruntime.__version__} does not load it: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)[:500]  # where in its sources


def _spec(value: onnxruntime.NodeArg) -> TensorSpec:
    element = value.type.removeprefix("tensor(").removesuffix(")")
    if element not in _ELEMENTS:  # where the model left the type to be inferred
        raise Refused(f"{value.name!r} is {value.type}, which can't be carried")
    return TensorSpec(value.name, element, [axis if isinstance(axis, int) else None for axis in value.shape])


def _batch_rows(inputs: list[TensorSpec]) -> int | None:
    fixed = {spec.name: spec.shape[0] for spec in inputs if spec.shape[0] is not None}
    if len(set(fixed.values())) > 1:
        shown = ", ".join(f"{name!r} wants {rows}" for name, rows in fixed.items())
        raise Refused(f"the inputs disagree about the number of rows: {shown}")
    if 0 in fixed.values():
        raise Refused(f"input {next(iter(fixed))!r} wants no rows at all")
    return next(iter(fixed.values()), None)


if __name__ == "__main__":
    main()
