"""How soon a standby commits rows when the coordinator that worked is killed (SIGKILL) or paused (SIGSTOP) in mid-job.

`python -m benchmarks.takeover [--trials N] [--quick] [--json FILE]`; also part of `make bench`. Times are those of an
observer that asks PostgreSQL every ten milliseconds: until the lease has another holder, and until that one has
committed a row. The paused one is woken up and must end by itself; every job's rows are compared with onnxruntime's.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks.figures import Figure, Plan, listed, middle, report
from benchmarks.stack import FLEET, run_parked_car, until
from benchmarks.work import open_session
from idlewheel.brokers import start_broker
from idlewheel.client import Client
from idlewheel.examples import EXAMPLES
from idlewheel.local_fleet import LocalFleet
from idlewheel.processes import Child, run_child
from tests.postgres import PostgresProcess, find_postgres

GROUP: Final = "takeover"
FAULTS: Final = {"killed": signal.SIGKILL, "paused": signal.SIGSTOP}
REQUIRED_MS: Final = 5_000.0  # a lease, which is three seconds, and as long as a start takes
CARS: Final = ("car-0", "car-1")
_ROWS: Final = 2_000
_LOOK_S: Final = 0.01
_GIVE_UP_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Took:
    """From one fault until another coordinator holds the lease, and until it has committed a row."""

    holds_ms: float
    commits_ms: float


@dataclass(slots=True)
class Coordinator:
    """One that works or stands by; `url` is empty while it does not serve."""

    child: Child
    url: str
    ending: contextlib.AsyncExitStack

    async def serves(self) -> str:
        """Wait until it serves, and return where."""
        while not self.url:
            self.url = str((await self.child.read()).get("http", ""))
        return self.url


class Bench:
    """Two coordinators with one ledger, of which one works, and cars."""

    def __init__(self, directory: Path, broker_port: int, ledger: str) -> None:
        self._directory, self._broker_port, self._ledger = directory, broker_port, ledger
        self._coordinators: list[Coordinator] = []
        self._started = 0
        magika = EXAMPLES["magika"]
        self._model = directory / "model.onnx"
        self._model.write_bytes(magika.model())
        self._files: NDArray[Any] = magika.rows(400, 0).inputs["bytes"]

    async def start(self) -> Coordinator:
        """One more."""
        self._started += 1
        name = f"coordinator-{self._started}"
        environment = {
            "BROKER_PORT": str(self._broker_port),
            "HTTP_PORT": "0",
            "DATA": str(self._directory / name),
            "BLOBS_URL": f"file://{self._directory}/blobs",
            "FLEET": FLEET,
            "FLEET_POLICY": str(self._directory / "fleet-policy.json"),
            "LEDGER": self._ledger,
        }
        async with contextlib.AsyncExitStack() as starting:
            child = await starting.enter_async_context(
                run_child(
                    name,
                    ["-m", "coordinator.daemon"],
                    self._directory / f"{name}.log",
                    environment={f"IDLEWHEEL_COORDINATOR_{key}": value for key, value in environment.items()},
                )
            )
            self._coordinators.append(Coordinator(child, str(child.ready.get("http", "")), starting.pop_all()))
        return self._coordinators[-1]

    async def close(self) -> None:
        for coordinator in self._coordinators:
            await coordinator.ending.aclose()

    async def lose(self, number: signal.Signals) -> Took:
        """Kill or pause the one that works in the middle of a job, whose end the other must bring."""
        active, standby = self._coordinators
        rows = np.tile(self._files, (_ROWS // len(self._files), 1))
        with Client(await active.serves()) as client:
            await until(lambda: client.health().vehicles_eligible == len(CARS), _GIVE_UP_S)
            job = await asyncio.to_thread(client.submit, self._model, {"bytes": rows})
            await until(lambda: job.status().rows_done > _ROWS // 10, _GIVE_UP_S)
        async with asyncio.timeout(_GIVE_UP_S):
            took = await asyncio.to_thread(self._watch, active.child.pid, number)
            url = await standby.serves()
            if number is signal.SIGSTOP:
                os.kill(active.child.pid, signal.SIGCONT)
                if await active.child.wait() != 1:
                    raise RuntimeError("the coordinator that was paused did not end by itself")
        await active.ending.aclose()
        self._coordinators.remove(active)
        with Client(url) as client:
            await asyncio.to_thread(self._check, client, job.id)
        await self.start()
        return took

    def _watch(self, pid: int, number: signal.Signals) -> Took:
        with psycopg.connect(self._ledger, autocommit=True) as connection:

            def look() -> tuple[int, int]:
                found = connection.execute("SELECT token, (SELECT max(seq) FROM results) FROM cells").fetchone()
                assert found is not None
                return found[0], found[1]

            token, _ = look()
            os.kill(pid, number)
            begun_s = time.monotonic()
            while (seen := look())[0] == token:  # of the new token, at first with the rows of the former holder
                time.sleep(_LOOK_S)
            holds_s = time.monotonic() - begun_s
            while look()[1] == seen[1]:
                time.sleep(_LOOK_S)
            return Took(holds_s * 1000, (time.monotonic() - begun_s) * 1000)

    def _check(self, client: Client, job: str) -> None:
        result = client.job(job).result(_GIVE_UP_S * 10)
        session = open_session(str(self._model))
        for output, wanted in zip(session.get_outputs(), session.run(None, {"bytes": self._files}), strict=True):
            every = np.tile(np.asarray(wanted), (_ROWS // len(self._files), *[1] * (np.asarray(wanted).ndim - 1)))
            np.testing.assert_allclose(result[output.name], every, atol=0.05)


@contextlib.asynccontextmanager
async def _bench(directory: Path, server: PostgresProcess) -> AsyncIterator[Bench]:
    (directory / "fleet-policy.json").write_text('{"owner": "operator", "purposes": ["general"]}')
    (directory / "broker").mkdir()
    async with contextlib.AsyncExitStack() as running:
        broker = await running.enter_async_context(start_broker("mosquitto", directory / "broker"))
        bench = Bench(directory, broker.port, server.make_ledger())
        running.push_async_callback(bench.close)
        first = await bench.start()
        local = LocalFleet(broker, first.child, first.url, FLEET, directory)
        for vehicle in CARS:
            await running.enter_async_context(run_parked_car(local, vehicle))
        await bench.start()
        yield bench


async def measure(plan: Plan) -> list[Figure]:
    """For `make bench`."""
    programs = find_postgres()
    if programs is None:
        return [Figure(GROUP, "PostgreSQL", "ms", note="not installed (tests/install_servers.sh)")]
    server = PostgresProcess(programs)
    server.start()
    try:
        async with _bench(plan.directory, server) as bench:
            return [_figure(fault, [await bench.lose(how) for _ in range(plan.runs)]) for fault, how in FAULTS.items()]
    finally:
        server.close()


def _figure(fault: str, times: list[Took]) -> Figure:
    commits_ms = [took.commits_ms for took in times]
    return Figure(
        GROUP,
        f"coordinator {fault}, until the standby's first row is committed, the slowest",
        "ms",
        max(commits_ms),
        required=f"under {REQUIRED_MS:g} ms",
        met=max(commits_ms) < REQUIRED_MS,
        note=f"{listed(commits_ms)}; it has the lease after {middle([took.holds_ms for took in times]):,.0f} ms",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.takeover", description=__doc__)
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="of each fault (default 10)")
    parser.add_argument("--quick", action="store_true", help="one of each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlewheel-takeover-") as folder:
        runs = 1 if arguments.quick else arguments.trials
        figures = asyncio.run(measure(Plan(arguments.quick, runs, Path(folder))))
    return report(figures, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
