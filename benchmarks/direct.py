"""onnxruntime alone, in two processes of one thread each that share the rows: what `models` is held against.

`python -m benchmarks.direct MODEL ROWS.npz`: tries batch sizes on some of the rows and keeps the fastest, then does all
rows once a line of its input. Nothing is sent anywhere: rows are in the memory of both processes beforehand.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.child import hear, say
from benchmarks.work import open_session

WORKERS: Final = 2
BATCHES: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
_TRY_S: Final = 0.4
_TRIES: Final = 3


def work(model: str, rows: Path, order: Connection, taken: Any) -> None:
    """In each process: for (batch, rows) take batches in turn until all are taken; answer when done."""
    session = open_session(model)
    with np.load(rows) as file:
        inputs = {name: file[name] for name in file.files}
    session.run(None, {name: array[:1] for name, array in inputs.items()})
    order.send("ready")
    while (asked := order.recv()) is not None:
        batch, count, until_s = asked
        done = 0
        for start in _turns(taken, batch, count):
            session.run(None, {name: array[start : min(start + batch, count)] for name, array in inputs.items()})
            done += min(batch, count - start)
            if time.monotonic() > until_s:
                break
        order.send((done, time.monotonic()))


def _turns(taken: Any, batch: int, count: int) -> Iterator[int]:
    while True:
        with taken.get_lock():
            start = taken.value
            taken.value += batch
        if start >= count:
            return
        yield start


def main() -> None:
    model, rows = sys.argv[1], Path(sys.argv[2])
    with np.load(rows) as file:
        count = len(file[file.files[0]])
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    pipes = [context.Pipe() for _ in range(WORKERS)]
    processes = [context.Process(target=work, args=(model, rows, theirs, taken), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    orders = [ours for ours, _ in pipes]
    for order in orders:
        order.recv()

    def rows_per_s(batch: int, until_s: float) -> float:
        taken.value = 0
        started_s = time.monotonic()
        for order in orders:
            order.send((batch, count, until_s))
        answers = [order.recv() for order in orders]
        return float(sum(done for done, _ in answers) / (max(at_s for _, at_s in answers) - started_s))

    tried = dict.fromkeys((batch for batch in BATCHES if batch * WORKERS <= count), 0.0)
    for _ in range(_TRIES):  # in turns, and the best of each: what disturbs the machine for a moment must not choose
        for batch in tried:
            tried[batch] = max(tried[batch], rows_per_s(batch, time.monotonic() + _TRY_S))
    best = max(tried, key=lambda batch: tried[batch])
    say(batch=best, tried=tried)
    while hear():
        say(per_s=rows_per_s(best, float("inf")))
    for order in orders:
        order.send(None)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
