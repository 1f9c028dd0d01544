"""Runs plans and gathers the facts for the oracle: `python -m tests.system.chaos.run --seeds 50 --start 1000`.

Prints one line a seed and a table in the end; exits with 1 when the oracle objects. A seed is the same plan again.
"""

import argparse
import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import onnxruntime
import psutil
import psycopg

from fleet_wire.codec import RESULT, TELEMETRY
from fleet_wire.errors import WireError
from fleet_wire.messages import Rows
from fleet_wire.tensors import Array
from fleet_wire.topics import JobTopic, VehicleChannel, VehicleTopic, parse_topic
from idlewheel import Job
from idlewheel.errors import IdlewheelError, JobFailed
from idlewheel.examples.digits import DIGITS
from tests.system.chaos.evidence import convicted_cars, copied, held_rows, look_into_ledger
from tests.system.chaos.facts import Collected, Facts, differing
from tests.system.chaos.oracle import lost_rows, objections
from tests.system.chaos.plan import Fault, Kind, Load, Plan, plan_of
from tests.system.chaos.stage import Stage, on_stage
from tests.system.test_large_and_hostile import doubling
from tests.system.test_nothing_is_lost import INPUTS, MODEL

__all__ = ["Outcome", "Run", "after", "ending", "main", "run_plan", "work"]

_JOB_S: Final = 120.0
_QUIET_S: Final = 10.0
_WIDE: Final = 40_000  # floats of a row: too large for a packet
_RUNTIMES_OWN: Final = ".ses"  # onnxruntime counts its sessions there
_TOLERANCES: Final = {"slow": {"y": (1e-3, 1e-3)}}  # as `differing` has it; a sum that comes near to 0 needs one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan."""

    plan: Plan
    objections: list[str]
    rows: int
    again: int
    seconds: float
    folder: Path
    notes: list[str]


