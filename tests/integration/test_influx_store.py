"""A telemetry store whose server misbehaves: nothing that was kept is lost, and what is wrong is named and counted."""

import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from coordinator.adapters.influx_check import examine
from coordinator.adapters.influx_lines import batch_of
from coordinator.adapters.influx_server import InfluxAddress
from coordinator.adapters.influx_spill import SpillLog
from coordinator.adapters.influx_store import InfluxLimits, InfluxStore
from coordinator.errors import StoreUnavailable
from coordinator.events import TelemetryBatch
from coordinator.metrics import MetricPoint
from coordinator.ports import HOUR_MS, HOURS_KEPT_MS, RAW_KEPT_MS
from idlewheel.cli import main
from tests.influx import VERSIONS, InfluxProcess, require_influxd

LIMITS = InfluxLimits(
    lines_at_once=100, write_timeout_s=0.5, again_s=0.05, longest_again_s=0.1, denied_again_s=0.1, points_every_s=0.05
)
DEADLINE_S = 60.0


class Misbehaving:
    """Answers writes by `answer(lines)`, a status and a reason or None to hang up; keeps the lines it took."""

    def __init__(self) -> None:
        self.answer: Callable[[list[str]], tuple[int, str] | None] = lambda lines: (204, "")
        self.taken: list[str] = []
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.say(204, "")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path.startswith("/api/v2/write"):
                    self.say(404, "404 page not found", "text/plain")
                elif self.path.startswith("/query"):
                    found = {"values": [["db"]], "columns": ["name"]} if "SHOW" in body else {}
                    self.say(200, json.dumps({"results": [{"series": [found]} if found else {}]}))
                else:
                    outer.asked += 1
                    lines = body.split("\n")
                    answer = outer.answer(lines)
                    if answer is None:
                        self.close_connection = True
                        return
                    if answer[0] == 204:
                        outer.taken += lines
                    self.say(answer[0], json.dumps({"error": answer[1]}) if answer[1] else "")

            def say(self, status: int, text: str, kind: str = "application/json") -> None:
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"influx://127.0.0.1:{self._server.server_port}/db"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def seqs(self) -> set[int]:
        return {int(line.split("seq=")[1].split("i", 1)[0]) for line in self.taken}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    running = Misbehaving()
    yield running
    running.close()


def store_at(url: str, folder: Path, limits: InfluxLimits = LIMITS) -> InfluxStore:
    return InfluxStore(InfluxAddress.parse(url), folder / "spill", lambda vehicle: "north", Random(1), limits)


@pytest.fixture
def store(server: Misbehaving, tmp_path: Path) -> Iterator[InfluxStore]:
    opened = store_at(server.url, tmp_path)
    opened.open()
    yield opened
    opened.close()


def documents(first: int, count: int) -> TelemetryBatch:
    return batch_of(
        {"vehicle": "v1", "time_ns": (1_000 + seq) * 1_000_000, "epoch": 1, "seq": seq, "charge_percent": 5.0}
        for seq in range(first, first + count)
    )


def until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends, f"it did not happen that {what}"
        time.sleep(0.01)


def until_all_written(store: InfluxStore, server: Misbehaving, count: int) -> None:
    until(lambda: server.seqs() == set(range(count)), f"{count} documents are written")
    until(lambda: store.status().lines_waiting == 0, "nothing waits on disk")
    assert store.status().trouble == ""


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((401, "unable to parse authentication credentials"), "password or token"),
        ((403, "not authorized"), "read and write access"),
        ((404, "database not found"), "make the database"),
        ((500, "engine is closed"), "engine is closed"),
        ((503, "hinted handoff queue not empty"), "503"),
        ((429, "slow down"), "429"),
        (None, ""),
    ],
    ids=lambda each: str(each[0]) if isinstance(each, tuple) else str(each or "hangs up"),
)
def test_a_server_that_refuses_gets_all_of_it_later(
    store: InfluxStore, server: Misbehaving, answer: tuple[int, str] | None, word: str
) -> None:
    store.append([documents(0, 250)])
    server.answer = lambda lines: answer
    for first in range(250, 500, 50):
        store.append([documents(first, 50)])
    assert server.seqs() == set(range(250))
    status = store.status()
    assert (status.lines_waiting, status.oldest_ms) == (250, 1_250)
    # Each time it finds the server there, all is well until the next write.
    until(lambda: "kept on disk" in (said := store.status().trouble) and word in said, "the trouble is told")
    server.answer = lambda lines: (204, "")
    until_all_written(store, server, 500)
    counters = store.status().counters
    assert (counters["lines_written"], counters["lines_spilled"], counters["lines_replayed"]) == (250, 250, 250)


