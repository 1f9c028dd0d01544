"""A job goes on when PostgreSQL is killed and when its coordinator is: every row once, equal to the direct run."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psycopg
import pytest

from idlewheel import Client
from idlewheel.brokers import Broker, free_port
from idlewheel.errors import IdlewheelError
from tests.postgres import PostgresProcess, require_postgres
from tests.system.deployment import DEADLINE_S, Deployment, until
from tests.system.test_nothing_is_lost import INPUTS, MODEL, collect

ROWS = 8_000
LEASE_S = 3.0  # the default, as what is measured here stands in docs/operations.md

pytestmark = pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(MODEL).run(None, {"x": INPUTS[:ROWS]})[0])


@pytest.fixture(scope="module")
def server() -> Any:
    """One that is killed."""
    running = PostgresProcess(require_postgres())
    running.start()
    yield running
    running.close()


class Coordinators(Deployment):
    """Several coordinators with one ledger, one folder of blobs, and data, port and client of their own."""

    def __init__(self, broker: Broker, directory: Path, ledger: str) -> None:
        super().__init__(broker, directory)
        self.ledger = ledger
        self.clients: dict[str, Client] = {}

    async def start(self, name: str) -> dict[str, Any]:
        """What it says first: that it serves, or that it stands by."""
        fleet_policy = self.directory / "fleet-policy.json"
        fleet_policy.write_text('{"owner": "operator", "purposes": ["general"]}')
        port = free_port()
        settings = {
            "BROKER_PORT": str(self.broker.port),
            "HTTP_PORT": str(port),
            "DATA": str(self.directory / name),
            "BLOBS_URL": f"file://{self.directory}/blobs",
            "FLEET": "test",
            "FLEET_POLICY": str(fleet_policy),
            "LEDGER": self.ledger,
        }
        environment = {f"IDLEWHEEL_COORDINATOR_{key}": value for key, value in settings.items()}
        await self._start(name, ["-m", "coordinator.daemon"], environment)
        self.clients[name] = Client(f"http://127.0.0.1:{port}")
        return await self.line(name)

    async def line(self, name: str) -> dict[str, Any]:
        stdout = self.processes[name].stdout
        assert stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await stdout.readline()
        assert line, self.log(name)
        return dict(json.loads(line))

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    async def submitted(self, name: str) -> str:
        """A job that is under way, by its id."""
        client = self.clients[name]
        await until(lambda: client.health().vehicles_eligible == 2, "two cars may work")
        job = await asyncio.to_thread(client.submit, MODEL, INPUTS[:ROWS])
        await until(lambda: job.status().rows_done > ROWS // 20, "it is under way")
        assert job.status().state == "running", "the job was over before it could be disturbed"
        return job.id

    async def check(self, name: str, job: str, expected: np.ndarray) -> None:
        there = self.clients[name].job(job)
        async with asyncio.timeout(DEADLINE_S):
            outputs, times = await asyncio.to_thread(collect, there)
        assert times.tolist() == [1] * ROWS
        np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal((await asyncio.to_thread(there.result))["y"], outputs)
        assert there.status().state == "done"

    async def close(self) -> None:
        for client in self.clients.values():
            client.close()
        await super().close()


@asynccontextmanager
async def coordinators(broker: Broker, directory: Path, server: PostgresProcess) -> AsyncIterator[Coordinators]:
    running = Coordinators(broker, directory, server.make_ledger())
    try:
        assert (await running.start("first"))["ready"]
        for number in (1, 2):
            await running.start_car(f"car-{number}")
        yield running
    finally:
        await running.close()


def cell(ledger: str) -> tuple[Any, ...]:
    with psycopg.connect(ledger, autocommit=True) as connection:
        (row,) = connection.execute("SELECT holder, token, round FROM cells").fetchall()
    return row


async def test_postgres_killed_and_restarted_in_mid_job(
    broker: Broker, tmp_path: Path, server: PostgresProcess, expected: np.ndarray
) -> None:
    async with coordinators(broker, tmp_path, server) as running:
        job = await running.submitted("first")
        health = running.clients["first"].health
        for how in (signal.SIGKILL, signal.SIGINT):
            server.kill(how)
            await until(lambda: health().status == "ledger unreachable", "it says that the ledger is away")
            assert "nothing is committed until it is back" in health().ledger
            server.start()
            await until(lambda: health().status == "ok", "it is back")
        await running.check("first", job, expected)
        assert cell(running.ledger)[1] == 1
        assert await running.stop("first") == 0


async def test_an_orderly_end_does_not_wait_for_a_postgres_that_stands_still(
    broker: Broker, tmp_path: Path, server: PostgresProcess
) -> None:
    async with coordinators(broker, tmp_path, server) as running:
        job = await running.submitted("first")
        assert (await running.start("second"))["standby"]
        with server.paused():
            asking = asyncio.create_task(asyncio.to_thread(running.clients["first"].job(job).cancel))
            for name in ("second", "first"):
                assert await running.stop(name) == 0, running.log(name)
            with pytest.raises(IdlewheelError):
                await asking


async def test_a_standby_finishes_the_job_of_a_coordinator_that_was_killed(
    broker: Broker, tmp_path: Path, server: PostgresProcess, expected: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    async with coordinators(broker, tmp_path, server) as running:
        said = await running.start("second")
        assert said["standby"]
        assert "is served by coordinator-1 on " in said["reason"]
        job = await running.submitted("first")
        await running.kill("first")
        killed_s = time.monotonic()
        assert (await running.line("second"))["ready"]
        with capsys.disabled():
            print(f"\na standby served {time.monotonic() - killed_s:.1f} s after a SIGKILL (lease {LEASE_S:g} s)")
        await running.check("second", job, expected)
        assert cell(running.ledger)[1] == 2
        # In order it goes at once, and the first is the standby now.
        assert (await running.start("first"))["standby"]
        assert await running.stop("second") == 0
        assert (await running.line("first"))["ready"]
        assert await asyncio.to_thread(lambda: running.clients["first"].job(job).status().state) == "done"


async def test_a_coordinator_that_was_paused_is_fenced_when_it_wakes_up(
    broker: Broker, tmp_path: Path, server: PostgresProcess, expected: np.ndarray
) -> None:
    async with coordinators(broker, tmp_path, server) as running:
        assert (await running.start("second"))["standby"]
        job = await running.submitted("first")
        paused = running.processes["first"]
        paused.send_signal(signal.SIGSTOP)
        assert (await running.line("second"))["ready"]
        second = running.clients["second"].job(job)
        await until(lambda: second.status().rows_done > ROWS // 2, "the second goes on")
        paused.send_signal(signal.SIGCONT)
        async with asyncio.timeout(DEADLINE_S):
            assert await paused.wait() == 1
        assert "has taken over fleet 'test' (token 2, ours was 1): nothing more is committed here" in running.log(
            "first"
        )
        assert (await running.start("first"))["standby"]
        assert await running.stop("first") == 0
        await running.check("second", job, expected)
        assert cell(running.ledger)[1] == 2
