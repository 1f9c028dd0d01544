"""What an operator looks at, after a real run: metrics of alert rules, and every panel of every dashboard."""

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from idlewheel.brokers import Broker
from tests.influx import VERSIONS, InfluxProcess
from tests.system.deployment import DEADLINE_S, Deployment, deployment, until
from tests.system.test_nothing_is_lost import submitted, until_under_way
from tests.unit.test_alerts import RULES, metrics_of

EMBEDDED = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
ROWS = 3_000
DASHBOARDS = Path(__file__).parents[2] / "grafana" / "dashboards"


@pytest.fixture(autouse=True)
def observed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLEWHEEL_COORDINATOR_OBSERVE_EVERY_S", "0.2")


async def work(running: Deployment) -> None:
    """A job during which a car leaves, and a request that is refused."""
    job = await submitted(running, ROWS)
    await until_under_way(job, ROWS // 20)
    await running.stop("car-2")
    async with asyncio.timeout(DEADLINE_S):
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


def filled_in(query: str, vehicle: str) -> str:
    """What Grafana makes of a query: the last hour, in steps of ten seconds."""
    return (
        query.replace("$timeFilter", "time >= now() - 1h AND time <= now()")
        .replace("$__interval_ms", "10000")
        .replace("$__interval", "10s")
        .replace("$vehicle", vehicle)
    )


def queries_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and query of every target."""
    title = document["title"]
    return [
        (f"{title}: {panel['title']} {target['refId']}", target["query"])
        for panel in document["panels"]
        for target in panel["targets"]
    ]


def empty_columns(series: list[dict[str, Any]]) -> list[str]:
    """Columns without any value; of several series, those that are empty in all."""
    names = series[0]["columns"] if series else ["everything"]
    values = [row for each in series for row in each["values"]]
    return [name for place, name in enumerate(names) if all(row[place] is None for row in values)]


@EMBEDDED
@pytest.mark.parametrize("version", VERSIONS)
async def test_every_panel_of_every_dashboard_shows_a_real_run(
    version: str,
    broker: Broker,
    influx_of: Callable[[str], InfluxProcess],
    tmp_path: Path,
) -> None:
    server = influx_of(version)
    database = f"dashboards_{uuid.uuid4().hex}"
    server.query(f"CREATE DATABASE {database}")
    async with deployment(broker, tmp_path, cars=2, store=server.url(database)) as running:
        await work(running)
        done = 'SELECT sum("done") FROM "job_state" WHERE "done" > 0'
        await until(lambda: server.query(done, database), "the end of the job is in the store")
        works = 'SELECT sum("rows") FROM "vehicle_work" WHERE "vehicle" = \'car-1\' AND "rows" > 0'
        await until(lambda: server.query(works, database), "the work of a car is in the store")
    empty: dict[str, list[str]] = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for variable in document["templating"]["list"]:
            (values,) = server.query(variable["query"], database)
            assert values["values"] == [["vehicle", "car-1"], ["vehicle", "car-2"]]
        for name, query in queries_of(document):
            columns = empty_columns(server.query(filled_in(query, "car-1"), database))
            if columns:
                empty[name] = columns
    assert empty == {}
