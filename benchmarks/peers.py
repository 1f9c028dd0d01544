"""The same work through other systems, each with two worker processes on this machine.

`python -m benchmarks.peers PEER echo COUNT` or `... PEER infer MODEL ROWS.npz CHUNK`: one measured run a line of input,
after a short one that warms everything up. What comes back is compared with what must.
"""
# ruff: noqa: PLC0415  a peer that is not installed must not stop the others

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import work
from benchmarks.child import ProcessFailed, hear, say, spawn
from benchmarks.figures import Figure, Plan, listed, middle
from idlewheel.brokers import free_port

WORKERS: Final = 2
WARM_ITEMS: Final = 200
_START_S: Final = 60.0
Work = Callable[[Any], Any]
Run = Callable[[Sequence[Any]], list[Any]]


class NotInstalled(Exception):
    """The message names what is missing."""


@contextlib.contextmanager
def pool(do: Work) -> Iterator[Run]:
    """concurrent.futures: an item is a task of its own."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as executor:
        yield lambda items: list(executor.map(do, items))


@contextlib.contextmanager
def ray_tasks(do: Work) -> Iterator[Run]:
    with _ray() as ray:
        remote = ray.remote(do)
        yield lambda items: ray.get([remote.remote(item) for item in items])


@contextlib.contextmanager
def ray_actors(do: Work) -> Iterator[Run]:
    with _ray() as ray:

        class Actor:
            def do(self, item: Any) -> Any:
                return do(item)

        actors = [ray.remote(Actor).remote() for _ in range(WORKERS)]
        yield lambda items: ray.get([actors[place % WORKERS].do.remote(item) for place, item in enumerate(items)])


@contextlib.contextmanager
def _ray() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def dask(do: Work) -> Iterator[Run]:
    import distributed

    library: Any = distributed  # which has annotations in places
    with (
        library.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        library.Client(cluster) as client,
    ):
        yield lambda items: client.gather(client.map(do, items, pure=False))


@contextlib.contextmanager
def celery(do: Work) -> Iterator[Run]:
    server = shutil.which("redis-server")
    if server is None:
        raise NotInstalled("redis-server")
    port = free_port()
    os.environ["IDLEWHEEL_BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"
    from celery.result import ResultSet

    from benchmarks import celery_app

    command = [sys.executable, "-m", "celery", "-A", "benchmarks.celery_app", "worker", "--concurrency", str(WORKERS)]
    quiet = ["--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    if do is not work.echo:
        raise NotInstalled("a task for this work: its serialiser takes no arrays")
    with (
        tempfile.TemporaryDirectory() as folder,
        _running([server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]),
        _running([*command, *quiet]),
    ):

        def run(items: Sequence[Any]) -> list[Any]:
            results = [celery_app.echo.delay(item) for item in items]
            return list(ResultSet(results).join_native(timeout=1200))

        yield run


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


PEERS: Final = {"process pool": pool, "ray tasks": ray_tasks, "ray actors": ray_actors, "dask": dask, "celery": celery}


def echo_items(count: int) -> tuple[list[Any], Callable[[list[Any]], bool]]:
    items = [number.to_bytes(4, "big") * 256 for number in range(count)]
    return items, lambda answers: answers == items


def infer_items(model: str, rows: Path, chunk: int) -> tuple[list[Any], Callable[[list[Any]], bool]]:
    with np.load(rows) as file:
        inputs = {name: file[name] for name in file.files}
    count = len(next(iter(inputs.values())))
    items = [
        (model, {name: array[start : start + chunk] for name, array in inputs.items()})
        for start in range(0, count, chunk)
    ]
    return items, lambda answers: sum(len(answer[0]) for answer in answers) == count


async def measure_peer(plan: Plan, figure: Figure, units: int, *arguments: object) -> Figure:
    """Run the peer that `figure` is named after; its value is units of work a second."""
    async with spawn(plan.directory, "benchmarks.peers", figure.name, *arguments) as peer:
        try:
            ready = await peer.hear()
            if "missing" in ready:
                return replace(figure, note=f"not installed: {ready['missing']}")
            values = []
            for _ in range(plan.runs):
                await peer.tell(go=True)
                answer = await peer.hear()
                assert answer["right"], f"{figure.name} gave wrong answers"
                values.append(units / answer["took_s"])
        except ProcessFailed as error:
            return replace(figure, note=f"failed: {str(error).splitlines()[-1]}")
    return replace(figure, value=middle(values), note=listed(values))


def main() -> None:
    peer, kind, *arguments = sys.argv[1:]
    items, is_right = (
        echo_items(int(arguments[0]))
        if kind == "echo"
        else infer_items(arguments[0], Path(arguments[1]), int(arguments[2]))
    )
    try:
        with PEERS[peer](work.echo if kind == "echo" else work.infer) as run:
            run(items[:WARM_ITEMS])
            say(ready=True)
            while hear():
                started_s = time.perf_counter()
                answers = run(items)
                took_s = time.perf_counter() - started_s
                say(took_s=took_s, right=is_right(answers))
                del answers
    except (ImportError, NotInstalled) as error:
        say(missing=str(error))


if __name__ == "__main__":
    main()
