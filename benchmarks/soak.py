"""Two thousand live connections for ten minutes: `make soak`, `ARGS="--minutes 2 --agents 500"`.

Vehicles in simulator processes come and go, say how they are, and work on one job after the other, through a real
Mosquitto and a real coordinator. In the middle the broker is killed and started again. Prints a line every ten seconds
and a table; exits with 1 when memory or a queue grew, an acknowledged message was lost, a row was lost or wrong, or too
many vehicles came back in one second. `benchmarks.soak_account` says what is promised of messages.
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
from benchmarks.soak_account import Account, account
from benchmarks.stack import FLEET
from benchmarks.work import open_session
from fleet_link import ConnectOptions, connect
from fleet_wire.codec import STATE
from fleet_wire.messages import State
from fleet_wire.topics import FleetTopics, VehicleChannel
from idlewheel.client import Client
from idlewheel.examples import EXAMPLES
from idlewheel.local_fleet import LocalFleet, run_local_fleet

GROUP: Final = "soak"
_CHURN_S: Final = 120.0
_CHUNK_ROWS: Final = 50
_JOBS_AT_ONCE: Final = 2
_JOB_S: Final = 300.0
_OBSERVE_S: Final = 1.0
_MOST_EVENTS: Final = 8_192
_MOST_GROWTH: Final = 1.0  # MB a minute: 28 bytes for each of 600 messages a second that were never given back
_GROWS_AFTER_S: Final = 120.0  # until then what lasts is made
_MOST_WITH_BROKER_MS: Final = 5_000.0
_MOST_IN_A_SECOND: Final = 0.4
_BACK: Final = 0.85  # of the vehicles are there at any time: the others are away by their own wish
_BACK_S: Final = 30.0
_SETTLED_S: Final = 60.0
_LAST: Final = "soak-last"
_SAMPLE: Final = re.compile(r"^idlewheel_(\w+?)(?:\{\w+=\"(\w*)\"\})? (\S+)", re.MULTILINE)
_CAPPED: Final = {"result_time_capped", "result_energy_capped"}  # their rows count
_IN_ROWS: Final = {"result_duplicate_rows": "duplicate", "result_job_not_running": "job_ended"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it; `in_process` vehicles share a simulator process."""

    agents: int
    minutes: float
    job_rows: int = 20_000
    in_process: int = 250


@dataclass(slots=True)
class Sample:
    """One look at everything; `log_mb` of the store's log is in memory until DuckDB has put it into its file."""

    at_s: float
    online: int
    rss_mb: float
    log_mb: float
    broker_mb: float
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
    killed_s: float = 0.0
    refusals: dict[str, int] = field(default_factory=dict)
    rows_refused: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """A count of all simulator processes."""
        return sum(counted[name] for counted in self.counted.values())


async def listen(soak: Soak, place: int, process: Process) -> None:
    """Take what one simulator process says."""
    while True:
        said = await process.hear(60)
        soak.online[place], soak.counted[place] = said["online"], Counter(said["counted"])


async def work(soak: Soak, client: Client, folder: Path, job_rows: int, over: asyncio.Event) -> None:
    """One job after the other; each must come back whole and right."""
    digits = EXAMPLES["digits"]
    model = folder / "digits.onnx"
    if not model.exists():
        model.write_bytes(digits.model())
    session = open_session(str(model))
    rows = digits.rows(job_rows, 0).inputs
    names = [output.name for output in session.get_outputs()]
    right = dict(zip(names, session.run(names, rows), strict=True))
    while not over.is_set():
        job = await asyncio.to_thread(client.submit, model, rows, chunk_rows=_CHUNK_ROWS)
        view = await asyncio.to_thread(job.wait, _JOB_S)
        if view.state != "done" or view.rows_done != job_rows:
            soak.wrong.append(f"job {view.id} is {view.state} with {view.rows_done} rows: {view.error}")
            continue
        result = await asyncio.to_thread(job.result)
        for name in names:
            if not np.allclose(result[name], np.asarray(right[name]), rtol=1e-3, atol=1e-4):
                soak.wrong.append(f"job {view.id}: {name} is not what onnxruntime gives")
        soak.jobs_done += 1
        soak.rows_done += job_rows


async def watch(soak: Soak, local: LocalFleet, begun_s: float) -> None:
    """A sample every two seconds, a line every ten."""
    async with httpx.AsyncClient(timeout=30) as http:
        for number in range(10**9):
            seen = await _metrics(http, local)
            sample = Sample(
                time.monotonic() - begun_s,
                sum(soak.online.values()),
                _resident_mb(local.coordinator.pid),
                _size_mb(local.directory / "coordinator" / "telemetry.duckdb.wal"),
                _resident_mb(local.broker.pid),
                max(seen.get(("service_events_waiting", ""), 0.0), seen.get(("service_store_waiting", ""), 0.0)),
                soak.rows_done,
            )
            soak.samples.append(sample)
            if number % 5 == 0:
                print(
                    f"{sample.at_s:5.0f} s  {sample.online:5} connected  {sample.rss_mb:4.0f} MB  "
                    f"broker {sample.broker_mb:3.0f} MB  {sample.events_waiting:5.0f} waiting  "
                    f"{soak.jobs_done:3} jobs  {soak.count('rows_acknowledged'):8,} rows acknowledged  "
                    f"left {soak.count('left')}, cut off {soak.count('cut_off')}",
                    flush=True,
                )
            await asyncio.sleep(2)


