"""Before a job is verified it is tried whether honest cars would agree on its rows, however they batch them."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from coordinator.adapters.input_rows import InputRows
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.adapters.onnx_inspector import OnnxInspector
from coordinator.adapters.onnx_runner import OnnxRunner
from coordinator.errors import Rejected
from coordinator.model import Job, Model
from coordinator.trial import Trial
from fleet_wire.api import JobTerms, Tolerance, Verification
from fleet_wire.bundle import encode_bundle
from tests.integration.small_models import doubling, looking_up, summing_up, write_model

ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)
ADAPTIVE = Verification("adaptive")


def centring(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """y = x less the mean over the batch: a row's output depends on its neighbours."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "first"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["apart"]),
        helper.make_node("Cast", ["apart"], ["y"], to=kind),
    ]
    return write_model(
        path, nodes, [("x", TensorProto.FLOAT, ["n", 3])], [("y", kind, ["n", 3])], [("first", np.array([0]))]
    )


async def attempt(tmp_path: Path, model: Path, inputs: Any, terms: Verification) -> None:
    blobs = ObjectBlobs.in_folder(tmp_path / "blobs")

    async def stored(data: bytes) -> str:
        async def once() -> AsyncIterator[bytes]:
            yield data

        return (await blobs.put(once(), hashlib.sha256(data).hexdigest())).digest

    data = model.read_bytes()  # noqa: ASYNC240 - a few bytes
    view = await OnnxInspector().inspect(data)
    checked = Model(await stored(data), view.size, tuple(view.inputs), tuple(view.outputs), view.batch_rows)
    digest = await stored(encode_bundle({"x": inputs}))
    job = Job("j", "", checked.digest, digest, len(inputs), 16, JobTerms(verification=terms), created_ms=0)
    await Trial(InputRows(blobs), blobs, OnnxRunner).check(job, checked)


@pytest.mark.parametrize("batch", ["n", 6])
async def test_rows_that_stand_for_themselves_can_be_verified(tmp_path: Path, batch: int | str) -> None:
    await attempt(tmp_path, doubling(tmp_path / "d.onnx", batch), ROWS, ADAPTIVE)


async def test_what_depends_on_its_neighbours_needs_a_tolerance_that_the_refusal_names(tmp_path: Path) -> None:
    model = centring(tmp_path / "c.onnx")
    await attempt(tmp_path, model, ROWS, Verification())
    with pytest.raises(Rejected, match=r"by up to 28, .* --tolerance y=1e\+02:0") as refused:
        await attempt(tmp_path, model, ROWS, ADAPTIVE)
    assert refused.value.code == "tolerance_needed"
    await attempt(tmp_path, model, ROWS, Verification("adaptive", tolerances={"y": Tolerance(1e2, 0)}))


async def test_what_no_tolerance_helps_can_not_be_verified(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="cars choose their batches") as refused:
        await attempt(tmp_path, centring(tmp_path / "i.onnx", TensorProto.INT64), ROWS, ADAPTIVE)
    assert refused.value.code == "not_verifiable"
    with pytest.raises(Rejected, match="a row for each row of the inputs"):
        await attempt(tmp_path, summing_up(tmp_path / "s.onnx"), ROWS, ADAPTIVE)


async def test_a_tolerance_for_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="for 'z'; the model's outputs are: y"):
        await attempt(
            tmp_path, doubling(tmp_path / "d.onnx"), ROWS, Verification("adaptive", tolerances={"z": Tolerance()})
        )


async def test_rows_that_the_model_fails_on_are_left_to_the_job(tmp_path: Path) -> None:
    await attempt(tmp_path, looking_up(tmp_path / "l.onnx", 2), np.array([0, 99, 1], dtype=np.int64), ADAPTIVE)
