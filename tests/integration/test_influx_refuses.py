"""Real servers that refuse, hang, lose their database or go away while the disk is full: nothing kept is lost."""

import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from coordinator.adapters.influx_store import InfluxStore
from coordinator.events import TelemetryBatch
from tests.influx import VERSIONS, InfluxProcess, require_influxd
from tests.integration.test_influx_store import DEADLINE_S, documents, store_at, until

WAITING = {"lines_written", "lines_spilled", "lines_replayed", "server_lost"}


@dataclass
class Place:
    """A store and a server of its own, which the test may hurt."""

    server: InfluxProcess
    store: InfluxStore
    folder: Path

    def seqs(self) -> list[int]:
        found = self.server.query("SELECT seq FROM vehicle_state, vehicle_state_late", "db")
        return sorted(int(row[1]) for series in found for row in series["values"])  # type: ignore[attr-defined]

    def counters(self) -> dict[str, int]:
        return self.store.status().counters

    def until_all_written(self, count: int) -> None:
        until(lambda: self.store.status().lines_waiting == 0, "nothing waits on disk")
        until(lambda: not self.store.status().trouble, "there is no trouble any more")
        assert self.seqs() == list(range(count))
        assert self.counters().keys() <= WAITING
        assert sum(self.counters().get(name, 0) for name in ("lines_written", "lines_replayed")) == count


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def most_body_bytes() -> int:
    return 25_000_000


@pytest.fixture
def place(version: str, most_body_bytes: int, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "influx"
    folder.mkdir()
    server = InfluxProcess(require_influxd(version), folder, most_body_bytes=most_body_bytes)
    server.start()
    store = store_at(server.url("db"), tmp_path)
    store.open()
    yield Place(server, store, tmp_path)
    store.close()
    server.kill()


@pytest.mark.parametrize("version", VERSIONS)
def test_one_line_of_many_is_refused_alone(
    version: str, influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    """Somebody else wrote one of our fields with another type, and one document of many holds that field."""
    server, database = influx_of(version), f"db{uuid4().hex}"
    store = store_at(server.url(database), tmp_path)
    store.open()
    try:
        store.append([documents(0, 1)])
        theirs = "vehicle_state,vehicle=other refusal=1i 1000000"
        assert httpx.post(f"{server.http}/write", params={"db": database}, content=theirs).status_code == 204
        batch = documents(1, 299)
        batch.refusal[76] = "sentry_mode"
        store.append([batch])
        found = server.query("SELECT seq FROM vehicle_state", database)
        kept = {int(row[1]) for series in found for row in series["values"]}  # type: ignore[attr-defined]
        assert kept == set(range(300)) - {77}
        counters = store.status().counters
        assert counters["lines_refused_invalid"] == 1
        assert (store.status().lines_waiting, store.status().trouble) == (0, "")
        rejected = (tmp_path / "spill" / "rejected.txt").read_text()
        assert "field type conflict" in rejected
        assert [line for line in rejected.splitlines() if "seq=" in line and "seq=77i" not in line] == []
    finally:
        store.close()


@pytest.mark.parametrize("most_body_bytes", [2_000])
def test_a_server_that_takes_only_small_requests_gets_small_ones(place: Place) -> None:
    place.store.append([documents(0, 300)])
    assert place.seqs() == list(range(300))
    assert place.counters().keys() <= {"lines_written"}


def test_a_database_that_is_dropped_in_mid_run_is_made_again(place: Place) -> None:
    place.store.append([documents(0, 5)])
    place.server.query("DROP DATABASE db")
    place.store.append([documents(0, 300)])
    assert place.counters().get("lines_spilled", 0) >= 1
    until(lambda: place.store.status().lines_waiting == 0, "what waited is written")
    assert place.seqs() == list(range(300))
    assert not [name for name in place.counters() if "refused" in name]


def test_a_server_that_hangs_keeps_nobody_waiting(place: Place) -> None:
    place.store.append([documents(0, 10)])
    place.server.pause()
    place.store.append([documents(10, 150)])
    place.store.append([documents(160, 150)])
    assert place.store.status().lines_waiting >= 150  # it may still have taken what came with the signal
    assert "kept on disk" in place.store.status().trouble
    place.server.go_on()
    place.until_all_written(310)


@pytest.mark.parametrize("version", VERSIONS[:1])
def test_nothing_is_acknowledged_that_a_full_disk_did_not_take(version: str, place: Place) -> None:
    """The kernel refuses to write past a size, in the middle of a write: room for files already there, not for more."""
    place.server.kill()
    place.store.append([documents(0, 50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    acknowledged: list[TelemetryBatch] = []

    def keep(batch: TelemetryBatch) -> None:
        place.store.append([batch])
        acknowledged.append(batch)

    waiting = threading.Thread(target=keep, args=(documents(50, 100),), daemon=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        waiting.start()
        until(lambda: place.counters().get("spill_failed", 0) > 2, "the disk has refused it again and again")
        until(lambda: "is not acknowledged" in place.store.status().trouble, "it is said")
        assert (acknowledged, place.store.status().lines_waiting) == ([], 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    waiting.join(DEADLINE_S)
    assert len(acknowledged) == 1
    assert place.store.status().lines_waiting == 150
    place.store.close()
    place.store = store_at(place.server.url("db"), place.folder)
    place.store.open()
    assert "spill_torn_bytes" not in place.counters()
    place.server.start()
    place.until_all_written(150)
