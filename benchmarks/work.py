"""The work that peers are given: bytes in and out, or rows through a model on one thread. Any process can import it."""

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["Rows", "echo", "infer", "open_session"]

Rows = tuple[str, dict[str, NDArray[Any]]]


def echo(item: bytes) -> bytes:
    return item


@cache
def open_session(model: str) -> onnxruntime.InferenceSession:
    """A model on one thread, opened once a process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def infer(item: Rows) -> list[NDArray[Any]]:
    model, inputs = item
    return [np.asarray(output) for output in open_session(model).run(None, inputs)]