def test_a_slow_server_holds_nobody_up(store: InfluxStore, server: Misbehaving) -> None:
    slow = threading.Event()
    server.answer = lambda lines: (slow.wait(DEADLINE_S) and (204, "")) or None
    store.append([documents(0, 10)])
    assert store.status().lines_waiting == 10
    slow.set()
    until_all_written(store, server, 10)


def test_too_large_a_request_is_split(store: InfluxStore, server: Misbehaving) -> None:
    server.answer = lambda lines: (204, "") if len(lines) <= 10 else (413, "Request Entity Too Large")
    store.append([documents(0, 300)])
    until_all_written(store, server, 300)
    assert not [name for name in store.status().counters if "refused" in name or "spilled" in name]


def test_a_line_that_is_refused_is_dropped_alone_and_never_sent_again(
    store: InfluxStore, server: Misbehaving, tmp_path: Path
) -> None:
    server.answer = lambda lines: (
        (400, "field type conflict") if any("seq=77i" in each for each in lines) else (204, "")
    )
    store.append([documents(0, 300)])
    assert server.seqs() == set(range(300)) - {77}
    asked = server.asked
    store.append([documents(300, 1)])
    assert server.asked == asked + 1
    assert store.status().counters["lines_refused_invalid"] == 1
    kept = (tmp_path / "spill" / "rejected.txt").read_text()
    assert "field type conflict" in kept
    assert "seq=77i" in kept


def test_what_waits_is_there_after_a_restart(server: Misbehaving, tmp_path: Path) -> None:
    server.answer = lambda lines: (503, "")
    for first in range(0, 300, 100):
        store = store_at(server.url, tmp_path)
        store.open()
        store.append([documents(first, 100)])
        store.close()
    server.answer = lambda lines: (204, "")
    store = store_at(server.url, tmp_path)
    store.open()
    until_all_written(store, server, 300)
    store.close()


def test_a_full_disk_stops_acknowledging_until_the_server_takes_it(
    store: InfluxStore, server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_log: SpillLog, _bodies: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpillLog, "append", full)
    server.answer = lambda lines: (503, "")
    kept = threading.Event()
    threading.Thread(target=lambda: (store.append([documents(0, 10)]), kept.set()), daemon=True).start()
    until(lambda: store.status().counters.get("spill_failed", 0) > 2, "the full disk is noticed")
    told = set()

    def is_told() -> bool:
        status = store.status()
        told.add(status.trouble)
        return status.counters["spill_failed"] > 20

    until(is_told, "it was tried again and again")
    assert len(told) == 1
    assert "not acknowledged" in told.pop()
    assert not kept.is_set()
    server.answer = lambda lines: (204, "")
    assert kept.wait(DEADLINE_S)
    until(lambda: not store.status().trouble, "nothing is wrong any more")
    assert server.seqs() == set(range(10))


def test_closing_ends_a_wait_for_room(store: InfluxStore, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_log: SpillLog, _bodies: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpillLog, "append", full)
    server.answer = lambda lines: (503, "")
    store.give_up()
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.append([documents(0, 10)])


def test_points_are_dropped_and_counted_while_telemetry_waits(store: InfluxStore, server: Misbehaving) -> None:
    point = MetricPoint("fleet_state", 1, {}, {"vehicles": 1})
    store.record([point])
    until(lambda: "fleet_state vehicles=1i 1000000" in server.taken, "the point is written")
    server.taken.clear()
    server.answer = lambda lines: (503, "")
    store.append([documents(0, 1)])
    store.record([point, point])
    assert store.status().counters["points_dropped"] == 2
    server.answer = lambda lines: (204, "")
    until_all_written(store, server, 1)


def test_points_that_wait_are_sent_before_the_end(server: Misbehaving, tmp_path: Path) -> None:
    store = store_at(server.url, tmp_path, replace(LIMITS, points_every_s=DEADLINE_S))
    store.open()
    for number in range(3):
        store.record([MetricPoint("fleet_state", number, {}, {"vehicles": 1})] * LIMITS.lines_at_once)
    store.close()
    assert len(server.taken) == 3 * LIMITS.lines_at_once


