"""Whether tensors fit a model: a job's inputs before it is accepted, and a car's outputs before they count. Pure."""

from collections.abc import Sequence

from coordinator.model import Model
from fleet_wire.api import TensorSpec

__all__ = ["input_fault", "output_fault"]


def input_fault(inputs: Sequence[TensorSpec], model: Model) -> str | None:
    """Say in one line what is wrong with a job's inputs, or None. Axis 0 of every input is the rows."""
    given = {spec.name: spec for spec in inputs}
    expected = ", ".join(spec.name for spec in model.inputs)
    for spec in model.inputs:
        if spec.name not in given:
            return f"input {spec.name!r} is missing; the model takes: {expected}"
    for name in given:
        if all(name != spec.name for spec in model.inputs):
            return f"the model has no input {name!r}; it takes: {expected}"
    for spec in model.inputs:
        fault = _tensor_fault("input", given[spec.name], spec)
        if fault is not None:
            return fault
    lengths = {spec.name: spec.shape[0] for spec in inputs}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {rows}" for name, rows in lengths.items())
        return f"the inputs differ in their number of rows: {shown}"
    if 0 in lengths.values():
        return "there are no rows: axis 0 of the inputs has length 0"
    return None


def output_fault(outputs: Sequence[TensorSpec], rows: int, model: Model) -> str | None:
    """Say what is wrong with the outputs that a car sent for `rows` rows, or None."""
    if [spec.name for spec in outputs] != [spec.name for spec in model.outputs]:
        return (
            f"outputs {[spec.name for spec in outputs]} where the model gives {[spec.name for spec in model.outputs]}"
        )
    for given, spec in zip(outputs, model.outputs, strict=True):
        if not given.shape or given.shape[0] != rows:
            return f"output {given.name!r} of shape {given.shape} does not have {rows} rows"
        if given.dtype != spec.dtype:
            return f"output {given.name!r} is {given.dtype} where the model gives {spec.dtype}"
    return None


def _tensor_fault(role: str, given: TensorSpec, spec: TensorSpec) -> str | None:
    if given.dtype != spec.dtype:
        return f"{role} {spec.name!r} is {given.dtype} where the model takes {spec.dtype}"
    if len(given.shape) != len(spec.shape):
        return f"{role} {spec.name!r} has rank {len(given.shape)} where the model takes rank {len(spec.shape)}"
    pairs = list(zip(given.shape, spec.shape, strict=True))[1:]
    if any(wanted is not None and size != wanted for size, wanted in pairs):
        wanted = ["rows", *("any" if axis is None else str(axis) for axis in spec.shape[1:])]
        return f"{role} {spec.name!r} has shape {given.shape} where the model takes [{', '.join(wanted)}]"
    return None
