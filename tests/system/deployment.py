"""A whole deployment in real processes, which tests kill and start again: a coordinator and cars at a given broker."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from idlewheel import Client
from idlewheel.brokers import Broker, free_port

DEADLINE_S = 120.0


async def until(condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail with its name when it does not come true in time. It may block."""
    ends = time.monotonic() + deadline_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends, f"in {deadline_s:g} s it did not happen that {what}"
        await asyncio.sleep(0.02)


class Deployment:
    def __init__(self, broker: Broker, directory: Path, store: str = "") -> None:
        self.store = store
        self.broker = broker
        self.directory = directory
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.client = Client(self.url)

    async def start_coordinator(self, *, consent: bool = True) -> None:
        """By its fleet policy every car's owner agrees, unless each must be asked."""
        fleet_policy = self.directory / "fleet-policy.json"
        fleet_policy.write_text('{"owner": "operator", "purposes": ["general"]}')
        environment = {
            "BROKER_PORT": str(self.broker.port),
            "HTTP_PORT": str(self.http_port),
            "DATA": str(self.directory / "coordinator"),
            "FLEET": "test",
            "STORE": self.store,
        }
        if consent:
            environment["FLEET_POLICY"] = str(fleet_policy)
        process = await self._start(
            "coordinator",
            ["-m", "coordinator.daemon"],
            {f"IDLEWHEEL_COORDINATOR_{name}": value for name, value in environment.items()},
        )
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        assert line, (self.directory / "coordinator.log").read_text()
        assert json.loads(line) == {"ready": True, "http": self.url}

    async def start_car(self, vehicle: str) -> None:
        broker = f"{self.broker.host}:{self.broker.port}"
        data = str(self.directory / vehicle)
        arguments = ["--broker", broker, "--vehicle", vehicle, "--fleet", "test", "--data", data, "--simulated"]
        await self._start(vehicle, ["-m", "idlewheel", "agent", *arguments])

    async def start_reference_car(self, vehicle: str) -> None:
        arguments = [self.broker.host, str(self.broker.port), "test", vehicle]
        await self._start(vehicle, ["-m", "tests.system.reference_agent", *arguments])

    async def until_eligible(self, cars: int) -> None:
        await until(lambda: self.client.health().vehicles_eligible >= cars, f"{cars} cars may work")

    async def _start(
        self, name: str, arguments: list[str], environment: dict[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                env={**os.environ, **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self.processes[name]

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self.processes.pop(name)
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def stop(self, name: str) -> int:
        """SIGTERM, and its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            return await process.wait()

    async def close(self) -> None:
        self.client.close()
        for name in list(self.processes):
            await self.kill(name)


@asynccontextmanager
async def deployment(broker: Broker, directory: Path, cars: int, store: str = "") -> AsyncIterator[Deployment]:
    """A coordinator and cars that may all work."""
    running = Deployment(broker, directory, store)
    try:
        await running.start_coordinator()
        for number in range(1, cars + 1):
            await running.start_car(f"car-{number}")
        await running.until_eligible(cars)
        yield running
    finally:
        await running.close()
