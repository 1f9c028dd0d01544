"""The same model over the same rows in one process, without a fleet: what the demo is compared with.

Run as `python -m idlewheel.demo.direct MODEL ROWS OUT --threads N --batch-rows B`; rows and outputs are bundles. Prints
JSON lines: `{"ready": true}`, and `{"seconds": …}` at the end. Loading the model is not in the seconds.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.tensors import Array

__all__ = ["main"]


def main() -> None:
    """Run the model and write the outputs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-rows", type=int, required=True)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.model.read_bytes(), options, ["CPUExecutionProvider"])
    inputs = decode_bundle(arguments.rows.read_bytes())
    _say(ready=True)
    started_s = time.perf_counter()
    pieces = list(_run(session, inputs, arguments.batch_rows))
    seconds = time.perf_counter() - started_s
    names = [output.name for output in session.get_outputs()]
    outputs = {name: np.concatenate([piece[place] for piece in pieces]) for place, name in enumerate(names)}
    arguments.out.write_bytes(encode_bundle(outputs))
    _say(seconds=seconds)


def _run(session: onnxruntime.InferenceSession, inputs: dict[str, Array], batch_rows: int) -> Iterator[list[Array]]:
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, batch_rows):
        yield session.run(None, {name: array[start : start + batch_rows] for name, array in inputs.items()})


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the demo reads it


if __name__ == "__main__":
    main()
