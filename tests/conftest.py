"""Fixtures that several kinds of tests share: a real broker, once embedded and once Mosquitto."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from idlewheel.brokers import Broker, find_mosquitto, start_broker
from tests.influx import InfluxProcess, require_influxd
from tests.postgres import PostgresProcess, require_postgres
from tests.servers import required

# How long an example takes says more about the machine than about the code.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
# For a search that may take an hour: `pytest tests/property --hypothesis-profile=long`.
settings.register_profile("long", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=5_000)
settings.load_profile("untimed")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A test's name stays the same in every process that collects it: bytes that we pack may hold the time."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None


def require_mosquitto() -> str:
    """Return Mosquitto's path. Where it is missing, skip; under CI, fail."""
    return required(find_mosquitto(), "Mosquitto is not installed (on Debian: apt-get install mosquitto)")


def require_promtool() -> str:
    """Return promtool's path. Where it is missing, skip; under CI, fail."""
    reason = "promtool is not installed (tests/install_servers.sh takes it from Debian's package prometheus)"
    return required(shutil.which("promtool"), reason)


@pytest.fixture
def mosquitto_program() -> str:
    return require_mosquitto()


@pytest.fixture(params=["embedded", "mosquitto"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """A fresh broker; a test that only one of them can pass parametrises this fixture indirectly."""
    if request.param == "mosquitto":
        require_mosquitto()
    directory = tmp_path / "broker"
    directory.mkdir()
    async with start_broker(request.param, directory) as running:
        yield running


@pytest.fixture(scope="session")
def influx_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], InfluxProcess]]:
    """A running InfluxDB of a version, shared by all tests: each makes a database of its own, and none hurts it."""
    running: dict[str, InfluxProcess] = {}

    def of(version: str) -> InfluxProcess:
        if version not in running:
            running[version] = InfluxProcess(require_influxd(version), tmp_path_factory.mktemp("influx"))
            running[version].start()
        return running[version]

    yield of
    for server in running.values():
        server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresProcess]:
    """A running PostgreSQL, shared by all tests: each makes a database of its own, and none hurts it."""
    server = PostgresProcess(require_postgres())
    server.start()
    yield server
    server.close()
