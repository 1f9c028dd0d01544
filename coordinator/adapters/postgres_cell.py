"""Who may write for a cell: a lease in PostgreSQL with a token that grows with every holder. Never tries again.

One ledger is one cell's. A holder that lost its lease finds its token outdated in the transaction of its next commit,
however long it was paused, so that two never write.
"""

from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow

from coordinator.adapters.sql import cell_queries
from coordinator.errors import LedgerHeld, LedgerLost, StoreUnavailable

__all__ = ["CellLease"]

_LONGEST_NAME: Final = 63  # of an application, to PostgreSQL
Connection = psycopg.Connection[TupleRow]


class CellLease:
    """The lease of one cell, as one coordinator sees it. `token` and `round` are those of when it was taken."""

    def __init__(self, cell: str, holder: str, lease_s: float) -> None:
        self._cell = cell
        self._holder = holder
        self._lease_s = lease_s
        self._queries = cell_queries()
        self._token = 0

    @property
    def writer_name(self) -> str:
        """The application name of connections that commit for this cell."""
        return f"idlewheel writer {self._cell}"[:_LONGEST_NAME]

    def make_cell(self, connection: Connection) -> None:
        """Make the table of cells, with this one in it. Raises StoreUnavailable when the ledger is another cell's."""
        connection.execute(self._queries["make_cells"])
        connection.execute(self._queries["add_cell"], {"name": self._cell})
        others = connection.execute(self._queries["other_cell"], [self._cell]).fetchall()
        if others:
            raise StoreUnavailable(
                "ledger_of_other_fleet",
                f"the ledger is that of fleet {others[0][0]!r} and not of {self._cell!r}: "
                "set IDLEWHEEL_COORDINATOR_FLEET, or give each fleet a database of its own",
            )

    def take(self, connection: Connection) -> int:
        """Become the holder, and return how many rounds were committed. Raises LedgerHeld."""
        holder, token, _, left_s = self._look(connection)
        taken = None
        if left_s <= 0:
            self.end_earlier_writers(connection)  # which might hold a lock on the cell, too
            values = {"name": self._cell, "holder": self._holder, "lease_s": self._lease_s}
            taken = connection.execute(self._queries["take"], values).fetchone()
        if taken is None:
            raise LedgerHeld(f"fleet {self._cell!r} is served by {holder} (token {token})")
        self._token, round_ = taken
        return int(round_)

    def end_earlier_writers(self, connection: Connection) -> None:
        """End the connections of those who wrote for this cell before."""
        connection.execute(self._queries["end_earlier_writers"], [self.writer_name])

    def renew(self, connection: Connection) -> None:
        """Stay the holder. Raises LedgerLost when another one is."""
        values = {"name": self._cell, "token": self._token, "lease_s": self._lease_s}
        if connection.execute(self._queries["renew"], values).rowcount == 0:
            self.rounds(connection)

    def count_round(self, cursor: psycopg.Cursor[TupleRow], round_: int) -> None:
        """Let the transaction fail unless we hold the cell and this is the round that follows."""
        values = {"name": self._cell, "token": self._token, "round": round_, "lease_s": self._lease_s}
        cursor.execute(self._queries["count_round"], values)

    def rounds(self, connection: Connection) -> int:
        """How many rounds are committed. Raises LedgerLost when another one holds the cell."""
        holder, token, round_, _ = self._look(connection)
        if token != self._token:
            raise LedgerLost(
                f"{holder} has taken over fleet {self._cell!r} (token {token}, ours was {self._token}): nothing more "
                "is committed here, and this coordinator ends; started again, it is the standby",
            )
        return int(round_)

    def release(self, connection: Connection) -> None:
        """Let somebody else be the holder at once."""
        connection.execute(self._queries["release"], {"name": self._cell, "token": self._token})

    def _look(self, connection: Connection) -> Any:
        return connection.execute(self._queries["look"], [self._cell]).fetchone()
