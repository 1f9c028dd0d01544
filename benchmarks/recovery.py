"""How soon lost work runs elsewhere: agents killed, stopped and cut off, and workers, in the middle of a real job.

`python -m benchmarks.recovery [--trials N] [--quick] [--json FILE]`; also part of `make bench`. Times are those of an
observer of its own at the broker, which sees tasks, results and Wills and asks the coordinator nothing. It exits with 1
when a requirement was missed, a finished row was run again, or a job did not end with the right rows.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.dead_link import DeadLink, run_dead_link
from benchmarks.figures import Figure, Plan
from benchmarks.stack import FLEET, run_parked_car
from benchmarks.work import open_session
from fleet_link import ConnectOptions, connect
from fleet_wire.codec import RESULT, STATE, TASK
from fleet_wire.messages import Rows
from fleet_wire.topics import FleetTopics, JobTopic, VehicleChannel, parse_topic
from idlewheel.client import Client, Job
from idlewheel.examples import EXAMPLES
from idlewheel.local_fleet import LocalFleet, run_local_fleet
from idlewheel.processes import Child

GROUP: Final = "recovery"
CARS: Final = ("car-0", "car-1", "car-2", "car-3")
FAULTS: Final = ("agent killed", "agent stopped", "link dead", "worker killed", "worker stopped")
KILLED_MS: Final = 100.0
SILENT_MS: Final = 3_000.0
PEERS: Final = {"agent killed": "Celery tuned 30 ms", "agent stopped": "the best tuned 4.7 s"}
_ROWS: Final = 4_000
_LEAST_LEFT: Final = 1_200  # rows of a job in which a fault may still happen: afterwards another begins
_LEAST_HELD: Final = 8
_GIVE_UP_S: Final = 60.0
_JOB_S: Final = 600.0


@dataclass(slots=True)
class Observer:
    """What the broker carries, as it comes: who was given which rows, and which have been answered."""

    given: defaultdict[str, dict[tuple[str, int], float]] = field(default_factory=lambda: defaultdict(dict))
    open: defaultdict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    done: dict[tuple[str, int], float] = field(default_factory=dict)
    wills: dict[str, float] = field(default_factory=dict)
    spoke: dict[str, float] = field(default_factory=dict)
    again: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self, port: int, ready: asyncio.Event) -> None:
        """Until cancelled."""
        topics = FleetTopics(FLEET)
        session = await connect(ConnectOptions("127.0.0.1", port, "observer"))
        every = [topics.every_vehicle(channel) for channel in (VehicleChannel.TASK, VehicleChannel.STATE)]
        await session.subscribe([(topic, 1) for topic in (*every, topics.every_result())])
        ready.set()
        while True:
            messages = await session.receive()
            now_s = time.monotonic()
            for message in messages:
                self._see(message.topic, message.payload, message.content_type, now_s)
            session.acknowledge(messages)
            self.changed.set()

    def _see(self, name: str, payload: bytes, content_type: str | None, now_s: float) -> None:
        topic = parse_topic(name)
        if isinstance(topic, JobTopic):
            result = RESULT.decode(payload, content_type)
            if isinstance(result, Rows):
                self.spoke[topic.vehicle] = now_s
                rows = {(topic.job, row) for span in result.spans for row in range(span.start, span.stop)}
                self.done.update(dict.fromkeys(rows - self.done.keys(), now_s))
                for still_open in self.open.values():
                    still_open.difference_update(rows)
        elif topic.channel is VehicleChannel.TASK:
            task = TASK.decode(payload, content_type)
            rows = {(task.job, row) for lease in task.leases for row in range(lease.start, lease.stop)}
            self.again += len(rows & self.done.keys())
            self.given[topic.vehicle].update(dict.fromkeys(rows, now_s))
            self.open[topic.vehicle] |= rows
        elif not STATE.decode(payload, content_type).online:
            self.wills[topic.vehicle] = now_s

    def held(self, vehicle: str) -> set[tuple[str, int]]:
        """Rows that a car was given, nobody has answered, and nobody else was given."""
        return self.open[vehicle].difference(*(rows for other, rows in self.open.items() if other != vehicle))

    def elsewhere_s(self, vehicle: str, rows: set[tuple[str, int]]) -> float | None:
        """When the last of these rows was given to another car, those that were answered left out; None if not yet."""
        last_s = 0.0
        for row in rows - self.done.keys():
            times = [given[row] for other, given in self.given.items() if other != vehicle and row in given]
            if not times:
                return None
            last_s = max(last_s, min(times))
        return last_s

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something that is seen at the broker. Raise TimeoutError with its name."""
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                while not holds():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"in {_GIVE_UP_S:g} s it was not seen that {what}") from None


