"""No work without consent, in real processes: given and revoked by the command line, and kept over a crash."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from idlewheel import Job
from idlewheel.brokers import Broker
from tests.system.deployment import DEADLINE_S, Deployment, until
from tests.system.test_nothing_is_lost import INPUTS, MODEL

ROWS = 8_000


async def owner_policy(running: Deployment, *arguments: str, code: int = 0) -> str:
    """What `idlewheel owner policy …` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "idlewheel", "owner", "policy", *arguments, "--url", running.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == code, output
    return output.decode()


async def without_consent(broker: Broker, directory: Path, cars: int) -> Deployment:
    running = Deployment(broker, directory)
    await running.start_coordinator(consent=False)
    for number in range(1, cars + 1):
        await running.start_car(f"car-{number}")
    await until(
        lambda: (
            [view.reason for view in running.client.vehicles() if (view.reason or "").startswith("consent_missing")]
            == ["consent_missing: it holds no consent of its owner that is on record"] * cars
        ),
        "all cars lack consent alone",
    )
    return running


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_consent_is_asked_for_given_and_revoked(broker: Broker, tmp_path: Path) -> None:
    running = await without_consent(broker, tmp_path, cars=2)
    try:
        assert "agreed to nothing" in (await asyncio.to_thread(running.client.vehicle, "car-1")).reasons[0].text
        job: Job = await asyncio.to_thread(running.client.submit, MODEL, INPUTS[:ROWS])
        assert job.status().rows_leased == job.status().rows_done == 0

        agreed = json.loads(
            await owner_policy(running, "set", "car-1", "--owner", "ada", "--purpose", "general", "--json")
        )
        assert [(view["vehicle"], view["policy"]["version"]) for view in agreed] == [("car-1", 1)]
        await until(lambda: job.status().rows_done > 0, "the car whose owner agreed works")
        assert running.client.vehicle("car-2").reason is not None

        await owner_policy(running, "revoke", "car-1")
        view = await asyncio.to_thread(running.client.vehicle, "car-1")
        assert (view.reasons[0].code, view.leases) == ("consent_revoked", 0)
        assert job.status().rows_leased == 0
        assert job.status().state == "running"

        bounds = ("--floor", "20", "--threads", "1", "--niceness", "19", "--memory-mb", "1e3")
        said = await owner_policy(running, "set", "car-2", "--owner", "bob", "--purpose", "general", *bounds)
        assert "in 1 threads at most\n  with a niceness of 19 at least\n  within 1000 MB of memory\n" in said
        assert (await asyncio.to_thread(job.wait, DEADLINE_S)).state == "done"
        outputs = (await asyncio.to_thread(job.result))["y"]
        assert outputs.shape == (ROWS, 1)
        assert np.isfinite(outputs).all()
        history = json.loads(await owner_policy(running, "history", "car-1", "--json"))
        assert [(each["policy"]["version"], each["policy"]["revoked"]) for each in history] == [(2, True), (1, False)]
        assert "version 2" in await owner_policy(running, "show", "car-1")

        refused = await owner_policy(running, "set", "car-2", "--timezone", "Mars/Olympus", code=2)
        assert refused.count("\n") == 1
        assert "'Mars/Olympus' is no timezone" in refused
        assert running.client.policy("car-2").policy.version == 1
    finally:
        await running.close()


async def test_consents_survive_the_coordinators_death(broker: Broker, tmp_path: Path) -> None:
    running = await without_consent(broker, tmp_path, cars=2)
    try:
        await owner_policy(running, "set", "car-1", "--owner", "ada", "--purpose", "general")
        await until(lambda: running.client.health().vehicles_eligible == 1, "the car whose owner agreed may work")
        await running.kill("coordinator")
        await running.start_coordinator(consent=False)
        await until(lambda: running.client.health().vehicles_eligible == 1, "it may work again")
        view = await asyncio.to_thread(running.client.policy, "car-1")
        assert (view.policy.owner, view.policy.version) == ("ada", 1)
        assert {each.id: each.eligible for each in running.client.vehicles()} == {"car-1": True, "car-2": False}
        job = await asyncio.to_thread(running.client.submit, MODEL, INPUTS[:50])
        assert (await asyncio.to_thread(job.wait, DEADLINE_S)).vehicles == 1
    finally:
        await running.close()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_a_ledger_from_a_backup_says_which_cars_know_more_and_the_next_policy_counts(
    broker: Broker, tmp_path: Path
) -> None:
    running = await without_consent(broker, tmp_path, cars=1)
    ledger = tmp_path / "coordinator" / "ledger.sqlite"
    try:
        await owner_policy(running, "set", "car-1", "--owner", "ada", "--purpose", "general")
        assert await running.stop("coordinator") == 0
        backup = ledger.read_bytes()
        await running.start_coordinator(consent=False)
        await owner_policy(running, "set", "car-1", "--floor", "20")
        await owner_policy(running, "set", "car-1", "--floor", "10")
        await until(lambda: running.client.health().vehicles_eligible == 1, "the car holds version 3")
        assert await running.stop("coordinator") == 0
        ledger.write_bytes(backup)
        await running.start_coordinator(consent=False)

        lost = "it holds version 3 of its owner's policy, and version 1 is on record: the ledger lost what came later"
        await until(lambda: lost in str(running.client.vehicle("car-1").reasons), "it says what is lost")
        assert running.client.health().refusals["policy_behind_vehicle"] > 0
        await owner_policy(running, "set", "car-1", "--owner", "ada")  # which changes nothing else
        assert running.client.policy("car-1").policy.version == 4
        await until(lambda: running.client.health().vehicles_eligible == 1, "it works by version 4")
    finally:
        await running.close()
