"""The ledger in PostgreSQL, for which several coordinators may be started, of which one at a time writes.

Keeps what it is given; never decides about jobs or rows. While the server is away a commit waits for it: see `commit`.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Final
from weakref import WeakSet

import psycopg
from psycopg.adapt import AdaptersMap, Buffer, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumperUnknown
from psycopg_pool import ConnectionPool

from coordinator.adapters.postgres_arrays import PostgresArray, PostgresArrayDumper, plain_text
from coordinator.adapters.postgres_cell import CellLease
from coordinator.adapters.postgres_writing import RoundWriter
from coordinator.adapters.sql import cell_queries, postgres_migrations, postgres_queries
from coordinator.adapters.sql_ledger import SqlLedger
from coordinator.commands import LedgerWrite
from coordinator.errors import LedgerHeld, LedgerLost, StoreUnavailable

__all__ = ["PostgresLedger"]

# A connection whose other end is gone must be noticed within seconds. What the URL says goes before these.
_CONNECTION: Final = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "client_encoding": "UTF8",
    "application_name": "idlewheel",
}
_READERS: Final = 4
_READ_PATIENCE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_RENEWALS_A_LEASE: Final = 3
_LAST_ANSWER_S: Final = 2.0  # that a server has when we end
_POOL_CLOSES_S: Final = 0.2  # for each of its threads: one that connects just now is not waited for
_DAMAGE: Final = (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted)
_CHATTY: Final = ("psycopg", "psycopg.pool")  # loggers; what they say of a lost connection, `trouble` says better

_log = logging.getLogger(__name__)
Connection = psycopg.Connection[TupleRow]


class _Whole(Loader):
    """Sums of BIGINT are numeric to PostgreSQL: whole numbers of any size, as Python's are."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _Text(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(plain_text(obj))