@dataclass(slots=True)
class Car:
    """An agent in a process of its own, at a link that can die."""

    link: DeadLink
    child: Child
    ending: contextlib.AsyncExitStack

    def worker(self) -> psutil.Process:
        """The process that computes for it."""
        return next(each for each in psutil.Process(self.child.pid).children() if "worker" in " ".join(each.cmdline()))


@dataclass(frozen=True, slots=True)
class Trials:
    """One fault, many times: how long it took in ms, what that is held to, and how it is called."""

    fault: str
    what: str
    required_ms: float | None
    times_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As it stands in the JSON document."""
        p50, p99 = (float(np.percentile(self.times_ms, part)) for part in (50, 99))
        met = None if self.required_ms is None else p99 < self.required_ms
        return {
            **asdict(self),
            "trials": len(self.times_ms),
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": max(self.times_ms),
            "met": met,
        }


class Bench:
    """The fleet, the job it works on, and the faults."""

    def __init__(self, local: LocalFleet, client: Client, observer: Observer, files: NDArray[Any]) -> None:
        self.local, self.client, self.observer = local, client, observer
        self.cars: dict[str, Car] = {}
        self.jobs: list[Job] = []
        self._model = local.directory / "model.onnx"
        self._files = files
        self._rows = np.tile(files, (_ROWS // len(files), 1))

    async def start(self, vehicle: str) -> None:
        """A car, in place of the one that was there."""
        async with contextlib.AsyncExitStack() as starting:
            link = await starting.enter_async_context(run_dead_link(self.local.broker.port))
            child = await starting.enter_async_context(run_parked_car(self.local, vehicle, link.port))
            self.cars[vehicle] = Car(link, child, starting.pop_all())

    async def close(self) -> None:
        for car in self.cars.values():
            await car.ending.aclose()

    async def expect_busy(self, vehicle: str) -> set[tuple[str, int]]:
        """Wait until a car computes, in the middle of a job; return what it holds."""
        done = self.observer.done
        if not self.jobs or sum(job == self.jobs[-1].id for job, _ in done) > _ROWS - _LEAST_LEFT:
            await self._end_job()
            self.jobs.append(await asyncio.to_thread(self.client.submit, self._model, {"bytes": self._rows}))
        begun_s = time.monotonic()

        def is_busy() -> bool:
            spoke_s = self.observer.spoke.get(vehicle, 0.0)
            return spoke_s > begun_s and len(self.observer.held(vehicle)) >= _LEAST_HELD

        await self.observer.until(is_busy, f"{vehicle} computes")
        return self.observer.held(vehicle)

    async def _end_job(self) -> None:
        if self.jobs:
            view = await asyncio.to_thread(self.jobs[-1].wait, _JOB_S)
            if view.state != "done":
                raise RuntimeError(f"job {view.id} is {view.state}: {view.error}")

    async def check(self) -> None:
        """All jobs end, with the rows that onnxruntime alone computes."""
        await self._end_job()
        await asyncio.to_thread(self._compare)

    def _compare(self) -> None:
        session = open_session(str(self._model))
        right = [np.asarray(output) for output in session.run(None, {"bytes": self._files})]
        for job in self.jobs:
            result = job.result()
            for output, wanted in zip(session.get_outputs(), right, strict=True):
                every = np.tile(wanted, (_ROWS // len(wanted), *[1] * (wanted.ndim - 1)))
                np.testing.assert_allclose(result[output.name], every, atol=0.05)

    async def lose(self, fault: str, vehicle: str) -> dict[str, float]:
        """One fault; return what passed until its rows were elsewhere, in ms, and bring the car back."""
        observer, car = self.observer, self.cars[vehicle]
        rows = await self.expect_busy(vehicle)
        observer.wills.pop(vehicle, None)
        begun_s = time.monotonic()
        match fault:
            case "agent killed":
                car.child.kill()
                await observer.until(lambda: vehicle in observer.wills, "its Will came")
            case "agent stopped":
                os.kill(car.child.pid, signal.SIGSTOP)
            case "link dead":
                car.link.is_alive = False
        try:
            await observer.until(
                lambda: observer.elsewhere_s(vehicle, rows) is not None, "its rows were given to others"
            )
            given_s = max(begun_s, observer.elsewhere_s(vehicle, rows) or begun_s)
            took = {"from the fault": (given_s - begun_s) * 1000}
            if fault == "agent killed":
                took["from the broker's noticing"] = max(0.0, given_s - observer.wills[vehicle]) * 1000
        finally:
            os.kill(car.child.pid, signal.SIGCONT) if fault == "agent stopped" else None
        if fault == "agent killed":
            await car.ending.aclose()
            await self.start(vehicle)
        elif fault == "link dead":
            car.link.revive()
        return took

    async def lose_worker(self, fault: str, vehicle: str) -> dict[str, float]:
        """Kill or stop the worker alone; return what passed until rows that the car held were answered by anybody."""
        rows = await self.expect_busy(vehicle)
        worker = self.cars[vehicle].worker()
        begun_s = time.monotonic()
        worker.kill() if fault == "worker killed" else worker.suspend()
        on_the_way_s = begun_s + 0.5  # what it had computed before may still come

        def is_back() -> bool:
            return any(self.observer.done.get(row, 0.0) > on_the_way_s for row in rows)

        await self.observer.until(is_back, f"the rows of {vehicle} are computed")
        return {"until a row is answered": (time.monotonic() - begun_s) * 1000}


async def run(folder: Path, trials: int) -> tuple[list[Trials], int]:
    """Measure; return the times, and how many finished rows were run again."""
    magika = EXAMPLES["magika"]
    files = magika.rows(400, 0).inputs["bytes"]
    async with _bench(folder, magika.model(), files) as bench:
        measured: dict[tuple[str, str], Trials] = {}
        for fault in FAULTS:
            lose = bench.lose_worker if fault.startswith("worker") else bench.lose
            for number in range(trials):
                for what, took_ms in (await lose(fault, CARS[number % len(CARS)])).items():
                    key = fault, what
                    measured.setdefault(key, Trials(fault, what, _required_ms(fault, what))).times_ms.append(took_ms)
            said = (f"{each.what} {each.times_ms}" for each in measured.values() if each.fault == fault)
            print(f"{fault}: {'; '.join(said)}", file=sys.stderr, flush=True)
        await bench.check()
        return list(measured.values()), bench.observer.again


def _required_ms(fault: str, what: str) -> float | None:
    if fault == "agent killed":
        return KILLED_MS if "noticing" in what else None
    return SILENT_MS


@contextlib.asynccontextmanager
async def _bench(folder: Path, model: bytes, files: NDArray[Any]) -> AsyncIterator[Bench]:
    async with run_local_fleet(folder, broker="mosquitto", fleet=FLEET) as local, asyncio.TaskGroup() as tasks:
        (local.directory / "model.onnx").write_bytes(model)
        observer, ready = Observer(), asyncio.Event()
        watching = tasks.create_task(observer.watch(local.broker.port, ready))
        await ready.wait()
        with Client(local.url) as client:
            bench = Bench(local, client, observer, files)
            try:
                for vehicle in CARS:
                    await bench.start(vehicle)
                yield bench
            finally:
                await bench.close()
                watching.cancel()


async def measure(plan: Plan) -> list[Figure]:
    """For `make bench`."""
    trials, again = await run(plan.directory, 5 * plan.runs)
    return [*map(_figure, trials), _again(again)]


def _figure(trials: Trials) -> Figure:
    said = trials.summary()
    return Figure(
        GROUP,
        f"{trials.fault}, {trials.what}, 99 % of {said['trials']}",
        "ms",
        said["p99_ms"],
        required="" if trials.required_ms is None else f"under {trials.required_ms:g} ms",
        met=said["met"],
        note=f"half {said['p50_ms']:.0f} ms, most {said['max_ms']:.0f} ms {PEERS.get(trials.fault, '')}".strip(),
    )


def _again(again: int) -> Figure:
    return Figure(GROUP, "finished rows that were run again", "rows", again, required="0", met=again == 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="of each fault (default 20)")
    parser.add_argument("--quick", action="store_true", help="four of each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlewheel-recovery-") as folder:
        trials, again = asyncio.run(run(Path(folder), 4 if arguments.quick else arguments.trials))
    said = [each.summary() for each in trials]
    for each in said:
        required = "" if each["required_ms"] is None else f"required {each['required_ms']:g}"
        times = f"p50 {each['p50_ms']:7.0f}  p99 {each['p99_ms']:7.0f}  max {each['max_ms']:7.0f} ms  {required}"
        print(f"{each['fault']:15} {each['what']:27} {times} {'MISSED' if each['met'] is False else ''}".rstrip())
    print(f"finished rows that were run again: {again}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"times": said, "finished_rows_run_again": again}, indent=2) + "\n")
    return 1 if again or any(each["met"] is False for each in said) else 0


if __name__ == "__main__":
    sys.exit(main())
