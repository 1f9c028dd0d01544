"""The commands that a person types, one after the other, with telemetry in InfluxDB: what they say agrees."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from idlewheel.brokers import free_port
from tests.influx import VERSIONS, InfluxProcess
from tests.system.deployment import until
from tests.system.test_up_and_submit import Up, descendants, expect_gone, mixed_model, mixed_rows

CARS = ["car-01", "car-02", "car-03", "car-04"]
KEPT = {"economics", "fleet_state", "job_state", "service", "service_store", "vehicle_state", "vehicle_work"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_command_answers_and_the_database_fills(
    version: str, influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, database = influx_of(version), f"day_{uuid4().hex}"
    place = f"127.0.0.1:{free_port()}"
    arguments = ["up", "--vehicles", "4", "--store", server.url(database), "--http", place]
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "idlewheel", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "IDLEWHEEL_COORDINATOR_OBSERVE_EVERY_S": "1"},  # vehicles only every sixth time
        )
    up = Up(process, f"http://{place}")
    assert process.stdout is not None
    try:
        first = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)
        assert up.url in first, (tmp_path / "up.log").read_text()
        await expect_answers(up, server.url(database), tmp_path)
        await until(lambda: measurements(server, database) >= KEPT, "everything is in the store")
        children = descendants(up)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(asyncio.to_thread(process.wait), 30) == 0
        await expect_gone(children)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        process.stdout.close()


async def expect_answers(up: Up, store: str, tmp_path: Path) -> None:
    model, rows = tmp_path / "m.onnx", tmp_path / "rows.npz"
    mixed_model(model)
    np.savez(rows, **mixed_rows())  # type: ignore[arg-type]
    submit = ("submit", model, rows)
    await said(up, *submit, "-o", tmp_path / "out.npz", "--vehicle-share", "0.5", "--max-attempts", "5")
    vehicles = json.loads(await said(up, "vehicles", "--json"))
    assert [vehicle["id"] for vehicle in vehicles] == CARS
    done = {vehicle["id"]: vehicle["rows_done"] for vehicle in vehicles if vehicle["rows_done"]}
    assert sum(done.values()) == 300
    assert max(done.values()) <= 150
    assert await said(up, "why", "car-01") == (
        "car-01 may work, and has nothing to do: no job has rows for it at this moment\n"
    )
    lines = json.loads(await said(up, "owner", "statement", "--json"))
    assert {line["of"]: line["rows"] for line in lines} == done
    assert "works for general\n" in await said(up, "owner", "policy", "show", "car-01")

    for options, reason in [
        (("--purpose", "research"), "purpose_not_agreed: their owners would have to agree to the purpose 'research'"),
        (("--price-ceiling", "0.1"), "job_price_ceiling: a kWh would have to cost 0.1 at most"),
    ]:
        job = (await said(up, *submit, "--no-wait", *options)).strip()
        answer = await said(up, "why", "--job", job)
        assert answer.splitlines()[0] == f"job {job} runs: 0 of 300 rows are done, 0 are with cars, 300 wait"
        assert f"cars: 4 {reason}\n" in answer
        assert "should end" not in answer
        assert "cancelled" in await said(up, "cancel", job)

    checked = await said(up, "store", "check", store)
    assert all(line.startswith("ok  ") for line in checked.splitlines())


async def said(up: Up, *arguments: object) -> str:
    answer = await up.run(*arguments)
    assert (answer.returncode, answer.stderr) == (0, ""), arguments
    return answer.stdout


def measurements(server: InfluxProcess, database: str) -> set[object]:
    """Those of the database that have points."""
    return {row[0] for series in server.query("SHOW MEASUREMENTS", database) for row in series["values"]}  # type: ignore[attr-defined]
