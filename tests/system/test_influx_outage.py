"""InfluxDB goes away in mid-run, and so does the coordinator: every acknowledged telemetry message is there."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from fleet_link import ConnectOptions, connect
from fleet_wire.codec import TELEMETRY
from fleet_wire.messages import Telemetry
from fleet_wire.signals import Signals
from fleet_wire.topics import FleetTopics, VehicleChannel
from idlewheel.brokers import Broker
from tests.influx import InfluxProcess, require_influxd
from tests.integration.direct_desk import double_model
from tests.system.deployment import DEADLINE_S, Deployment, deployment, until

CARS = ("car-a", "car-b", "car-c")
INPUTS = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)


class Publisher:
    """Sends numbered documents for some cars, some hundred a second, until it is told to stop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stop = asyncio.Event()
        self.sent = 0

    async def run(self) -> None:
        session = await connect(ConnectOptions(self._broker.host, self._broker.port, "publisher"))
        topics = [FleetTopics("test").vehicle(car, VehicleChannel.TELE) for car in CARS]
        while not self._stop.is_set():
            for topic in topics:
                signals = Signals(plugged=self.sent % 7 > 2, charge_percent=self.sent % 100, battery_power_w=7000.0)
                now_ms = time.time_ns() // 1_000_000
                document = TELEMETRY.encode(Telemetry(1, self.sent, now_ms, snapshot=True, signals=signals))
                await session.publish(topic, document, content_type=TELEMETRY.content_type)
            self.sent += 1
            await asyncio.sleep(0.005)
        await session.close()

    def stop(self) -> None:
        self._stop.set()


@pytest.fixture(params=["1.6.7", "1.8.10"])
def influx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InfluxProcess]:
    folder = tmp_path / "influx"
    folder.mkdir()
    server = InfluxProcess(require_influxd(request.param), folder)
    yield server
    server.kill()


@asynccontextmanager
async def publishing(broker: Broker) -> AsyncIterator[Publisher]:
    publisher = Publisher(broker)
    task = asyncio.create_task(publisher.run())
    yield publisher
    publisher.stop()
    await task


def seqs(influx: InfluxProcess, car: str) -> set[int]:
    found = influx.query(f"SELECT seq FROM vehicle_state, vehicle_state_late WHERE vehicle = '{car}'", "fleet")
    return {int(row[1]) for series in found for row in series["values"]}  # type: ignore[attr-defined]


def seqs_in_order(influx: InfluxProcess, car: str) -> list[int]:
    """Without what came late: nothing does, as long as the broker has to deliver nothing twice."""
    (series,) = influx.query(f"SELECT seq FROM vehicle_state WHERE vehicle = '{car}' ORDER BY time", "fleet")
    return [int(row[1]) for row in series["values"]]  # type: ignore[attr-defined]


def documents(influx: InfluxProcess) -> int:
    """Those of all cars."""
    (series,) = influx.query("SELECT count(seq) FROM vehicle_state", "fleet")
    return int(series["values"][0][1])  # type: ignore[index]


def counter(running: Deployment, name: str) -> int:
    return running.client.health().counters.get(name, 0)


async def until_everything_is_there(running: Deployment, influx: InfluxProcess, publisher: Publisher) -> None:
    def there() -> bool:
        return all(seqs(influx, car) >= set(range(publisher.sent)) for car in CARS)

    await until(there, f"{publisher.sent} documents of each car are in the server")
    await until(lambda: not running.client.health().store, "the store has no trouble any more")


# A whole minute once, and with a server that every machine of ours has; what it takes is on the clock, not a guess.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("influx", "outage_s", "spilled"), [("1.6.7", 60.0, 10_000), ("1.8.10", 0.0, 300)], indirect=["influx"]
)
@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_influxdb_killed_and_started_again(
    broker: Broker, influx: InfluxProcess, tmp_path: Path, outage_s: float, spilled: int
) -> None:
    influx.start()
    async with deployment(broker, tmp_path, cars=1, store=influx.url("fleet")) as running:
        async with publishing(broker) as publisher:
            await until(lambda: counter(running, "store_lines_written") > 300, "documents are in the server")
            influx.kill()
            killed = time.monotonic()
            job = await asyncio.to_thread(running.client.submit, double_model(), INPUTS)
            outputs = await asyncio.to_thread(job.result)
            np.testing.assert_array_equal(outputs["y"], 2 * INPUTS)
            await until(
                lambda: time.monotonic() > killed + outage_s and counter(running, "store_lines_spilled") > spilled,
                f"documents come to the disk for {outage_s:g} s",
                deadline_s=outage_s + DEADLINE_S,
            )
            health = running.client.health()
            assert "kept on disk" in health.store
            assert health.vehicles_eligible == 1  # the car can work on
            sent = publisher.sent
            influx.start()
            await until(lambda: publisher.sent > sent + 100, "more documents come")
            await until(lambda: counter(running, "store_lines_replayed") > spilled, "documents are written from disk")
        applied = counter(running, "telemetry_applied")
        await until_everything_is_there(running, influx, publisher)
        for car in CARS:
            assert seqs_in_order(influx, car) == list(range(publisher.sent))
        assert documents(influx) >= applied
        assert not [name for name in running.client.health().counters if "refused" in name]


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_coordinator_killed_while_the_server_is_away(
    broker: Broker, influx: InfluxProcess, tmp_path: Path
) -> None:
    async with deployment(broker, tmp_path, cars=0, store=influx.url("fleet")) as running:  # the server never was there
        async with publishing(broker) as publisher:
            for _ in range(2):
                await until(lambda: counter(running, "store_lines_spilled") > 300, "documents are on disk")
                await running.kill("coordinator")
                await running.start_coordinator()
        influx.start()
        await until_everything_is_there(running, influx, publisher)


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_a_coordinator_knows_its_fleet_from_influxdb(
    broker: Broker, influx: InfluxProcess, tmp_path: Path
) -> None:
    influx.start()
    async with deployment(broker, tmp_path, cars=0, store=influx.url("fleet")) as running:
        async with publishing(broker) as publisher:
            await until(lambda: publisher.sent > 20, "cars have sent")
        await until_everything_is_there(running, influx, publisher)
        last = await asyncio.to_thread(running.client.vehicles)
        assert {view.id for view in last} == set(CARS)
        await running.kill("coordinator")
        await running.start_coordinator()
        said = [(view.id, view.plugged, view.charge_percent, view.last_seen_ms) for view in last]
        await until(
            lambda: (
                said
                == [
                    (view.id, view.plugged, view.charge_percent, view.last_seen_ms)
                    for view in running.client.vehicles()
                ]
            ),
            "the cars of before are known again, with what they said last",
        )
        assert running.client.health().vehicles_eligible == 0
