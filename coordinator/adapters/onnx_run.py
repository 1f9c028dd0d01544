"""The child of the runner: a model's bytes on stdin, then questions; replies on stdout. Writes no file.

Started as `python -m coordinator.adapters.onnx_run MODEL_BYTES PARENT_PID CPU_SECONDS_A_QUESTION NICENESS`.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

import msgspec
import numpy as np
import onnxruntime

from coordinator.adapters.onnx_confinement import confine
from coordinator.adapters.onnx_runner import PREFIX_BYTES, Question, Reply, frame_of
from fleet_wire.errors import WireError
from fleet_wire.tensors import Array, decode_tensors, encode_tensors

_PR_SET_PDEATHSIG = 1
_MOST_CHARACTERS = 1000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Question).decode


def main() -> None:
    """Answer until the parent closes the pipe."""
    size, parent_pid, cpu_s, niceness = (int(text) for text in sys.argv[1:])
    _die_with(parent_pid)
    os.nice(niceness)
    confine(size)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    _send(replies, Reply())
    session: onnxruntime.InferenceSession | None = None
    while message := _read(sys.stdin.buffer):
        _allow(cpu_s)
        try:
            if session is None:
                session = _load(message)
                _send(replies, Reply())
            else:
                question = _decode(message)
                outputs = _run(session, question.rows, decode_tensors(question.inputs))
                _send(replies, Reply(encode_tensors(outputs)))
        except WireError as error:  # text that is not Unicode
            _send(replies, Reply(error=error.detail))
        except MemoryError:
            _send(replies, Reply(error="it needs too much memory"))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base of their own
            _send(replies, Reply(error=" ".join(str(error).split())[:_MOST_CHARACTERS]))


def _die_with(parent_pid: int) -> None:
    """Have the system kill us with our parent: while a model runs, nobody looks at the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked
            sys.exit(1)


def _allow(cpu_s: int) -> None:
    """So much processor time for the next question."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + cpu_s, hard))


def _read(questions: BinaryIO) -> bytes:
    prefix = questions.read(PREFIX_BYTES)
    return questions.read(int.from_bytes(prefix, "little")) if len(prefix) == PREFIX_BYTES else b""


def _send(replies: BinaryIO, reply: Reply) -> None:
    replies.write(frame_of(_encode(reply)))
    replies.flush()


def _load(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, rows: int, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run rows; a fixed batch is filled up with the last row."""
    fixed = next((each.shape[0] for each in session.get_inputs() if isinstance(each.shape[0], int)), None)
    padding = 0 if fixed is None else fixed - rows
    if padding:
        inputs = {name: np.concatenate([array, np.repeat(array[-1:], padding, 0)]) for name, array in inputs.items()}
    outputs = session.run(None, dict(inputs))
    named = {each.name: np.asarray(array) for each, array in zip(session.get_outputs(), outputs, strict=True)}
    return {name: array[:rows] if padding and array.ndim else array for name, array in named.items()}


if __name__ == "__main__":
    main()