async def _metrics(http: httpx.AsyncClient, local: LocalFleet) -> dict[tuple[str, str], float]:
    """The coordinator's own samples, by name and label."""
    text = (await http.get(f"{local.url}/metrics")).text
    return {(name, label): float(value) for name, label, value in _SAMPLE.findall(text)}


def _resident_mb(pid: int) -> float:
    try:
        return psutil.Process(pid).memory_info().rss / 1e6
    except psutil.NoSuchProcess:  # the broker between its two lives
        return 0.0


def _size_mb(file: Path) -> float:
    try:
        return file.stat().st_size / 1e6
    except FileNotFoundError:  # until the first document, and after each checkpoint
        return 0.0


async def restart_broker(soak: Soak, local: LocalFleet, agents: int) -> None:
    """Kill the broker and start it again; count who comes back in each second, until most are there."""
    print("the broker is killed and started again", flush=True)
    await local.broker.kill()
    soak.killed_s = time.monotonic()
    await asyncio.sleep(1.5)  # by then all have noticed
    before = soak.count("connected")
    await local.broker.start()
    begun_s = time.monotonic()
    while soak.back_after_s is None and time.monotonic() - begun_s < _BACK_S:
        await asyncio.sleep(1)
        after = soak.count("connected")
        soak.came_back.append(after - before)
        before = after
        if sum(soak.online.values()) >= _BACK * agents:
            soak.back_after_s = time.monotonic() - begun_s


async def settle(soak: Soak, local: LocalFleet) -> None:
    """When nobody sends any more: wait until the coordinator has kept all that was sent, and ask what it refused.

    A last birth, of a vehicle that it did not know, stands behind all results and telemetry; an observation that counts
    that vehicle and finds nothing waiting was made when all was kept.
    """
    topic = FleetTopics(FLEET).vehicle(_LAST, VehicleChannel.STATE)
    session = await connect(ConnectOptions(local.broker.host, local.broker.port, _LAST))
    async with httpx.AsyncClient(timeout=30) as http, asyncio.timeout(_SETTLED_S):
        known = len((await http.get(f"{local.url}/v1/vehicles")).json())
        await session.publish(topic, STATE.encode(State(online=True, epoch=1)), content_type=STATE.content_type)
        await session.close()
        seen: dict[tuple[str, str], float] = {}
        while seen.get(("fleet_state_vehicles", "")) != known + 1 or any(
            seen[f"service_{name}", ""] for name in ("events_waiting", "store_lag_seconds", "store_waiting")
        ):
            await asyncio.sleep(_OBSERVE_S / 2)
            seen = await _metrics(http, local)
        soak.refusals = (await http.get(f"{local.url}/v1/health")).json()["refusals"]
    soak.rows_refused = {cause: int(seen.get(("job_waste_rows_total", cause), 0)) for cause in _IN_ROWS.values()}


async def run(folder: Path, plan: Plan) -> tuple[Soak, Account]:
    """The whole of it."""
    soak, over = Soak(), asyncio.Event()
    async with run_local_fleet(folder, broker="mosquitto", fleet=FLEET, observe_every_s=_OBSERVE_S) as local:
        async with _simulators(soak, folder, local.broker.port, plan), asyncio.TaskGroup() as tasks:
            with Client(local.url, patience_s=120) as client:
                await _most_connected(soak, plan)
                begun_s = time.monotonic()
                watching = tasks.create_task(watch(soak, local, begun_s))
                working = [
                    tasks.create_task(work(soak, client, folder, plan.job_rows, over)) for _ in range(_JOBS_AT_ONCE)
                ]
                await asyncio.sleep(plan.minutes * 30)
                await restart_broker(soak, local, plan.agents)
                await asyncio.sleep(max(0.0, plan.minutes * 60 - (time.monotonic() - begun_s)))
                over.set()
                await asyncio.gather(*working)
                watching.cancel()
        await settle(soak, local)
    data = folder / "coordinator"
    return soak, account(folder, data / "ledger.sqlite", data / "telemetry.duckdb", soak.killed_s, soak.rows_refused)


async def _most_connected(soak: Soak, plan: Plan) -> None:
    async with asyncio.timeout(_SETTLED_S):
        while sum(soak.online.values()) < _BACK * plan.agents:  # noqa: ASYNC110 - what other processes count
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _simulators(soak: Soak, folder: Path, port: int, plan: Plan) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as running, asyncio.TaskGroup() as tasks:
        listening = []
        for place, first in enumerate(range(0, plan.agents, plan.in_process)):
            count = min(plan.in_process, plan.agents - first)
            arguments = (port, FLEET, first, count, _CHURN_S, folder)
            process = await running.enter_async_context(spawn(folder, "benchmarks.soak_agents", *arguments))
            listening.append(tasks.create_task(listen(soak, place, process)))
        yield
        for task in listening:
            task.cancel()


