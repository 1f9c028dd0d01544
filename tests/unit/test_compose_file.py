"""docker-compose.yml and the Dockerfile name only what exists: files, ports, settings, commands, services."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from coordinator.settings import CoordinatorSettings
from idlewheel.cli import app

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CARS = [name for name in SERVICES if name.startswith("car-")]


def mounts() -> list[tuple[str, str]]:
    return [tuple(volume.split(":")[:2]) for service in SERVICES.values() for volume in service.get("volumes", [])]


def test_every_mounted_file_and_volume_exists() -> None:
    for source, _ in mounts():
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source
    assert {source for source, _ in mounts() if not source.startswith("./")} == set(COMPOSE["volumes"])


def test_every_service_waited_for_exists_and_says_when_it_is_well() -> None:
    for service in SERVICES.values():
        for name, terms in service.get("depends_on", {}).items():
            assert terms["condition"] == "service_healthy"
            assert "healthcheck" in SERVICES[name] or "HEALTHCHECK" in DOCKERFILE


def test_ports_are_reachable_from_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_the_broker_listens_where_everybody_looks_for_it() -> None:
    configuration = (ROOT / "broker_config" / "mosquitto.compose.conf").read_text(encoding="utf-8")
    (listener,) = re.findall(r"^listener (\d+)", configuration, re.MULTILINE)
    assert SERVICES["coordinator"]["environment"]["IDLEWHEEL_COORDINATOR_BROKER_PORT"] == listener
    assert SERVICES["broker"]["ports"] == [f"127.0.0.1:{listener}:{listener}"]
    for car in CARS:
        assert f"broker:{listener}" in SERVICES[car]["command"]
    data = [volume.split(":")[1] for volume in SERVICES["broker"]["volumes"] if volume.startswith("broker:")]
    assert f"persistence_location {data[0]}/" in configuration


def test_the_coordinator_understands_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES["coordinator"]["environment"]
    known = {f"IDLEWHEEL_COORDINATOR_{name.upper()}" for name in CoordinatorSettings.model_fields}
    assert set(environment) <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = CoordinatorSettings()
    assert settings.broker_host in SERVICES
    assert settings.public_http_url == f"http://coordinator:{settings.http_port}"
    assert SERVICES["coordinator"]["ports"] == [f"127.0.0.1:{settings.http_port}:{settings.http_port}"]
    assert f"EXPOSE {settings.http_port}" in DOCKERFILE
    assert str(settings.data) in [target for source, target in mounts() if source == "coordinator"]


@pytest.mark.parametrize("car", CARS)
def test_the_cars_run_a_command_that_there_is(car: str) -> None:
    program, name, *arguments = SERVICES[car]["command"]
    assert program == "idlewheel"
    program_group = get_command(app)
    command = program_group.get_command(typer.Context(program_group), name)  # type: ignore[attr-defined]
    parsed = command.make_context(name, list(arguments))
    assert parsed.params["vehicle"] == car
    assert parsed.params["fleet"] == SERVICES["coordinator"]["environment"]["IDLEWHEEL_COORDINATOR_FLEET"]


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    grafana, influxdb = SERVICES["grafana"], SERVICES["influxdb"]["environment"]
    provisioning = ROOT / "grafana" / "provisioning"
    source = (provisioning / "datasources" / "influxdb.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$(\w+)", source)) <= set(grafana["environment"])
    assert grafana["environment"]["IDLEWHEEL_INFLUXDB_TOKEN"] == influxdb["DOCKER_INFLUXDB_INIT_ADMIN_TOKEN"]
    assert grafana["environment"]["IDLEWHEEL_INFLUXDB_DATABASE"] == influxdb["DOCKER_INFLUXDB_INIT_BUCKET"]
    assert grafana["environment"]["IDLEWHEEL_INFLUXDB_URL"] == "http://influxdb:8086"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "idlewheel.yml").read_text(encoding="utf-8"))[
        "providers"
    ]
    folders = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert provider["options"]["path"] == folders["./grafana/dashboards"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "grafana" / "dashboards" / home.name).is_file()
    assert str(home.parent) == folders["./grafana/dashboards"]


def test_the_coordinator_keeps_telemetry_where_grafana_looks_for_it() -> None:
    influxdb = SERVICES["influxdb"]["environment"]
    address = f"influx://influxdb:8086/{influxdb['DOCKER_INFLUXDB_INIT_BUCKET']}"
    access = f"org={influxdb['DOCKER_INFLUXDB_INIT_ORG']}&token={influxdb['DOCKER_INFLUXDB_INIT_ADMIN_TOKEN']}"
    assert SERVICES["coordinator"]["environment"]["IDLEWHEEL_COORDINATOR_STORE"] == f"{address}?{access}"


def test_the_coordinator_keeps_its_ledger_where_postgres_is() -> None:
    postgres = SERVICES["postgres"]["environment"]
    account = f"{postgres['POSTGRES_USER']}:{postgres['POSTGRES_PASSWORD']}"
    address = f"postgresql://{account}@postgres/{postgres['POSTGRES_DB']}"
    assert SERVICES["coordinator"]["environment"]["IDLEWHEEL_COORDINATOR_LEDGER"] == address


def test_the_mapping_is_made_when_influxdb_is_set_up() -> None:
    mounted = [volume.split(":") for volume in SERVICES["influxdb"]["volumes"] if volume.startswith("./")]
    ((script, place, mode),) = mounted
    assert place.startswith("/docker-entrypoint-initdb.d/")
    assert mode == "ro"
    assert (ROOT / script).stat().st_mode & 0o111, "the image runs only what may be run"
    names = set(re.findall(r"\$(DOCKER_\w+)", (ROOT / script).read_text(encoding="utf-8")))
    # The image itself tells the bucket's id.
    assert names - {"DOCKER_INFLUXDB_INIT_BUCKET_ID"} <= set(SERVICES["influxdb"]["environment"])


def test_no_secret_is_committed_but_what_says_that_it_is_none() -> None:
    secret = re.compile("TOKEN|PASSWORD|SECRET")
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name):
                assert re.fullmatch(r"\$\{IDLEWHEEL_\w+:-for-this-machine-only\}", value), name


def test_the_image_copies_and_runs_what_exists() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(sources)
    assert importlib.util.find_spec("coordinator.daemon") is not None
    assert SERVICES["coordinator"]["build"]["args"]["EXTRAS"] in project["project"]["optional-dependencies"]
    assert "USER idlewheel" in DOCKERFILE
