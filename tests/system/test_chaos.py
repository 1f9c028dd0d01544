"""A few plans of the fault harness, chosen so that every kind of fault is among them: see docs/chaos.md."""

from pathlib import Path
from typing import Final

import pytest

from tests.influx import require_influxd
from tests.postgres import require_postgres
from tests.system.chaos.plan import Kind, plan_of
from tests.system.chaos.run import run_plan
from tests.system.chaos.slow_disk import require_strace

SEEDS: Final = (483, 387, 684)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("mosquitto_program")
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_whatever_happens(seed: int, tmp_path: Path) -> None:
    plan = plan_of(seed)
    if plan.store == "influx":
        require_influxd("1.6.7")
    if plan.ledger == "postgres":
        require_postgres()
    if Kind.SLOW_DISK in plan.kinds:
        require_strace()
    outcome = await run_plan(plan, tmp_path)
    assert outcome.objections == [], [str(fault) for fault in plan.faults]
