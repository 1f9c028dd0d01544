"""Telemetry is kept while the store is asked something that takes long, and while it tidies up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from coordinator.adapters.influx_lines import batch_of
from coordinator.adapters.influx_server import InfluxAddress
from coordinator.adapters.influx_store import InfluxStore
from coordinator.events import TelemetryBatch
from coordinator.link import TelemetryWriter
from coordinator.ports import HOUR_MS
from tests.influx import VERSIONS, InfluxProcess, SlowRoad
from tests.system.deployment import DEADLINE_S, until


def document(seq: int, received_ms: int) -> TelemetryBatch:
    return batch_of(
        [{"vehicle": "v1", "time_ns": received_ms * 1_000_000, "epoch": 1, "seq": seq, "charge_percent": 50.0}]
    )


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, influx_of: Callable[[str], InfluxProcess]) -> InfluxProcess:
    return influx_of(request.param)


@pytest.fixture
def database() -> str:
    return f"db{uuid4().hex}"


@pytest.fixture
def road(server: InfluxProcess) -> Iterator[SlowRoad]:
    """To a server that rolls up nothing before it may go on."""
    slow = SlowRoad(server, lambda request: request.startswith("/query") and "mean(" in request)
    yield slow
    slow.close()


@asynccontextmanager
async def writer_at(url: str, folder: Path, *, maintains: bool = True) -> AsyncIterator[TelemetryWriter]:
    writer = TelemetryWriter(InfluxStore(InfluxAddress.parse(url), folder / "spill", lambda vehicle: "", Random(1)))
    await writer.open()
    tasks = [asyncio.create_task(writer.run())]
    if maintains:
        tasks.append(asyncio.create_task(writer.maintain(0.1)))
    yield writer
    for task in tasks:
        task.cancel()
    await writer.close()


async def keep(writer: TelemetryWriter, batch: TelemetryBatch) -> None:
    kept = asyncio.Event()
    await writer.put(batch, kept.set)
    async with asyncio.timeout(DEADLINE_S):
        await kept.wait()


async def test_telemetry_is_kept_while_a_rollup_hangs(
    server: InfluxProcess, road: SlowRoad, database: str, tmp_path: Path
) -> None:
    async with writer_at(server.url(database), tmp_path, maintains=False) as writer:
        await keep(writer, document(1, HOUR_MS))
    async with writer_at(road.url(database), tmp_path) as writer:
        assert await asyncio.to_thread(road.held.acquire, timeout=DEADLINE_S)
        await keep(writer, document(2, 2 * HOUR_MS))
        found = server.query("SELECT seq FROM vehicle_state", database)
        assert [row[1] for series in found for row in series["values"]] == [1, 2]  # type: ignore[attr-defined]
        assert server.query("SELECT documents FROM vehicle_state_1h", database) == []
        road.go_on.set()
        await until(lambda: server.query("SELECT documents FROM vehicle_state_1h", database), "the hour is rolled up")


async def test_the_end_does_not_wait_for_a_rollup_that_hangs(
    server: InfluxProcess, road: SlowRoad, database: str, tmp_path: Path
) -> None:
    async with writer_at(server.url(database), tmp_path, maintains=False) as writer:
        await keep(writer, document(1, HOUR_MS))
    async with asyncio.timeout(DEADLINE_S), writer_at(road.url(database), tmp_path):
        assert await asyncio.to_thread(road.held.acquire, timeout=DEADLINE_S)
    assert not road.go_on.is_set()