@pytest.mark.parametrize("answer", [(503, ""), None], ids=["refuses", "hangs up"])
def test_points_that_cannot_be_sent_before_the_end_are_counted(
    server: Misbehaving, tmp_path: Path, answer: tuple[int, str] | None
) -> None:
    store = store_at(server.url, tmp_path, replace(LIMITS, points_every_s=DEADLINE_S))
    store.open()
    server.answer = lambda lines: answer
    store.record([MetricPoint("fleet_state", 1, {}, {"vehicles": 1})] * 3 * LIMITS.lines_at_once)
    store.close()
    assert store.status().counters["points_dropped"] == 3 * LIMITS.lines_at_once


def test_the_end_does_not_wait_for_a_server_that_hangs(server: Misbehaving, tmp_path: Path) -> None:
    go_on, ended = threading.Event(), threading.Event()
    server.answer = lambda lines: (go_on.wait(4 * DEADLINE_S) and (204, "")) or None
    store = store_at(server.url, tmp_path, replace(LIMITS, write_timeout_s=3 * DEADLINE_S))
    store.open()

    def append_and_close() -> None:
        store.append([documents(0, 1_000)])
        store.close()
        ended.set()

    threading.Thread(target=append_and_close, daemon=True).start()
    until(lambda: server.asked > 0, "the server is asked")
    store.record([MetricPoint("fleet_state", 1, {}, {"vehicles": 1})])
    store.give_up()
    try:
        assert ended.wait(DEADLINE_S)
    finally:
        go_on.set()
    assert store.status().counters["lines_spilled"] == 1_000
    assert store.status().counters["points_dropped"] == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_points_are_forgotten_too_those_of_single_cars_sooner(
    version: str, influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, database = influx_of(version), f"db{uuid4().hex}"
    store = store_at(server.url(database), tmp_path)
    store.open()
    try:
        for time_ms in (HOUR_MS, RAW_KEPT_MS + 2 * HOUR_MS):
            store.record([MetricPoint("economics", time_ms, {}, {"rows": 1})])
            store.record([MetricPoint("vehicle_work", time_ms, {"vehicle": "v1"}, {"reason": "eligible", "rows": 1})])

        def kept(measurement: str) -> int:
            return sum(len(each["values"]) for each in server.query(f"SELECT rows FROM {measurement}", database))

        until(lambda: (kept("economics"), kept("vehicle_work")) == (2, 2), "the points are written")
        store.maintain(RAW_KEPT_MS + 3 * HOUR_MS)
        assert (kept("economics"), kept("vehicle_work")) == (2, 1)
        store.maintain(HOURS_KEPT_MS + RAW_KEPT_MS + 4 * HOUR_MS)
        assert (kept("economics"), kept("vehicle_work")) == (0, 0)
    finally:
        store.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_check_says_what_a_server_is(
    version: str, influx_of: Callable[[str], InfluxProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    server = influx_of(version)
    with pytest.raises(SystemExit) as left:
        main(["store", "check", server.url("not_there")])
    assert left.value.code == 1
    assert "not_there is missing" in capsys.readouterr().out
    server.query('CREATE DATABASE "checked"')
    with pytest.raises(SystemExit) as left:
        main(["store", "check", server.url("checked"), "--json"])
    assert left.value.code == 0
    findings = {each["name"]: each["text"] for each in json.loads(capsys.readouterr().out)}
    assert list(findings) == ["server", "access", "database", "write", "retention"]
    assert ("/api/v2/write" in findings["write"]) == (version == "1.8.10")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_with_accounts(version: str, tmp_path: Path) -> None:
    server = InfluxProcess(require_influxd(version), tmp_path, auth=True)
    server.start()
    try:
        server.query("CREATE USER admin WITH PASSWORD 'p@ss/word' WITH ALL PRIVILEGES")
        wrong, right = server.url("db", "admin:no@"), server.url("db", "admin:p%40ss%2Fword@")
        assert [each.ok for each in examine(InfluxAddress.parse(wrong))] == [True, False]
        store = store_at(wrong, tmp_path)
        store.open()
        store.append([documents(0, 10)])
        assert "401" in store.status().trouble
        store.close()
        store = store_at(right, tmp_path)
        store.open()
        until(lambda: store.status().lines_waiting == 0, "what waited is written")
        assert store.history("v1", 0, 100).seq.tolist() == list(range(10))
        store.close()
    finally:
        server.kill()


@pytest.mark.parametrize("url", ["http://h/db", "influx://h", "influx:///db", "influx://h:x/db", "influx://h/a b", "x"])
def test_an_address_that_cannot_be_is_bad_input(url: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["store", "check", url])
    assert left.value.code == 2
