"""A bounded store on disk for result messages that could not be sent. Knows neither the link nor what they say.

What it promises: a message that was put in is still there after the process is killed, until it is removed or shed.
After a power cut the newest ones may be missing, and on a full disk none is taken (counted): their rows are leased
again, so that is worth neither an fsync each nor the agent's life.
"""

import logging
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

__all__ = ["Outgoing", "Properties", "Spool"]

Properties = tuple[tuple[str, str], ...]

_log = logging.getLogger(__name__)
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL);
"""
# Files from before traces were kept have no such column.
_PROPERTIES = "ALTER TABLE message ADD COLUMN properties BLOB NOT NULL DEFAULT '[]'"
_COLUMNS = "SELECT name FROM pragma_table_info('message')"
_TOTAL = "SELECT coalesce(sum(length(payload)), 0) FROM message"
_PUT = "INSERT INTO message (topic, payload, properties) VALUES (?, ?, ?)"
_BETWEEN = "SELECT id, topic, payload, properties FROM message WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
_LAST = "SELECT coalesce(max(id), 0) FROM message"
_OLDEST = "SELECT id, length(payload) FROM message ORDER BY id LIMIT 1"
_REMOVE = "DELETE FROM message WHERE id = ? RETURNING length(payload)"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message as it is published, with its user properties."""

    topic: str
    payload: bytes
    properties: Properties = ()


class Spool:
    """Messages in the order in which they were put; over `max_bytes` the oldest are shed and counted."""

    def __init__(self, database: sqlite3.Connection, max_bytes: int, counters: Counter[str]) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._counters = counters
        self._bytes: int = database.execute(_TOTAL).fetchone()[0]

    @classmethod
    def open(cls, path: Path, max_bytes: int, counters: Counter[str]) -> "Spool":
        """Open or create the file. One that can't be read is set aside and counted: a car must start without it."""
        try:
            return cls(_opened(path), max_bytes, counters)
        except sqlite3.OperationalError:  # the disk is full or away: that is not the file's fault
            raise
        except sqlite3.DatabaseError as error:
            counters["spool_unreadable"] += 1
            _log.warning("%s can't be read and is set aside: %s", path, error)
            path.replace(path.with_name(f"{path.name}.unreadable"))
            for rest in ("-wal", "-shm"):
                path.with_name(f"{path.name}{rest}").unlink(missing_ok=True)
        return cls(_opened(path), max_bytes, counters)

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Store messages in one transaction, and shed what is too much then. What the disk has no room for is lost."""
        rows = [(each.topic, each.payload, msgspec.json.encode(each.properties)) for each in messages]
        size, shed = self._bytes + sum(len(each.payload) for each in messages), 0
        try:
            with self._transaction():
                self._database.executemany(_PUT, rows)
                while size > self._max_bytes:
                    oldest, freed = self._database.execute(_OLDEST).fetchone()
                    self._database.execute(_REMOVE, (oldest,)).fetchall()
                    size, shed = size - freed, shed + 1
        except sqlite3.OperationalError as error:
            self._failed("spool_failed", len(messages), error)
            return
        self._bytes = size
        self._counters["spooled"] += len(messages)
        self._counters["spool_shed"] += shed

    def last_id(self) -> int:
        """Return the newest message's id, 0 when there is none."""
        return int(self._database.execute(_LAST).fetchone()[0])

    def between(self, after_id: int, last_id: int, limit: int) -> list[tuple[int, Outgoing]]:
        """Return the oldest messages with ids past `after_id` and up to `last_id`, each with its id."""
        return [
            (message_id, Outgoing(topic, payload, msgspec.json.decode(properties, type=Properties)))
            for message_id, topic, payload, properties in self._database.execute(_BETWEEN, (after_id, last_id, limit))
        ]

    def remove(self, message_id: int) -> None:
        """Forget a message, which may have been shed already. On a full disk it stays, and is sent once more."""
        try:
            removed = self._database.execute(_REMOVE, (message_id,)).fetchall()
        except sqlite3.OperationalError as error:
            self._failed("spool_not_removed", 1, error)
            return
        self._bytes -= sum(size for (size,) in removed)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _failed(self, what: str, messages: int, error: sqlite3.OperationalError) -> None:
        self._counters[what] += messages
        _log.warning("the spool can't be written: %s", error)

    def _transaction(self) -> sqlite3.Connection:
        self._database.execute("BEGIN")
        return self._database


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.executescript(_SCHEMA)
        if ("properties",) not in database.execute(_COLUMNS).fetchall():
            database.execute(_PROPERTIES)
    except sqlite3.Error:
        database.close()
        raise
    return database
