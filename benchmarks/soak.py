"""Two thousand live connections for ten minutes: `make soak`, `ARGS="--minutes 2 --agents 500"`.

Vehicles in simulator processes come and go, say how they are, and work on one job after the other, through a real
Mosquitto and a real coordinator. In the middle the broker is restarted. Prints a line every ten seconds and a table;
exits with 1 when memory or a queue grew, a row was lost or wrong, or too many vehicles came back in one second.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil

from benchmarks.child import Process, spawn
from benchmarks.figures import Figure, table
from benchmarks.stack import FLEET
from benchmarks.work import open_session
from idlewheel.client import Client
from idlewheel.examples import EXAMPLES
from idlewheel.local_fleet import LocalFleet, run_local_fleet

GROUP: Final = "soak"
_IN_PROCESS: Final = 250
_CHURN_S: Final = 120.0
_JOB_ROWS: Final = 20_000
_CHUNK_ROWS: Final = 50
_JOBS_AT_ONCE: Final = 2
_JOB_S: Final = 300.0
_MOST_EVENTS: Final = 8_192
_MOST_GROWTH: Final = 0.15
_SPARE_MB: Final = 20.0
_MOST_IN_A_SECOND: Final = 0.4
_BACK: Final = 0.85  # of the vehicles are there at any time: the others are away by their own wish
_BACK_S: Final = 30.0
_QUEUES: Final = re.compile(r"^idlewheel_\w+_(events_waiting|store_waiting)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


@dataclass(slots=True)
class Sample:
    """One look at everything."""

    at_s: float
    online: int
    rss_mb: float
    events_waiting: float
    rows_done: int


@dataclass(slots=True)
class Soak:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    online: dict[int, int] = field(default_factory=dict)
    counted: dict[int, Counter[str]] = field(default_factory=dict)
    jobs_done: int = 0
    rows_done: int = 0
    wrong: list[str] = field(default_factory=list)
    came_back: list[int] = field(default_factory=list)
    back_after_s: float | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, name: str) -> int:
        """A count of all simulator processes."""
        return sum(counted[name] for counted in self.counted.values())


async def listen(soak: Soak, place: int, process: Process) -> None:
    """Take what one simulator process says."""
    while True:
        said = await process.hear(60)
        soak.online[place], soak.counted[place] = said["online"], Counter(said["counted"])


async def work(soak: Soak, client: Client, folder: Path, over: asyncio.Event) -> None:
    """One job after the other; each must come back whole and right."""
    digits = EXAMPLES["digits"]
    model = folder / "digits.onnx"
    if not model.exists():
        model.write_bytes(digits.model())
    session = open_session(str(model))
    rows = digits.rows(_JOB_ROWS, 0).inputs
    names = [output.name for output in session.get_outputs()]
    right = dict(zip(names, session.run(names, rows), strict=True))
    while not over.is_set():
        job = await asyncio.to_thread(client.submit, model, rows, chunk_rows=_CHUNK_ROWS)
        view = await asyncio.to_thread(job.wait, _JOB_S)
        if view.state != "done" or view.rows_done != _JOB_ROWS:
            soak.wrong.append(f"job {view.id} is {view.state} with {view.rows_done} rows: {view.error}")
            continue
        result = await asyncio.to_thread(job.result)
        for name in names:
            if not np.allclose(result[name], np.asarray(right[name]), rtol=1e-3, atol=1e-4):
                soak.wrong.append(f"job {view.id}: {name} is not what onnxruntime gives")
        soak.jobs_done += 1
        soak.rows_done += _JOB_ROWS


async def watch(soak: Soak, local: LocalFleet, begun_s: float) -> None:
    """A sample every two seconds, a line every ten."""
    process = psutil.Process(local.coordinator.pid)
    async with httpx.AsyncClient(timeout=30) as http:
        for number in range(10**9):
            text = (await http.get(f"{local.url}/metrics")).text
            waiting = max((float(value) for _, value in _QUEUES.findall(text)), default=0.0)
            rss_mb = process.memory_info().rss / 1e6
            sample = Sample(time.monotonic() - begun_s, sum(soak.online.values()), rss_mb, waiting, soak.rows_done)
            soak.samples.append(sample)
            if number % 5 == 0:
                print(
                    f"{sample.at_s:5.0f} s  {sample.online:5} connected  {rss_mb:4.0f} MB  {waiting:5.0f} waiting  "
                    f"{soak.jobs_done:3} jobs  {soak.count('rows_acknowledged'):8,} rows acknowledged  "
                    f"left {soak.count('left')}, cut off {soak.count('cut_off')}",
                    flush=True,
                )
            await asyncio.sleep(2)


async def restart_broker(soak: Soak, local: LocalFleet, agents: int) -> None:
    """Kill the broker and start it again; count who comes back in each second."""
    print("the broker is killed and started again", flush=True)
    await local.broker.kill()
    await asyncio.sleep(1.5)  # by then all have noticed
    before = soak.count("connected")
    await local.broker.start()
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < _BACK_S:
        await asyncio.sleep(1)
        after = soak.count("connected")
        soak.came_back.append(after - before)
        before = after
        if soak.back_after_s is None and sum(soak.online.values()) >= _BACK * agents:
            soak.back_after_s = time.monotonic() - begun_s


async def run(folder: Path, agents: int, minutes: float) -> Soak:
    """The whole of it."""
    soak, over = Soak(), asyncio.Event()
    async with (
        run_local_fleet(folder, broker="mosquitto", fleet=FLEET) as local,
        _simulators(soak, folder, local.broker.port, agents),
        asyncio.TaskGroup() as tasks,
    ):
        with Client(local.url, patience_s=120) as client:
            begun_s = time.monotonic()
            watching = tasks.create_task(watch(soak, local, begun_s))
            working = [tasks.create_task(work(soak, client, folder, over)) for _ in range(_JOBS_AT_ONCE)]
            await asyncio.sleep(minutes * 30)
            await restart_broker(soak, local, agents)
            await asyncio.sleep(max(0.0, minutes * 60 - (time.monotonic() - begun_s)))
            over.set()
            await asyncio.gather(*working)
            watching.cancel()
    return soak


@contextlib.asynccontextmanager
async def _simulators(soak: Soak, folder: Path, port: int, agents: int) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as running, asyncio.TaskGroup() as tasks:
        listening = []
        for place, first in enumerate(range(0, agents, _IN_PROCESS)):
            count = min(_IN_PROCESS, agents - first)
            arguments = (port, FLEET, first, count, _CHURN_S)
            process = await running.enter_async_context(spawn(folder, "benchmarks.soak_agents", *arguments))
            listening.append(tasks.create_task(listen(soak, place, process)))
        yield
        for task in listening:
            task.cancel()


def judge(soak: Soak, agents: int) -> list[Figure]:
    """What is asked of it."""
    memory = [sample.rss_mb for sample in soak.samples]
    early, late = memory[len(memory) // 4 : len(memory) // 2], memory[-len(memory) // 4 :]
    most_mb = float(np.median(early)) * (1 + _MOST_GROWTH) + _SPARE_MB
    peak = max(soak.came_back)
    waiting = max(sample.events_waiting for sample in soak.samples)
    figures = [
        _asked("memory of the coordinator, median of the last quarter", "MB", float(np.median(late)), most_mb,
               f"second quarter {np.median(early):.0f} MB"),
        _asked("events or lines that waited, most", "", waiting, _MOST_EVENTS, ""),
        _asked("jobs that were not right", "", len(soak.wrong), 1, "; ".join(soak.wrong)[:300]),
        _asked("tasks that a vehicle could not do", "", soak.count("tasks_failed"), 1, ""),
        _asked("came back in one second after the broker's restart, most", "vehicles", peak, _MOST_IN_A_SECOND * agents,
               "by second " + " ".join(map(str, soak.came_back))),
        _asked("until 85 % were back", "s", soak.back_after_s or 1e9, _BACK_S, ""),
    ]  # fmt: skip
    told = {"jobs": soak.jobs_done, "rows": soak.rows_done} | {
        name: soak.count(name) for name in ("rows_acknowledged", "connected", "left", "cut_off", "links_lost")
    }
    return [*figures, *(Figure(GROUP, name.replace("_", " "), "", float(count)) for name, count in told.items())]


def _asked(name: str, unit: str, value: float, limit: float, note: str) -> Figure:
    return Figure(GROUP, name, unit, value, required=f"under {limit:,.0f}", met=value < limit, note=note)


def _document(soak: Soak, figures: Sequence[Figure]) -> dict[str, Any]:
    return {
        "figures": [asdict(figure) for figure in figures],
        "samples": [asdict(sample) for sample in soak.samples],
        "came_back_by_second": soak.came_back,
        "wrong": soak.wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--agents", type=int, default=2_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave logs and data there, in an empty folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlewheel-soak-") as folder:
        soak = asyncio.run(run(arguments.keep or Path(folder), arguments.agents, arguments.minutes))
    figures = judge(soak, arguments.agents)
    print(table(figures))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_document(soak, figures), indent=2) + "\n")
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
