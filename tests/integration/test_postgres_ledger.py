"""A ledger on a server that goes away, comes back, and is taken over: nothing is lost, kept twice, or kept too late."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from coordinator.adapters.postgres_ledger import PostgresLedger
from coordinator.commands import AddJob, EndLease, GrantLease
from coordinator.errors import LedgerHeld, LedgerLost, StoreUnavailable
from coordinator.model import Job, LeaseEnd, LeaseRecord
from fleet_wire.api import JobTerms
from tests.postgres import PostgresProcess, require_postgres

LEASE_S = 0.6
DEADLINE_S = 30.0


def job(number: int) -> AddJob:
    return AddJob(Job(f"job-{number}", "", "ab" * 32, "cd" * 32, 1, 1, JobTerms(), created_ms=number))


def jobs_in(ledger: PostgresLedger) -> list[str]:
    return [running.job.id for running in ledger.load().running]


def until(condition: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.01)


def open_when_free(ledger: PostgresLedger) -> None:
    def is_open() -> bool:
        try:
            ledger.open()
        except LedgerHeld:
            return False
        return True

    until(is_open, "it takes over")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresProcess]:
    """One that is killed."""
    running = PostgresProcess(require_postgres())
    running.start()
    yield running
    running.close()


@pytest.fixture
def open_ledger() -> Iterator[Callable[..., PostgresLedger]]:
    opened: list[PostgresLedger] = []

    def make(place: str, holder: str = "ours", cell: str = "test") -> PostgresLedger:
        opened.append(PostgresLedger(place, cell, holder, LEASE_S))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.give_up()
        ledger.close()


class Road:
    """A way to the server that can be cut just before the server's answer to a COMMIT comes through."""

    def __init__(self, port: int) -> None:
        self.cut_at_commit = False
        self.loses_commit = False
        self.cuts = 0
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target, is_client in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._copy, args=(source, target, is_client), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_client and self.cut_at_commit and b"COMMIT" in data:
                    self.cut_at_commit = False
                    self.cuts += 1
                    if not self.loses_commit:
                        target.sendall(data)
                        target.shutdown(socket.SHUT_WR)  # it does what it was sent, and its answer comes nowhere
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target) if is_client and self.loses_commit else (source,):
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("loses_commit", [True, False], ids=["before", "after"])
def test_a_commit_whose_answer_never_came_is_kept_once(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger], *, loses_commit: bool
) -> None:
    road = Road(postgres_server.port)
    ledger = open_ledger(postgres_server.make_ledger().replace(f":{postgres_server.port}/", f":{road.port}/"))
    ledger.open()
    ledger.commit([job(1)])
    road.loses_commit = loses_commit
    for number in range(2, 6):
        road.cut_at_commit = True
        ledger.commit([job(number)])  # twice it would be refused: a job's id is taken then
    assert road.cuts == 4
    assert jobs_in(ledger) == [f"job-{number}" for number in range(1, 6)]
    road.close()


def test_a_commit_waits_for_a_server_that_is_away_and_says_so(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    with ThreadPoolExecutor(1) as thread:
        for number, how in enumerate((signal.SIGKILL, signal.SIGINT)):
            server.kill(how)
            waiting = thread.submit(ledger.commit, [job(number)])
            until(lambda: "away" in ledger.trouble, "it says that the server is away")
            assert not waiting.done()
            server.start()
            waiting.result(DEADLINE_S)
            assert (ledger.trouble, len(jobs_in(ledger))) == ("", number + 1)


def test_one_that_ends_waits_for_no_server(server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]) -> None:
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    server.kill()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(ledger.commit, [job(1)])
        until(lambda: "away" in ledger.trouble, "it waits")
        ledger.give_up()
        with pytest.raises(StoreUnavailable):
            waiting.result(DEADLINE_S)
        thread.submit(ledger.close).result(DEADLINE_S)
    server.start()


