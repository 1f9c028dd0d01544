"""What an operator looks at, after a real run: every metric that an alert rule names is there and says so."""

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from idlewheel.brokers import Broker
from tests.system.deployment import Deployment, deployment, until
from tests.system.test_nothing_is_lost import submitted, until_under_way
from tests.unit.test_alerts import RULES, metrics_of

EMBEDDED = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
ROWS = 3_000


@pytest.fixture(autouse=True)
def observed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLEWHEEL_COORDINATOR_OBSERVE_EVERY_S", "0.2")


async def work(running: Deployment) -> None:
    """A job during which a car leaves, and a request that is refused."""
    job = await submitted(running, ROWS)
    await until_under_way(job, ROWS // 20)
    await running.stop("car-2")
    async with asyncio.timeout(90):
        await asyncio.to_thread(job.result)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{running.url}/v1/jobs/none")).status_code == 404


def samples(running: Deployment) -> dict[str, float]:
    """The sum over labels of each series at /metrics."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{running.url}/metrics", trust_env=False).text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


@EMBEDDED
async def test_a_real_coordinator_exports_every_metric_of_the_alert_rules(broker: Broker, tmp_path: Path) -> None:
    async with deployment(broker, tmp_path, cars=2) as running:
        await work(running)
        await until(lambda: samples(running)["idlewheel_job_state_done_total"] == 1, "the end of the job is measured")
        shown = samples(running)
    named = {metric for rule in RULES for metric in metrics_of(rule["expr"])} - {"up"}
    assert named <= set(shown)
    assert shown["idlewheel_economics_rows_total"] == shown["idlewheel_job_state_rows_total"] == ROWS
    assert shown["idlewheel_job_waste_rows_released_total"] > 0
    assert shown["idlewheel_service_telemetry_total"] > 0
    assert shown["idlewheel_service_telemetry_wait_seconds_total"] > 0
    assert shown["idlewheel_service_messages_total"] > 0
    assert shown["idlewheel_service_commits_seconds_total"] > 0
    assert shown["idlewheel_service_refusal_refused_total"] > 0
    assert shown["idlewheel_fleet_state_online"] == 1
