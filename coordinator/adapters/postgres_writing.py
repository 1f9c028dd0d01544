"""How a round's writes are sent to PostgreSQL: few rows one by one, many as an array of each value. Commits nothing."""

from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from coordinator.adapters.ledger_rows import statements
from coordinator.adapters.postgres_arrays import PostgresArray
from coordinator.adapters.sql import cell_queries, for_many_rows, postgres_writes, prepared
from coordinator.commands import LedgerWrite

__all__ = ["RoundWriter"]

_FEW_ROWS: Final = 8  # cost less one by one
_MOST_ROWS: Final = 1_000  # at once: an array has room for a gigabyte


class RoundWriter:
    """To be told the types of values by a connection first."""

    def __init__(self) -> None:
        self._for_one = postgres_writes()
        self._for_many: dict[str, tuple[str, list[str]]] = {}

    def learn(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Ask the server which types the statements' values have; its tables must be there."""
        connection.execute("".join(prepared(name, write) for name, write in self._for_one.items()).encode())
        learnt = connection.execute(cell_queries()["types_of_values"]).fetchall()
        connection.execute("DEALLOCATE ALL")
        self._for_many = {name: (for_many_rows(self._for_one[name], types), types) for name, types in learnt}

    def send(self, cursor: psycopg.Cursor[TupleRow], writes: Sequence[LedgerWrite]) -> None:
        """Send what keeps these writes, in order; in a pipeline without waiting for an answer."""
        for name, rows in statements(writes):
            if len(rows) < _FEW_ROWS:
                cursor.executemany(self._for_one[name].encode(), rows)
                continue
            write, types = self._for_many[name]
            for start in range(0, len(rows), _MOST_ROWS):
                columns = zip(*rows[start : start + _MOST_ROWS], strict=True)
                cursor.execute(write.encode(), list(map(PostgresArray, types, columns)))
