"""Runs ONNX models on rows with onnxruntime. Lives in the worker process alone: the agent never imports it."""

import ctypes
import re
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime

from fleet_wire.tensors import DTYPES, Array

__all__ = ["LoadedModel", "RunFailed", "UnusableModel", "load_model"]

# Element types that numpy does not know and onnxruntime takes only as raw memory, with their ONNX numbers.
_RAW = {"bfloat16": 16, "float8e4m3fn": 17, "float8e4m3fnuz": 18, "float8e5m2": 19, "float8e5m2fnuz": 20}
_ERRORS_ONLY = 3


class UnusableModel(Exception):
    """The runtime can't load it, or it does not take rows and give rows."""


class RunFailed(Exception):
    """A batch failed; `by_row` says that some of its rows may be innocent."""

    def __init__(self, error: str, *, by_row: bool) -> None:
        super().__init__(error)
        self.by_row = by_row


class LoadedModel:
    """A model that takes rows and gives as many rows."""

    def __init__(
        self,
        run: Callable[[Mapping[str, Array]], list[Array]],
        inputs: list[str],
        outputs: list[str],
        batch_rows: int | None,
    ) -> None:
        self._run = run
        self._inputs = inputs
        self._outputs = outputs
        self.batch_rows = batch_rows

    def run(self, rows: int, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute rows; a fixed batch is filled up with the last row. Raise RunFailed."""
        if inputs.keys() != set(self._inputs):
            raise RunFailed(f"the model takes {', '.join(self._inputs)} and got {', '.join(inputs)}", by_row=False)
        padding = self.batch_rows - rows if self.batch_rows is not None else 0
        if padding:
            inputs = {name: _padded(array, padding) for name, array in inputs.items()}
        try:
            outputs = self._run(inputs)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated types
            raise RunFailed(_text(error), by_row=True) from None
        named = dict(zip(self._outputs, outputs, strict=True))
        for name, array in named.items():
            if array.ndim == 0 or array.shape[0] != rows + padding:
                given = f"output {name!r} has shape {array.shape} for {rows + padding} rows"
                raise RunFailed(f"{given}: its first axis must be the rows", by_row=False)
        return {name: array[:rows] for name, array in named.items()} if padding else named


def load_model(path: str, threads: int) -> LoadedModel:
    """Load a model from its file. Raise UnusableModel with a text for the model's owner."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Spinning would burn a car's energy, and the demo's cores, while nothing is to be computed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated types
        raise UnusableModel(_text(error)) from None
    inputs = {each.name: _element_type("input", each) for each in session.get_inputs()}
    outputs = {each.name: _element_type("output", each) for each in session.get_outputs()}
    batch_rows = _batch_rows({each.name: each.shape for each in session.get_inputs()})
    for each in session.get_outputs():
        if each.shape and isinstance(each.shape[0], int) and each.shape[0] != batch_rows:
            raise UnusableModel(f"output {each.name!r} has {each.shape[0]} rows however many go in")
    run = _run_raw(session, inputs, outputs) if _RAW.keys() & {*inputs.values(), *outputs.values()} else _run(session)
    return LoadedModel(run, list(inputs), list(outputs), batch_rows)


def _element_type(kind: str, described: onnxruntime.NodeArg) -> str:
    match = re.fullmatch(r"tensor\((\w+)\)", described.type)
    if match is None or match[1] not in DTYPES:
        advice = "; a scikit-learn model is converted with zipmap=False" if "map(" in described.type else ""
        raise UnusableModel(f"{kind} {described.name!r} is a {described.type} and must be a tensor{advice}")
    return match[1]


def _batch_rows(shapes: Mapping[str, list[int | str | None]]) -> int | None:
    for name, shape in shapes.items():
        if not shape:
            raise UnusableModel(f"input {name!r} is a scalar: its first axis must be the rows")
    fixed = {shape[0] for shape in shapes.values() if isinstance(shape[0], int)}
    if len(fixed) > 1:
        raise UnusableModel(f"inputs disagree about the rows of a batch: {sorted(fixed)}")
    return next(iter(fixed), None)


def _run(session: onnxruntime.InferenceSession) -> Callable[[Mapping[str, Array]], list[Array]]:
    return lambda inputs: session.run(None, dict(inputs))


def _run_raw(
    session: onnxruntime.InferenceSession, input_types: dict[str, str], output_types: dict[str, str]
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """The same for models with element types that only pass as memory."""

    def value(name: str, array: Array) -> onnxruntime.OrtValue:
        number = _RAW.get(input_types[name])
        if number is None:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array)
        memory = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(memory, number)

    def array(name: str, value: onnxruntime.OrtValue) -> Array:
        if output_types[name] not in _RAW:
            return np.asarray(value.numpy())
        memory = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
        return np.frombuffer(memory, DTYPES[output_types[name]]).reshape(value.shape())

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        values = session.run_with_ort_values(None, {name: value(name, each) for name, each in inputs.items()})
        return [array(name, each) for name, each in zip(output_types, values, strict=True)]

    return run


def _padded(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], rows, 0)])


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:2000]
