"""The fleet that benchmarks announce is one that may work: else they would measure a fleet that nobody gives work."""

from pathlib import Path

import pytest

from benchmarks.child import spawn
from benchmarks.stack import FLEET, run_stack, until

_CARS = 20


@pytest.mark.usefixtures("mosquitto_program")
async def test_cars_that_benchmarks_announce_may_work(tmp_path: Path) -> None:
    async with (
        run_stack(tmp_path) as (local, client),
        spawn(tmp_path, "benchmarks.fleet_load", local.broker.port, FLEET, _CARS, "announce") as load,
    ):
        await load.hear()
        await until(lambda: client.health().vehicles_eligible == _CARS, 30)
