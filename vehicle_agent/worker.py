"""The worker process: loads models and computes batches, one order after the other, until its pipe ends.

It owns nothing that must survive: the agent kills it at any moment. It dies with its parent, whatever ends that.
Started as `python -m vehicle_agent.worker SOCKET_FD PARENT_PID THREADS NICENESS`.
"""

import ctypes
import os
import signal
import socket
import sys
from time import perf_counter, process_time

import msgspec

from fleet_wire.errors import WireError
from fleet_wire.tensors import decode_tensors, encode_tensors
from vehicle_agent.frames import PREFIX_BYTES, Answer, Load, Loaded, Order, Raised, Ran, RunBatch, Unusable, frame_of
from vehicle_agent.runtime import LoadedModel, RunFailed, UnusableModel, load_model

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class Worker:
    """Loaded models, and what to answer to an order."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._models: dict[str, LoadedModel] = {}

    def answer(self, order: Order) -> Answer:
        """Carry out one order."""
        if isinstance(order, Load):
            return self._load(order)
        return self._run(order)

    def _load(self, order: Load) -> Loaded | Unusable:
        for digest in order.unload:
            self._models.pop(digest, None)
        try:
            model = load_model(order.path, self._threads)
        except UnusableModel as error:
            return Unusable(order.digest, str(error))
        self._models[order.digest] = model
        return Loaded(order.digest, model.batch_rows)

    def _run(self, order: RunBatch) -> Ran | Raised:
        try:
            inputs = decode_tensors(order.inputs)
            started_s, processor_s = perf_counter(), process_time()
            outputs = self._models[order.digest].run(order.rows, inputs)
            compute_ms = (perf_counter() - started_s) * 1000
            processor_ms = (process_time() - processor_s) * 1000 / self._threads
            return Ran(encode_tensors(outputs), compute_ms, min(processor_ms, compute_ms))
        except RunFailed as error:
            return Raised(str(error), error.by_row)
        except WireError as error:  # the model made text that is not Unicode
            return Raised(error.detail, by_row=True)


def main(socket_fd: int, parent_pid: int, threads: int, niceness: int) -> None:
    """Serve the parent until the pipe ends."""
    _die_with(parent_pid)
    os.nice(niceness)
    pipe = socket.socket(fileno=socket_fd)
    orders = pipe.makefile("rb", buffering=1 << 20)
    decode = msgspec.msgpack.Decoder(Order).decode
    worker = Worker(threads)
    while prefix := orders.read(PREFIX_BYTES):
        order = decode(orders.read(int.from_bytes(prefix, "little")))
        pipe.sendall(frame_of(worker.answer(order)))


def _die_with(parent_pid: int) -> None:
    """Have the system kill us with our parent: while a batch computes, nobody looks at the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked
            sys.exit(1)


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))