def test_one_that_ends_does_not_wait_for_a_server_that_stands_still(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    ledger.commit([job(1)])
    with ThreadPoolExecutor(2) as threads, server.paused():
        writing, reading = threads.submit(ledger.commit, [job(2)]), threads.submit(ledger.load)
        ledger.give_up()
        for waiting in (writing, reading):
            with pytest.raises(StoreUnavailable):
                waiting.result(DEADLINE_S)
        threads.submit(ledger.close).result(DEADLINE_S)


def test_one_that_ends_while_the_server_stands_still_has_only_to_close(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    with ThreadPoolExecutor(1) as thread, server.paused():
        ledger.give_up()
        thread.submit(ledger.close).result(DEADLINE_S)


def test_one_that_lost_its_lease_unnoticed_cannot_commit(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = postgres_server.make_ledger()
    first, second = open_ledger(place, "the first"), open_ledger(place, "the second")
    monkeypatch.setattr(first, "_keep_lease", lambda: None)  # as if it were paused
    first.open()
    first.commit([job(1)])
    with pytest.raises(LedgerHeld, match="served by the first"):
        second.open()
    open_when_free(second)
    with pytest.raises(LedgerLost, match="the second has taken over"):
        first.commit([job(2)])
    second.commit([job(3)])
    assert jobs_in(second) == ["job-1", "job-3"]


def test_one_that_lost_its_lease_is_told_without_a_commit(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    place = postgres_server.make_ledger()
    ledger = open_ledger(place)
    ledger.open()
    with psycopg.connect(place, autocommit=True) as other:
        other.execute("UPDATE cells SET token = token + 1, holder = 'another one'")

    def is_told() -> bool:
        try:
            ledger.expect_usable()
        except LedgerLost as lost:
            return "another one has taken over" in lost.detail
        return False

    until(is_told, "it is told")


def test_the_locks_of_one_that_was_paused_in_mid_commit_hold_nobody_up(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = postgres_server.make_ledger()
    first, second = open_ledger(place, "the first"), open_ledger(place, "the second")
    monkeypatch.setattr(first, "_keep_lease", lambda: None)
    first.open()
    half = first._connection
    half.execute("BEGIN")
    half.execute("UPDATE cells SET round = round + 1")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(open_when_free, second).result(DEADLINE_S)
    second.commit([job(1)])
    with pytest.raises(LedgerLost):
        first.commit([job(2)])
    assert jobs_in(second) == ["job-1"]


def test_each_holder_has_a_greater_token_and_one_that_closes_waits_for_nobody(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    place = postgres_server.make_ledger()
    with psycopg.connect(place, autocommit=True) as other:
        for token in range(1, 4):
            ledger = open_ledger(place, f"holder {token}")
            ledger.open()
            assert other.execute("SELECT name, holder, token FROM cells").fetchall() == [
                ("test", f"holder {token}", token)
            ]
            ledger.close()


def test_a_lease_is_renewed_while_nothing_is_committed(
    postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    place = postgres_server.make_ledger()
    ledger, standby = open_ledger(place), open_ledger(place, "standby")
    ledger.open()
    ends = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < ends:
        with pytest.raises(LedgerHeld):
            standby.open()
        time.sleep(0.02)
    ledger.commit([job(1)])


def test_a_standby_lets_the_one_that_wrote_come_back_first_when_the_server_was_away(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    place = server.make_ledger()
    ledger, standby = open_ledger(place), open_ledger(place, "standby")
    ledger.open()
    with pytest.raises(LedgerHeld):
        standby.open()
    server.kill()
    time.sleep(2 * LEASE_S)  # the lease has long ended
    with pytest.raises(StoreUnavailable):
        standby.open()
    server.start()
    with pytest.raises(LedgerHeld):
        standby.open()
    ledger.commit([job(1)])
    with pytest.raises(LedgerHeld):
        standby.open()


def test_a_ledger_is_one_fleets(postgres_server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]) -> None:
    place = postgres_server.make_ledger()
    open_ledger(place).open()
    with pytest.raises(StoreUnavailable, match="is that of fleet 'test' and not of 'other'"):
        open_ledger(place, cell="other").open()


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://idlewheel:hidden@127.0.0.1:1/ledger", "the ledger ledger at 127.0.0.1:1: "),
        ("postgresql://idlewheel:hidden@127.0.0.1:1/ledger", "see that PostgreSQL runs there and lets us in"),
        ("postgresql://u:hidden%zz@h/", "must be like postgresql://"),
        ("ledger.sqlite", "must be like postgresql://"),
    ],
)
def test_a_url_that_leads_nowhere_is_named_without_its_password(url: str, fault: str) -> None:
    with pytest.raises(StoreUnavailable) as refusal:
        PostgresLedger(url, "test", "ours").open()
    assert fault in refusal.value.detail
    assert "hidden" not in refusal.value.detail


def test_readers_wait_for_a_server_that_restarts(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    ledger.commit([job(1)])
    with ThreadPoolExecutor(3) as threads:
        server.kill()
        asking = [threads.submit(jobs_in, ledger) for _ in range(3)]
        server.start()
        assert [asked.result(DEADLINE_S) for asked in asking] == [["job-1"]] * 3


def leased(open_ledger: Callable[..., PostgresLedger], place: str) -> list[LeaseRecord]:
    """Leases on several pages."""
    leases = [LeaseRecord("job-1", chunk, chunk, chunk + 1, "v1", 1, 10, 1000) for chunk in range(1_000)]
    ledger = open_ledger(place)
    ledger.open()
    ledger.commit([job(1), *map(GrantLease, leases)])
    ledger.close()
    return leases


@pytest.mark.parametrize(("relation", "page"), [("leases", 0), ("leases", 3), ("leases_pkey", 1), ("jobs", 0)])
def test_a_damaged_page_stops_whoever_reads_it_and_says_what_to_restore(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger], relation: str, page: int
) -> None:
    place = server.make_ledger()
    leased(open_ledger, place)
    server.damage(place, relation, page)
    ledger = open_ledger(place)
    ledger.open()
    ledger.expect_usable()
    with pytest.raises(StoreUnavailable, match="restore it from a backup") as refusal:
        ledger.load()
    assert refusal.value.code == "ledger_damaged"
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        ledger.expect_usable()


def test_a_damaged_page_stops_a_commit_that_needs_it_and_none_of_it_is_kept(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger]
) -> None:
    place = server.make_ledger()
    leases = leased(open_ledger, place)
    server.damage(place, "leases", 3)
    ledger = open_ledger(place)
    ledger.open()
    ends = [EndLease(lease.job, lease.chunk, LeaseEnd.DONE, 0, 5) for lease in leases]
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        ledger.commit([job(2), *ends])
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        ledger.expect_usable()
    with psycopg.connect(place) as connection:
        assert connection.execute("SELECT id FROM jobs").fetchall() == [("job-1",)]


def test_readers_say_that_the_server_is_away(
    server: PostgresProcess, open_ledger: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.adapters.postgres_ledger._READ_PATIENCE_S", 0.1)
    ledger = open_ledger(server.make_ledger())
    ledger.open()
    server.kill()
    until(lambda: ledger.trouble, "it knows")
    with pytest.raises(StoreUnavailable, match="is away, and nothing is committed until it is back"):
        ledger.load()
    server.start()


def test_nothing_of_psycopg_is_loaded_for_a_ledger_in_a_file() -> None:
    code = "import sys, coordinator.daemon; sys.exit(any(name.startswith('psycopg') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
