"""Honest cars that compute a real model's rows in batches of other sizes are not taken for liars."""

from pathlib import Path

import magika
import numpy as np
import onnxruntime

from coordinator.rules.verification import agreement
from fleet_wire.tensors import Array

_PIECE, _PADDING, _ROWS = 1024, 256, 96


def rows_of_files() -> Array:
    """Beginning and end of Python files, as Magika wants them."""
    rows = np.full((_ROWS, 2 * _PIECE), _PADDING, dtype=np.int32)
    for row, path in zip(rows, sorted(Path(np.__file__).parent.rglob("*.py"))[::3], strict=False):
        data = np.frombuffer(path.read_bytes().strip(), dtype=np.uint8)
        row[: min(len(data), _PIECE)] = data[:_PIECE]
        if len(data):
            row[-min(len(data), _PIECE) :] = data[-_PIECE:]
    return rows


def test_batches_of_any_size_agree_across_classes() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = str(Path(magika.__file__).parent / "models/standard_v3_3/model.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = rows_of_files()

    def computed(batch: int) -> Array:
        return np.concatenate([session.run(None, {name: rows[at : at + batch]})[0] for at in range(0, _ROWS, batch)])

    alone = computed(1)
    for batch in (7, 32, _ROWS):
        together = computed(batch)
        assert agreement({"y": alone}, {"y": together}, {}, same_class=False).all()
        wrong = np.roll(together, 1, axis=1)
        assert not agreement({"y": alone}, {"y": wrong}, {}, same_class=False).any()