def growth(samples: Sequence[Sample]) -> float | None:
    """How fast the coordinator grew in the second half, in MB a minute; None where that is too short to tell.

    Without what the store is about to put into its file, which DuckDB does at 16 MB. The median of the slopes between
    any two samples: what rises and falls hardly changes it.
    """
    half_s = samples[-1].at_s / 2
    late = [sample for sample in samples if sample.at_s >= half_s]
    if half_s < _GROWS_AFTER_S:
        return None
    at_min = np.array([sample.at_s for sample in late]) / 60
    own_mb = np.array([sample.rss_mb - sample.log_mb for sample in late])
    one, other = np.triu_indices(len(late), 1)
    return float(np.median((own_mb[other] - own_mb[one]) / (at_min[other] - at_min[one])))


def judge(soak: Soak, found: Account, plan: Plan) -> list[Figure]:
    """What is asked of it."""
    return [*judge_messages(soak, found), *judge_load(soak, found, plan), *_told(soak)]


def judge_messages(soak: Soak, found: Account) -> list[Figure]:
    """Nothing that was acknowledged is lost, whatever the machine's speed."""
    documents, rows = found.documents, found.rows
    refused = {
        reason: count
        for reason, count in soak.refusals.items()
        if reason.startswith(("result_", "message_")) and reason not in {*_IN_ROWS, *_CAPPED}
    }
    by_cause = ", ".join(f"{cause} {count:,}" for cause, count in found.rows_refused.items())
    return [
        _asked("jobs that were not right", "", len(soak.wrong), 1, "; ".join(soak.wrong)[:300]),
        _asked("tasks that a vehicle could not do", "", soak.count("tasks_failed"), 1, ""),
        _asked("acknowledged telemetry documents lost", "", documents.missing, 1,
               f"of {documents.acknowledged:,}; {documents.with_broker:,} went with the broker"),
        _asked("acknowledged rows lost", "", found.rows_lost, 1,
               f"of {rows.acknowledged:,}; {rows.kept:,} kept, refused: {by_cause}; "
               f"{rows.with_broker:,} went with the broker, or were refused then"),
        _asked("rows refused that nobody sent", "", found.rows_made_up, 1,
               f"{rows.unknown:,} were sent, not acknowledged, and are not kept"),
        _asked("results and documents refused for another reason", "", sum(refused.values()), 1, str(refused or "")),
    ]  # fmt: skip


def judge_load(soak: Soak, found: Account, plan: Plan) -> list[Figure]:
    """Memory, queues and the storm after the broker's death."""
    grew = growth(soak.samples)
    mine = [sample.rss_mb for sample in soak.samples]
    broker_mb = [sample.broker_mb for sample in soak.samples]
    memory = f"{mine[len(mine) // 4]:.0f} MB after a quarter, {mine[-1]:.0f} MB in the end, most {max(mine):.0f} MB"
    oldest_ms = 1000 * max(each.oldest_s for each in (found.documents, found.rows))
    return [
        _asked("memory of the coordinator, growth in the second half", "MB/min", grew, _MOST_GROWTH, memory),
        Figure(GROUP, "memory of the broker, most", "MB", max(broker_mb), note=f"{broker_mb[-1]:.0f} MB in the end"),
        _asked("events or lines that waited, most", "", max(sample.events_waiting for sample in soak.samples),
               _MOST_EVENTS, ""),
        _asked("what went with the broker was acknowledged at most before", "ms", oldest_ms, _MOST_WITH_BROKER_MS, ""),
        _asked("came back in one second after the broker's restart, most", "vehicles", max(soak.came_back),
               _MOST_IN_A_SECOND * plan.agents, "by second " + " ".join(map(str, soak.came_back))),
        _asked("until 85 % were back", "s", soak.back_after_s or 1e9, _BACK_S, ""),
    ]  # fmt: skip


def _told(soak: Soak) -> list[Figure]:
    told = {"jobs": soak.jobs_done, "rows": soak.rows_done} | {
        name: soak.count(name)
        for name in ("results_not_taken", "documents_not_taken", "connected", "left", "cut_off", "links_lost")
    }
    return [Figure(GROUP, name.replace("_", " "), "", float(count)) for name, count in told.items()]


def _asked(name: str, unit: str, value: float | None, limit: float, note: str) -> Figure:
    """One that is asked for; None: too short a run to tell."""
    met = None if value is None else value < limit
    return Figure(GROUP, name, unit, value, required=f"under {limit:,.0f}", met=met, note=note)


def _document(soak: Soak, found: Account, figures: Sequence[Figure]) -> dict[str, Any]:
    return {
        "figures": [asdict(figure) for figure in figures],
        "account": asdict(found),
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
    plan = Plan(arguments.agents, arguments.minutes)
    with tempfile.TemporaryDirectory(prefix="idlewheel-soak-") as folder:
        soak, found = asyncio.run(run(arguments.keep or Path(folder), plan))
    figures = judge(soak, found, plan)
    print(table(figures))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_document(soak, found, figures), indent=2) + "\n")
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
