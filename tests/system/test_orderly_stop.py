"""A coordinator that is asked to stop tells its store all that it has seen; a store that hangs does not hold it up."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from idlewheel.brokers import Broker
from tests.influx import VERSIONS, InfluxProcess, require_influxd
from tests.integration.direct_desk import double_model
from tests.system.deployment import deployment, until
from tests.system.test_influx_outage import counter, publishing

ROWS = 300


def total(server: InfluxProcess, field: str, measurement: str, database: str) -> int:
    found = server.query(f"SELECT sum({field}) FROM {measurement}", database)
    return sum(int(row[1]) for series in found for row in series["values"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
@pytest.mark.parametrize("version", VERSIONS)
async def test_work_of_the_last_second_is_on_the_dashboards(
    version: str, broker: Broker, influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, database = influx_of(version), f"stop_{uuid4().hex}"
    async with deployment(broker, tmp_path, cars=2, store=server.url(database)) as running:
        job = running.client.submit(double_model(), np.ones((ROWS, 3), np.float32))
        await until(lambda: job.status().state == "done", "the job is done")
        assert await running.stop("coordinator") == 0
    assert total(server, "rows", "vehicle_work", database) == ROWS
    assert total(server, "rows", "job_state", database) == ROWS
    assert total(server, "done", "job_state", database) == 1
    assert total(server, "rows", "economics", database) == ROWS


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_a_server_that_hangs_does_not_hold_up_the_stop(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "influx"
    folder.mkdir()
    server = InfluxProcess(require_influxd("1.6.7"), folder)
    server.start()
    try:
        async with (
            deployment(broker, tmp_path, cars=0, store=server.url("fleet")) as running,
            publishing(broker) as publisher,
        ):
            await until(lambda: counter(running, "store_lines_written") > 0, "documents are in the server")
            server.pause()
            sent = publisher.sent
            await until(lambda: publisher.sent > sent + 10, "documents wait for the server")
            # It would have been broken off with an error, had it taken too long.
            assert await running.stop("coordinator") == 0, (tmp_path / "coordinator.log").read_text()
    finally:
        server.kill()