class PostgresLedger(SqlLedger):
    """`open`, `commit` and `close` are to be called in one thread; all else may be called in any.

    A thread of its own renews the lease, so that it lasts however long something takes elsewhere.
    """

    readers: Final = _READERS

    def __init__(self, url: str, cell: str, holder: str, lease_s: float = 3.0) -> None:
        self.trouble = ""
        self._url = url
        self._lease = CellLease(cell, holder, lease_s)
        self._lease_s = lease_s
        self._queries = postgres_queries()
        self._schema = cell_queries()
        self._round_writer = RoundWriter()
        self._writer: Connection | None = None
        self._pool: ConnectionPool[Connection] | None = None
        self._given_up = threading.Event()
        self._connections: WeakSet[Connection] = WeakSet()
        self._connecting = threading.Lock()
        self._is_broken_off = False
        self._closing = threading.Event()
        self._renewing: threading.Thread | None = None
        self._unusable: StoreUnavailable | None = None
        self._round = 0
        self._was_away = False
        self._not_before_s = 0.0

    def open(self) -> None:
        """Become the one who writes, and migrate. To be called again after LedgerHeld. Raises StoreUnavailable."""
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with self._failures():
                if self._writer is None:
                    self._come_near()
                self._take(self._connection)
        except LedgerHeld:
            raise
        except StoreUnavailable as error:
            self._was_away = True
            self.close()
            if isinstance(error.__cause__, psycopg.OperationalError):
                hint = "see that PostgreSQL runs there and lets us in (docs/operations.md)"
                raise StoreUnavailable(error.code, f"{error.detail}: {hint}") from error
            raise

    def _come_near(self) -> None:
        self._writer = self._connect(self._lease.writer_name)
        if self._was_away:  # so it was for whoever holds the cell, who could not renew the lease
            self._not_before_s = time.monotonic() + self._lease_s
        with self._writer.transaction():
            self._writer.execute(self._schema["lock_schema"])
            self._writer.execute(self._schema["make_version"])
            self._version(self._writer)
            self._lease.make_cell(self._writer)

    def _take(self, connection: Connection) -> None:
        if time.monotonic() < self._not_before_s:
            raise LedgerHeld("the ledger was away: whoever wrote it before has the time of a lease to come back")
        self._round = self._lease.take(connection)
        self._closing.clear()
        self._renewing = threading.Thread(target=self._keep_lease, name="ledger-lease", daemon=True)
        self._renewing.start()
        with connection.transaction():
            connection.execute(self._schema["lock_schema"])
            version = self._version(connection)
            for step, script in postgres_migrations():
                if step > version:
                    connection.execute(script.encode())
                    connection.execute(self._schema["set_version"], [step])
        self._round_writer.learn(connection)
        self._pool = ConnectionPool(
            self._conninfo(),
            kwargs={"autocommit": True, "context": _adapters()},
            min_size=1,
            max_size=_READERS,
            timeout=_LONGEST_PAUSE_S,
            reconnect_timeout=_LONGEST_PAUSE_S,
            configure=self._know,
            check=ConnectionPool.check_connection,
            name="ledger-readers",
            open=True,
        )

    def _version(self, connection: Connection) -> int:
        """The version of the tables, which must not be newer than we are."""
        found = connection.execute(self._schema["version"]).fetchone()
        if found is None:
            connection.execute(self._schema["add_version"], [0])
            return 0
        newest = postgres_migrations()[-1][0]
        if found[0] > newest:
            raise StoreUnavailable(
                "ledger_too_new",
                f"{self._place} has version {found[0]} and this program knows {newest}: "
                "start the newer program again, or give this one another database",
            )
        return int(found[0])

    def give_up(self) -> None:
        """Let what waits for the server come to an end by StoreUnavailable, so that one can close: at once where it
        is away, and after two seconds where it is there and does not answer.
        """
        if not self._given_up.is_set():
            self._given_up.set()
            breaking_off = threading.Timer(_LAST_ANSWER_S, self._break_off)
            breaking_off.daemon = True
            breaking_off.start()

    def _break_off(self) -> None:
        """Nothing else wakes up who waits for an answer: the connection of a server that stands still is alive."""
        with self._connecting:
            self._is_broken_off = True
            for connection in self._connections:
                _shut_down(connection)

    def _know(self, connection: Connection) -> None:
        with self._connecting:
            self._connections.add(connection)
            if self._is_broken_off:
                _shut_down(connection)

    def close(self) -> None:
        """Close, and let another one take over at once; committed writes stay. After `give_up` within four seconds."""
        if self._renewing is not None:
            self._closing.set()
            self._renewing.join(_LONGEST_PAUSE_S)
        if self._pool is not None:
            self._pool.close(_POOL_CLOSES_S)
        if self._writer is not None:
            with suppress(psycopg.Error):
                self._lease.release(self._writer)
            self._writer.close()
        self._renewing = self._pool = self._writer = None

    def expect_usable(self) -> None:
        """Raises LedgerLost when it is known that another one writes, StoreUnavailable when damage was found."""
        if self._unusable is not None:
            raise self._unusable

    def _keep_lease(self) -> None:
        connection: Connection | None = None
        while not self._closing.wait(self._lease_s / _RENEWALS_A_LEASE):
            try:
                if connection is None or connection.closed:
                    connection = self._connect("idlewheel lease")
                self._lease.renew(connection)
            except psycopg.Error as error:  # it may be back before anybody takes the lease
                self._trouble_is(self._away(error))
            except LedgerLost as lost:
                self._unusable = lost
                break
            else:
                self._trouble_is("")
        if connection is not None:
            connection.close()

    def commit(self, writes: Sequence[LedgerWrite]) -> None:
        """Keep all writes in one transaction. Raises StoreUnavailable, and then none is kept.

        When the connection is lost, nobody knows whether the COMMIT went through; so each counts a round of the cell.
        Where the round is there after reconnecting, so are the writes, and else they are sent again.
        """
        round_ = self._round + 1
        refused: psycopg.Error | None = None
        for attempt in count():
            try:
                if attempt and self._is_kept(round_):
                    break
                if refused is not None:
                    raise self._unavailable(refused) from refused
                self._write(self._connection, writes, round_)
                break
            except psycopg.OperationalError as error:
                self._pause(attempt, error)
            except psycopg.Error as error:
                refused = error
        self._round = round_
        self._trouble_is("")

    def _write(self, connection: Connection, writes: Sequence[LedgerWrite], round_: int) -> None:
        """Send everything, with the COMMIT, and then wait for the answers: one way to the server and back."""
        with connection.pipeline(), connection.cursor() as cursor:
            cursor.execute("BEGIN")
            self._round_writer.send(cursor, writes)
            self._lease.count_round(cursor, round_)
            cursor.execute("COMMIT")

    def _is_kept(self, round_: int) -> bool:
        """Reconnect, and see whether a round went through. Raises StoreUnavailable when another one writes."""
        self._connection.close()
        self._writer = self._connect(self._lease.writer_name)
        if self._lease.rounds(self._writer) == round_:
            return True
        self._lease.end_earlier_writers(self._writer)
        return False

    def _pause(self, attempt: int, error: psycopg.Error) -> None:
        self._trouble_is(self._away(error))
        if self._given_up.wait(min(_FIRST_PAUSE_S * 2 ** min(attempt, 10), _LONGEST_PAUSE_S)):
            raise self._unavailable(error) from error

    def _read(self, name: str, values: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
        ends_s = time.monotonic() + _READ_PATIENCE_S
        with self._failures():
            while True:
                try:
                    return self._read_once(name, values)
                except psycopg.OperationalError:
                    if time.monotonic() >= ends_s or self._given_up.wait(_FIRST_PAUSE_S):
                        raise

    def _read_once(self, name: str, values: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
        if self._pool is None:
            raise self._closed()
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(self._queries[name].encode(), values)
            assert cursor.description is not None
            return [column.name for column in cursor.description], cursor.fetchall()

    @property
    def _connection(self) -> Connection:
        if self._writer is None:
            raise self._closed()
        return self._writer

    def _connect(self, name: str) -> Connection:
        made = psycopg.connect(
            self._conninfo(), autocommit=True, context=_adapters(), application_name=name, prepare_threshold=1
        )
        self._know(made)
        made.execute(self._schema["set_up"])
        return made

    def _conninfo(self) -> str:
        return make_conninfo(**{**_CONNECTION, **_parts(self._url)})

    @property
    def _place(self) -> str:
        parts = _parts(self._url)
        return f"the ledger {parts.get('dbname', '')} at {parts.get('host', 'localhost')}:{parts.get('port', 5432)}"

    def _away(self, error: psycopg.Error) -> str:
        return f"{self._place} is away, and nothing is committed until it is back: {_first_line(error)}"

    def _trouble_is(self, text: str) -> None:
        if bool(text) != bool(self.trouble):
            _log.warning("%s", text or f"{self._place} is back")
        self.trouble = text

    def _closed(self) -> StoreUnavailable:
        return StoreUnavailable("ledger_unavailable", f"{self._place} is not open")

    def _unavailable(self, error: psycopg.Error) -> StoreUnavailable:
        if isinstance(error, _DAMAGE):
            self._unusable = StoreUnavailable(
                "ledger_damaged",
                f"{self._place} is damaged ({_first_line(error)}): restore it from a backup "
                "(docs/operations.md, The ledger)",
            )
            return self._unusable
        if isinstance(error, psycopg.OperationalError) and self.trouble:
            return StoreUnavailable("ledger_unavailable", self.trouble)
        return StoreUnavailable("ledger_unavailable", f"{self._place}: {_first_line(error)}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._unavailable(error) from error


def _shut_down(connection: Connection) -> None:
    """From another thread than the one that uses it, which then finds it lost. Its file stays that one's to close."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    # Of one width: else each mixture of small and large numbers would be another statement to prepare.
    adapters.register_dumper(int, Int8BinaryDumper)
    adapters.register_dumper(str, _Text)
    adapters.register_dumper(PostgresArray, PostgresArrayDumper)
    adapters.register_loader("numeric", _Whole)
    return adapters


def _parts(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.Error:  # whose text has the URL in it, and so the password
        raise StoreUnavailable(
            "ledger_url", "the ledger's URL must be like postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        ) from None


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__