class Run(Stage):
    """A stage on which jobs run, and which looks into the ledger whenever the coordinator has died."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        super().__init__(plan, directory)
        self.facts = Facts(stepped_ms=plan.stepped_ms, liars=plan.liars, never_honest=plan.never_honest)

    async def look_into_ledger(self) -> None:
        try:
            held, convicted = await asyncio.to_thread(lambda: (held_rows(self), convicted_cars(self)))
        except psycopg.Error as error:
            self.notes.append(f"the ledger could not be asked after crash {self.crashes}: {error}")
            return
        acknowledged = acknowledged_rows(self, convicted)
        self.facts.lost_at_a_crash += lost_rows(acknowledged, held, f"after crash {self.crashes}")


async def run_plan(plan: Plan, directory: Path) -> Outcome:
    """Run a plan with all its files in `directory`, and let the oracle judge."""
    began = time.monotonic()
    stage = Run(plan, directory)
    facts = stage.facts
    try:
        async with on_stage(stage):
            facts.files_before = _open_files(stage)
            await _disturbed(stage)
            await ending(stage)
        await after(stage)
        found = objections(facts)
    except Exception as error:  # noqa: BLE001 - a run that breaks off is an objection of its own
        # What the oracle would look at was not gathered.
        found = [*(f"the run broke off: {each!r}" for each in _causes(error)), *facts.lost_at_a_crash]
    views = [each.status for each in facts.collected.values() if each.status is not None]
    return Outcome(
        plan,
        found,
        sum(view.rows for view in views),
        sum(view.rows_released_again + view.rows_duplicate for view in views),
        time.monotonic() - began,
        directory,
        stage.notes,
    )


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    else:
        yield error


async def ending(stage: Run) -> None:
    """Ask the coordinator what the oracle wants to know, end everything in order, and look into the files."""
    facts = stage.facts
    await _settled(stage)
    facts.files_after = _open_files(stage)
    await asyncio.to_thread(_ask, stage)
    facts.left_over += await stage.stop()
    await asyncio.to_thread(_look, stage)


async def after(stage: Run) -> None:
    """What is left when all is over."""
    stage.facts.left_over += await _left_over(stage)
    stage.facts.ended += [each for each in stage.ended if not each.endswith("on a full disk")]


async def _disturbed(stage: Run) -> None:
    """Submit the jobs and let the faults happen, each at its time; return when all are over.

    Time begins when the first job is under way, so that faults meet work, however slow the machine is.
    """
    under_way = threading.Event()
    first, *later = stage.plan.loads
    threads = ThreadPoolExecutor(len(stage.plan.loads), thread_name_prefix="job")
    try:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            working = loop.run_in_executor(threads, work, stage, first, under_way)
            working.add_done_callback(lambda _: under_way.set())
            await asyncio.to_thread(under_way.wait)
            began = time.monotonic()

            async def load(each: Load) -> None:
                await asyncio.sleep(max(0.0, began + each.at_s - time.monotonic()))
                await loop.run_in_executor(threads, work, stage, each, threading.Event())

            async def suffer(fault: Fault) -> None:
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                await stage.suffer(fault)
                if fault.kind is Kind.REVOKE:
                    stage.facts.revoked.append(fault.target)

            for each in later:
                tasks.create_task(load(each))
            for fault in stage.plan.faults:
                tasks.create_task(suffer(fault))
            await working
    finally:
        await asyncio.to_thread(threads.shutdown)  # it waits for jobs, and they for the links that are served here


def work(stage: Run, load: Load, under_way: threading.Event, within_s: float = _JOB_S) -> None:
    """Submit a job, again while nobody answers, and collect its rows as they come and its result."""
    model, inputs, expected = _job(load.model, load.rows, stage.plan.seed)
    tolerances = None if load.verify == "none" else _TOLERANCES.get(load.model)
    ends = time.monotonic() + within_s
    while True:
        try:
            job = stage.client.submit(model, inputs, verify=load.verify, tolerances=tolerances)
            break
        except IdlewheelError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)
    stage.facts.expected[job.id], stage.facts.rules[job.id] = expected, load.verify
    stage.facts.collected[job.id] = Collected(None, {}, [], [], {})
    late = threading.Timer(within_s, _give_up, [job])
    late.daemon = True
    late.start()
    try:
        stage.facts.collected[job.id] = _collected(job, expected, under_way)
    finally:
        late.cancel()


def _collected(job: Job, expected: dict[str, Array], under_way: threading.Event) -> Collected:
    streamed = {name: np.zeros_like(array) for name, array in expected.items()}
    stream: list[int] = []
    wrong: set[int] = set()
    try:
        for start, piece in job.rows(retracted=lambda start, stop: stream.extend(~row for row in range(start, stop))):
            stop = start + len(next(iter(piece.values())))
            for name, array in piece.items():
                streamed[name][start:stop] = array
                wrong.update(start + row for row in differing(array, expected[name][start:stop]))
            stream.extend(range(start, stop))
            under_way.set()
        result = job.result(_JOB_S)
    except JobFailed:
        result = {}
    return Collected(job.status(), streamed, stream, sorted(wrong), result)


def _give_up(job: Job) -> None:
    """End a job that takes too long, so that whoever follows it hears of it: the oracle will object."""
    with contextlib.suppress(IdlewheelError):
        job.cancel()


@cache
def _session(model: str) -> tuple[bytes, onnxruntime.InferenceSession]:
    data = {"slow": lambda: MODEL, "digits": DIGITS.model, "wide": lambda: doubling(_WIDE)}[model]()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return data, onnxruntime.InferenceSession(data, options)


def _job(model: str, rows: int, seed: int) -> tuple[bytes, dict[str, Array], dict[str, Array]]:
    """A model, its inputs, and what it makes of them here."""
    data, session = _session(model)
    rng = np.random.default_rng(seed)
    match model:
        case "slow":
            inputs = {"x": INPUTS[:rows]}
        case "digits":
            inputs = DIGITS.rows(rows, seed).inputs
        case _:
            inputs = {"x": rng.random((rows, _WIDE), dtype=np.float32)}
    names = [output.name for output in session.get_outputs()]
    return data, inputs, dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


# Facts ---------------------------------------------------------------------------------------------------------------


def acknowledged_rows(stage: Stage, but_of: Collection[str]) -> dict[str, set[int]]:
    """Rows of result messages that the coordinator has acknowledged, by job, but for those of some cars."""
    found: dict[str, set[int]] = defaultdict(set)
    for message in stage.links["coordinator/broker"].acknowledged:
        topic = parse_topic(message.topic)
        if not isinstance(topic, JobTopic) or topic.vehicle in but_of:
            continue
        with contextlib.suppress(WireError):
            result = RESULT.decode(message.payload, RESULT.content_type)
            if isinstance(result, Rows):
                for span in result.spans:
                    found[result.job].update(range(span.start, span.stop))
    return found


def _acknowledged_telemetry(stage: Stage) -> set[tuple[str, int, int]]:
    found = set()
    for message in stage.links["coordinator/broker"].acknowledged:
        topic = parse_topic(message.topic)
        if not isinstance(topic, VehicleTopic) or topic.channel is not VehicleChannel.TELE:
            continue
        with contextlib.suppress(WireError):
            document = TELEMETRY.decode(message.payload, TELEMETRY.content_type)
            found.add((topic.vehicle, document.epoch, document.seq))
    return found


def _ask(stage: Run) -> None:
    """What the coordinator says in the end."""
    facts, client = stage.facts, stage.client
    for car in stage.cars:
        with contextlib.suppress(IdlewheelError):
            facts.histories[car] = client.policy_history(car)
    facts.receipts = list(client.receipts())
    facts.told_convicted = {each.id: each.convictions for each in client.vehicles() if each.convictions}
    for by in ("vehicle", "job", "owner", "month"):
        facts.statements[by] = client.statement(by)


def _look(stage: Run) -> None:
    """What is in the files when everything has ended."""
    facts = stage.facts
    look_into_ledger(stage, facts)
    facts.rows_acknowledged = acknowledged_rows(stage, facts.convictions)
    facts.telemetry_acknowledged = _acknowledged_telemetry(stage)
    facts.telemetry_stored = _stored_telemetry(stage)


def _stored_telemetry(stage: Stage) -> set[tuple[str, int, int]]:
    if stage.store is not None:
        series = stage.store.query("SELECT epoch, seq FROM vehicle_state, vehicle_state_late GROUP BY vehicle", "fleet")
        return {
            (each["tags"]["vehicle"], int(row[1]), int(row[2]))  # type: ignore[index]
            for each in series
            for row in each["values"]  # type: ignore[attr-defined]
        }
    path = stage.folder("coordinator") / "telemetry.duckdb"
    with copied(path, path.with_name(f"{path.name}.wal")) as copy, duckdb.connect(str(copy)) as database:
        return set(database.execute("SELECT vehicle, epoch, seq FROM documents").fetchall())


async def _settled(stage: Stage) -> None:
    """Wait until what is on its way has come, or this takes too long, which shows in what is left over."""
    ends = time.monotonic() + _QUIET_S
    while time.monotonic() < ends:
        with contextlib.suppress(IdlewheelError):
            jobs = await asyncio.to_thread(stage.client.jobs)
            vehicles = await asyncio.to_thread(stage.client.vehicles)
            if all(job.state != "running" for job in jobs) and not any(each.leases for each in vehicles):
                return
        await asyncio.sleep(0.1)


def _open_files(stage: Stage) -> dict[int, int]:
    found = {}
    for pid in stage.pids().values():
        with contextlib.suppress(psutil.Error):
            found[pid] = psutil.Process(pid).num_fds()
    return found


async def _left_over(stage: Stage) -> list[str]:
    """Processes with the run's mark, ports that somebody listens on, and files that nobody wants."""
    for _ in range(50):
        if not (running := _marked(stage.mark)):
            break
        await asyncio.sleep(0.1)
    found = [f"process left over: {each}" for each in running]
    servers = [server for server in (stage.broker, stage.store, stage.postgres) if server is not None]
    ports = [stage.http_port, *(server.port for server in servers)]
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(f"somebody still listens on port {port}")
    temporary = (path for path in (stage.directory / "tmp").rglob("*") if path.is_file())
    found += [f"file left over: {path}" for path in temporary if path.name != _RUNTIMES_OWN]
    return found


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        with contextlib.suppress(psutil.Error, OSError):
            if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(f"{process.pid} {' '.join(process.info['cmdline'] or [])}")
    return found


