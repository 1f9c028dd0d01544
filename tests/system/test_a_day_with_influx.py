"""The commands that a person types, one after the other, with telemetry in InfluxDB: what they say agrees."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np

from coordinator.availability import Availability
from idlewheel.client import Client
from tests.influx import VERSIONS, InfluxProcess
from tests.system.deployment import DEADLINE_S, until
from tests.system.test_up_and_submit import Up, descendants, expect_gone, mixed_model, mixed_rows, running_up

CARS = ["car-01", "car-02", "car-03", "car-04"]
KEPT = {"economics", "fleet_state", "job_state", "service", "service_store", "vehicle_state", "vehicle_work"}


async def test_every_command_answers_and_the_database_fills(
    influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, database = influx_of(VERSIONS[0]), f"day_{uuid4().hex}"
    arguments = ["--vehicles", "4", "--store", server.url(database)]
    # Vehicles are observed only every sixth time.
    async with running_up(tmp_path, *arguments, IDLEWHEEL_COORDINATOR_OBSERVE_EVERY_S="1") as up:
        await expect_answers(up, server.url(database), tmp_path)
        await until(lambda: measurements(server, database) >= KEPT, "everything is in the store")
        children = descendants(up)
        await end(up)
        await expect_gone(children)


async def test_a_killed_coordinator_knows_fleet_and_history_from_the_store(
    influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, data = influx_of(VERSIONS[0]), tmp_path / "data"
    arguments = ["--store", server.url(f"day_{uuid4().hex}"), "--data", str(data)]
    async with running_up(tmp_path, *arguments, "--vehicles", "4") as up:
        await said(up, "submit", *mixed_job(tmp_path), "-o", tmp_path / "out.npz")
        (coordinator,) = [child for child in descendants(up) if "coordinator.daemon" in child.cmdline()]
        before = json.loads(await said(up, "vehicles", "--json"))
        coordinator.kill()
        assert await asyncio.wait_for(asyncio.to_thread(up.process.wait), DEADLINE_S) == 1
    assert (tmp_path / "up.log").read_text().startswith("idlewheel up: the coordinator was killed by SIGKILL: ")
    assert not (data / "coordinator" / "availability.npz").exists()

    async with running_up(tmp_path, *arguments) as up:  # without the cars, which would tell it all again
        expected = [(view["id"], False, True, view["rows_done"]) for view in before]
        with Client(up.url) as client:
            await until(
                lambda: [(car.id, car.online, car.plugged, car.rows_done) for car in client.vehicles()] == expected,
                "cars and what they said last are known again",
            )
        await end(up)
    ids, model = Availability.from_bytes((data / "coordinator" / "availability.npz").read_bytes())
    assert sorted(ids) == CARS
    assert (model.column["plugged_since_ms"] > 0).tolist() == [True] * len(CARS)


async def expect_answers(up: Up, store: str, tmp_path: Path) -> None:
    submit = ("submit", *mixed_job(tmp_path))
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
        assert f"4 cars {reason}\n" in answer
        assert "should end" not in answer
        assert "cancelled" in await said(up, "cancel", job)

    checked = await said(up, "store", "check", store)
    assert all(line.startswith("ok  ") for line in checked.splitlines())


def mixed_job(tmp_path: Path) -> tuple[Path, Path]:
    model, rows = tmp_path / "m.onnx", tmp_path / "rows.npz"
    mixed_model(model)
    np.savez(rows, **mixed_rows())  # type: ignore[arg-type]
    return model, rows


async def end(up: Up) -> None:
    up.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(asyncio.to_thread(up.process.wait), DEADLINE_S) == 0


async def said(up: Up, *arguments: object) -> str:
    answer = await up.run(*arguments)
    assert (answer.returncode, answer.stderr) == (0, ""), arguments
    return answer.stdout


def measurements(server: InfluxProcess, database: str) -> set[object]:
    """Those of the database that have points."""
    return {row[0] for series in server.query("SHOW MEASUREMENTS", database) for row in series["values"]}  # type: ignore[attr-defined]
