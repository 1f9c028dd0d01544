"""The worker process: loads models and computes batches, one order after the other, until its pipe ends.

It owns nothing that must survive: the agent kills it at any moment. It dies with its parent, whatever ends that, and
ends itself when it has not heard the parent's beat for a while: a parent that stands still can't stop it.
Started as `python -m vehicle_agent.worker SOCKET_FD BEATS_FD PARENT_PID ALLOTMENT CGROUP`.
"""

import ctypes
import os
import platform
import resource
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from time import perf_counter, process_time, sleep

import msgspec

from fleet_wire.errors import WireError
from fleet_wire.tensors import decode_tensors, encode_tensors
from vehicle_agent.allotment import Allotment
from vehicle_agent.cgroup import enter_cgroup
from vehicle_agent.frames import (
    PREFIX_BYTES,
    UNWATCHED,
    Answer,
    Load,
    Loaded,
    Order,
    Raised,
    Ran,
    RunBatch,
    Unusable,
    frame_of,
)
from vehicle_agent.runtime import LoadedModel, RunFailed, UnusableModel, load_model

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
# ioprio_set(2) has no wrapper in the C library, and another number on each family of processors.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314}
_OF_PROCESS, _IDLE_CLASS, _CLASS_SHIFT = 1, 3, 13
_SILENCE_S = 2.0


class Worker:
    """Loaded models, and what to answer to an order. Before the next one it rests, `rest_share` of what it computed."""

    def __init__(self, threads: int, rest_share: float = 0.0) -> None:
        self._threads = threads
        self._rest_share = rest_share
        self._rests_until_s = 0.0
        self._models: dict[str, LoadedModel] = {}

    def answer(self, order: Order) -> Answer:
        """Carry out one order."""
        started_s = perf_counter()
        sleep(max(0.0, self._rests_until_s - started_s))
        computing_s = process_time()
        answer = self._load(order) if isinstance(order, Load) else self._run(order, started_s)
        computed_s = (process_time() - computing_s) / self._threads
        self._rests_until_s = perf_counter() + computed_s * self._rest_share
        return answer

    def _load(self, order: Load) -> Loaded | Unusable:
        for digest in order.unload:
            self._models.pop(digest, None)
        try:
            model = load_model(order.path, self._threads)
        except UnusableModel as error:
            return Unusable(order.digest, str(error))
        self._models[order.digest] = model
        return Loaded(order.digest, model.batch_rows)

    def _run(self, order: RunBatch, started_s: float) -> Ran | Raised:
        """What a batch took has its rest in it: the car is awake all the while, and each batch takes that long."""
        try:
            inputs = decode_tensors(order.inputs)
            processor_s = process_time()
            outputs = self._models[order.digest].run(order.rows, inputs)
            compute_ms = (perf_counter() - started_s) * 1000
            processor_ms = (process_time() - processor_s) * 1000 / self._threads
            return Ran(encode_tensors(outputs), compute_ms, min(processor_ms, compute_ms))
        except RunFailed as error:
            return Raised(str(error), error.by_row)
        except WireError as error:  # the model made text that is not Unicode
            return Raised(error.detail, by_row=True)


def main(socket_fd: int, beats_fd: int, parent_pid: int, allotment: Allotment, cgroup: Path | None) -> None:
    """Serve the parent until the pipe ends."""
    _die_with(parent_pid)
    threading.Thread(target=_die_unwatched, args=[beats_fd], name="beats", daemon=True).start()
    rest_share = _bound(allotment, cgroup)
    pipe = socket.socket(fileno=socket_fd)
    orders = pipe.makefile("rb", buffering=1 << 20)
    decode = msgspec.msgpack.Decoder(Order).decode
    worker = Worker(allotment.threads, rest_share)
    while prefix := orders.read(PREFIX_BYTES):
        order = decode(orders.read(int.from_bytes(prefix, "little")))
        pipe.sendall(frame_of(worker.answer(order)))


def _bound(allotment: Allotment, cgroup: Path | None) -> float:
    """Hold this process to its allotment; return how long to rest for each second of computing.

    The resource limit holds inside of a control group too: what it refuses is an error of the model, and no kill.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(os.nice(0), allotment.niceness))
    _let_others_first()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bytes_most = allotment.memory_bytes if hard == resource.RLIM_INFINITY else min(allotment.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_most, hard))
    if cgroup is not None:
        try:
            enter_cgroup(cgroup)
        except OSError as error:
            print(f"the worker is not in its control group: {error}", file=sys.stderr)  # noqa: T201 - the agent's log
        else:
            return 0.0
    return 1 / allotment.busy_share - 1


def _let_others_first() -> None:
    """Use disks only while nobody else does, where the system has such a class; for this thread and those it starts."""
    number = _IOPRIO_SET.get(platform.machine()) if sys.platform == "linux" else None
    if number is not None:
        ctypes.CDLL(None).syscall(number, _OF_PROCESS, 0, _IDLE_CLASS << _CLASS_SHIFT)


def _die_with(parent_pid: int) -> None:
    """Have the system kill us with our parent: while a batch computes, nobody looks at the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked
            sys.exit(1)


def _die_unwatched(beats_fd: int) -> None:
    """End the process when the beats end, or none comes for a while. The runtime lets threads run while it computes."""
    while select.select([beats_fd], [], [], _SILENCE_S)[0] and os.read(beats_fd, 4096):
        pass
    os._exit(UNWATCHED)


if __name__ == "__main__":
    _socket, _beats, _parent = map(int, sys.argv[1:4])
    _cgroup = Path(sys.argv[5]) if sys.argv[5] else None
    main(_socket, _beats, _parent, msgspec.json.decode(sys.argv[4], type=Allotment), _cgroup)
