"""The ledger in one SQLite file that this process owns. Keeps what it is given; never decides about jobs or rows."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from coordinator.adapters.ledger_rows import statements
from coordinator.adapters.sql import migrations, named_queries
from coordinator.adapters.sql_ledger import SqlLedger
from coordinator.commands import LedgerWrite
from coordinator.errors import StoreUnavailable

__all__ = ["SqliteLedger"]

# Exclusive: a second process that opens the same ledger is told so, instead of giving the same rows out again.
_PRAGMAS: Final = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"


# Pages are checked when it is opened, a second for 300 MB. In a larger one damage is found when it is read.
_MOST_CHECKED_BYTES: Final = 256_000_000
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class SqliteLedger(SqlLedger):
    """`open` and every other method are to be called in the same thread."""

    readers: Final = 0
    trouble: Final = ""  # what goes wrong here ends the process

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queries = named_queries()
        self._database: sqlite3.Connection | None = None
        self._damage: StoreUnavailable | None = None

    def open(self) -> None:
        """Open and migrate. Raises StoreUnavailable."""
        try:
            with self._failures():
                self._database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
                self._database.executescript(_PRAGMAS)
                self._check(self._database)
                self._migrate()
        except StoreUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Close; committed writes stay."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _check(self, database: sqlite3.Connection) -> None:
        ((size,),) = database.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        if size <= _MOST_CHECKED_BYTES:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise self._damaged(found)

    def _migrate(self) -> None:
        steps = migrations()
        newest = steps[-1][0]
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > newest:
            raise StoreUnavailable(
                "ledger_too_new",
                f"the ledger {self._path} has version {version} and this program knows {newest}: "
                "start the newer program again, or give this one another folder",
            )
        for step, script in steps:
            if step > version:
                with self._transaction():
                    for statement in _statements(script):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {step}")

    def give_up(self) -> None:
        """Nothing here waits for anybody."""

    def expect_usable(self) -> None:
        """Raises StoreUnavailable when damage was found; the lock on the file lasts for as long as it is open."""
        if self._damage is not None:
            raise self._damage

    def commit(self, writes: Sequence[LedgerWrite]) -> None:
        """Keep all writes in one transaction. Raises StoreUnavailable, and then none is kept."""
        with self._failures(), self._transaction():
            for name, rows in statements(writes):
                self._connection.executemany(self._queries[name], rows)

    def _read(self, name: str, values: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
        with self._failures():
            cursor = self._connection.execute(self._queries[name], values)
            return [column[0] for column in cursor.description], cursor.fetchall()

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreUnavailable("ledger_unavailable", f"the ledger {self._path} is not open")
        return self._database

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where it was noticed
            if code in _DAMAGE:
                raise self._damaged(str(error)) from error
            if code == sqlite3.SQLITE_BUSY:
                raise StoreUnavailable(
                    "ledger_in_use",
                    f"another process has the ledger {self._path} open: end that one, or give this one another folder",
                ) from error
            raise StoreUnavailable("ledger_unavailable", f"the ledger {self._path}: {error}") from error

    def _damaged(self, what: str) -> StoreUnavailable:
        first_line = what.replace("*** in database main ***\n", "").partition("\n")[0]
        self._damage = StoreUnavailable(
            "ledger_damaged",
            f"the ledger {self._path} is damaged ({first_line}): restore it from a backup, "
            "or save what can be read (docs/operations.md, The ledger)",
        )
        return self._damage


def _statements(script: str) -> Iterator[str]:
    """Split a script, so that it can run inside a transaction of ours."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