# Many seeds ----------------------------------------------------------------------------------------------------------


async def _run_all(seeds: range, at_once: int, directory: Path) -> list[Outcome]:
    room = asyncio.Semaphore(at_once)

    async def one(seed: int) -> Outcome:
        async with room:
            folder = directory / str(seed)
            folder.mkdir(parents=True)
            outcome = await run_plan(plan_of(seed), folder)
        print(_line(outcome), flush=True)
        for objection in outcome.objections:
            print(f"    {objection}", flush=True)
        for note in outcome.notes:
            print(f"    note: {note}", flush=True)
        if not outcome.objections:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    return list(await asyncio.gather(*(one(seed) for seed in seeds)))


def _line(outcome: Outcome) -> str:
    plan = outcome.plan
    faults = ", ".join(f"{fault.kind} {fault.target}" for fault in plan.faults)
    verdict = "well" if not outcome.objections else "OBJECTS"
    figures = f"{plan.seed:>6} {outcome.seconds:>5.1f} s {outcome.rows:>6} rows {outcome.again:>5} again"
    return f"{figures}  {verdict:<8} {faults}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--start", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="where logs and files of runs go that are objected to")
    given = parser.parse_args()
    directory = given.keep or Path(tempfile.mkdtemp(prefix="idlewheel-chaos-"))
    began = time.monotonic()
    outcomes = asyncio.run(_run_all(range(given.start, given.start + given.seeds), given.at_once, directory))
    print(f"\n{'seed':>6} {'took':>7} {'rows':>11} {'again':>11}  {'verdict':<8} faults")
    for outcome in outcomes:
        print(_line(outcome))
    bad = [outcome for outcome in outcomes if outcome.objections]
    print(f"\n{len(outcomes)} plans in {time.monotonic() - began:.0f} s; the oracle objects to {len(bad)}")
    for outcome in bad:
        print(
            f"seed {outcome.plan.seed}: look into {outcome.folder}; again: make chaos SEEDS=1 START={outcome.plan.seed}"
        )
    if not bad and given.keep is None:
        with contextlib.suppress(OSError):
            directory.rmdir()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
