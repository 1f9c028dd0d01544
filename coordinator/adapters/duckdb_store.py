"""The record of telemetry in one DuckDB file that this process owns. Columns in, columns out; never a row at a time."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from coordinator.errors import StoreUnavailable
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, PlugHistory, TelemetryBatch
from coordinator.metrics import MetricPoint
from coordinator.ports import HOUR_MS, HOURS_KEPT_MS, RAW_KEPT_MS, StoreStatus

__all__ = ["DuckdbStore"]

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "96MB",
    "threads": 1,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_HEAD = {"vehicle": "VARCHAR", "received_ms": "BIGINT", "ts_ms": "BIGINT", "epoch": "BIGINT", "seq": "BIGINT"}
_CREATE = f"""CREATE TABLE IF NOT EXISTS documents (
    {", ".join(f"{name} {kind} NOT NULL" for name, kind in _HEAD.items())}, snapshot BOOLEAN NOT NULL, refusal VARCHAR,
    {", ".join(f"{name} BOOLEAN" for name in BOOLEAN_SIGNALS)},
    {", ".join(f"{name} DOUBLE" for name in NUMBER_SIGNALS)}
)"""  # what a document does not hold is NULL
_INSERT = f"""INSERT INTO documents SELECT {", ".join(_HEAD)}, snapshot, refusal,
    {", ".join(f"CASE WHEN {name} >= 0 THEN {name} = 1 END" for name in BOOLEAN_SIGNALS)},
    {", ".join(f"CASE WHEN NOT isnan({name}) THEN {name} END" for name in NUMBER_SIGNALS)}
FROM columns"""  # noqa: S608 - every name is ours
# A document is later than another of its vehicle by epoch and sequence, as in the fleet view; arg_max passes NULL over.
_LATER = "epoch::HUGEINT * 9007199254740992 + seq"
_LATEST = f"""SELECT vehicle, max(received_ms) AS received_ms, arg_max(ts_ms, later) AS ts_ms,
    arg_max(epoch, later) AS epoch, arg_max(seq, later) AS seq, true AS snapshot,
    {", ".join(f"arg_max({name}, later) AS {name}" for name in ("refusal", *BOOLEAN_SIGNALS, *NUMBER_SIGNALS))}
FROM (SELECT *, {_LATER} AS later FROM documents WHERE received_ms >= (SELECT max(received_ms) - ? FROM documents))
GROUP BY vehicle ORDER BY vehicle"""  # noqa: S608 - as above
# A mean leaves out documents that don't hold the signal; the mean of a flag is the share of them that said yes.
_HOURS = f"""CREATE TABLE IF NOT EXISTS hours (
    hour_ms BIGINT NOT NULL, vehicle VARCHAR NOT NULL, documents BIGINT NOT NULL,
    {", ".join(f"{name} DOUBLE" for name in (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS))}
)"""
_ROLL_UP = f"""INSERT INTO hours SELECT received_ms // {HOUR_MS} * {HOUR_MS} AS hour_ms, vehicle, count(*),
    {", ".join(f"avg({name}::DOUBLE)" for name in (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS))}
FROM documents WHERE received_ms >= ? AND received_ms < ? GROUP BY ALL ORDER BY hour_ms, vehicle"""  # noqa: S608
_PLUG_HISTORY = f"""SELECT vehicle, received_ms, plugged::TINYINT AS plugged FROM (
    SELECT rowid AS place, vehicle, received_ms, plugged, lag(plugged) OVER before AS last,
        lag(received_ms // {HOUR_MS}) OVER before AS last_hour
    FROM documents WHERE plugged IS NOT NULL AND received_ms >= $since
    WINDOW before AS (PARTITION BY vehicle ORDER BY received_ms, rowid)
) WHERE last IS DISTINCT FROM plugged OR last_hour <> received_ms // {HOUR_MS}
UNION ALL SELECT vehicle, hour_ms + {HOUR_MS - 1}, (plugged >= 0.5)::TINYINT FROM hours
WHERE plugged IS NOT NULL AND hour_ms + {HOUR_MS - 1} >= $since
    AND hour_ms + {HOUR_MS} <= (
        SELECT coalesce(min(received_ms) // {HOUR_MS} * {HOUR_MS}, 9007199254740992) FROM documents
    )
ORDER BY received_ms, vehicle"""  # noqa: S608
_HOURS_AT_ONCE = 24
_INTERRUPT_S = 0.01
_HISTORY = "SELECT * FROM documents WHERE vehicle = ? AND received_ms >= ? ORDER BY rowid LIMIT ?"


class DuckdbStore:
    """What asks and maintains has a connection of its own, as DuckDB's serve one thread each.

    `latest` looks back `latest_within_ms` from the newest document, so that a start does not take longer every month.
    Cars send all they know every few minutes, so that only those that fell silent before are left out.
    """

    def __init__(self, path: Path, latest_within_ms: int = 24 * 3600 * 1000) -> None:
        self._path = path
        self._latest_within_ms = latest_within_ms
        self._database: duckdb.DuckDBPyConnection | None = None
        self._reader: duckdb.DuckDBPyConnection | None = None
        self._asking = threading.Lock()

    def open(self) -> None:
        """Open or create. Raises StoreUnavailable."""
        with self._failures():
            self._database = duckdb.connect(str(self._path), config=_CONFIG)
            self._database.execute(_CREATE)
            self._database.execute(_HOURS)
            self._reader = self._database.cursor()

    def close(self) -> None:
        """Close; appended batches stay, and what is being asked ends at once."""
        database, reader, self._database, self._reader = self._database, self._reader, None, None
        if database is not None and reader is not None:
            while not self._asking.acquire(timeout=_INTERRUPT_S):  # DuckDB closes nothing that is being used
                reader.interrupt()
            self._asking.release()
            with self._failures():
                reader.close()
                database.close()

    def give_up(self) -> None:
        """Appending never waits here."""

    def append(self, batches: Sequence[TelemetryBatch]) -> None:
        """Keep batches in one transaction, durable on return. Raises StoreUnavailable."""
        if batches:
            with self._failures():
                database = self._opened(self._database)
                database.register("columns", _columns(batches))
                try:
                    database.execute(_INSERT)
                finally:
                    database.unregister("columns")

    def latest(self) -> TelemetryBatch:
        """The last known value of every signal of every vehicle, one document a vehicle."""
        return self._read(_LATEST, self._latest_within_ms)

    def history(self, vehicle: str, since_ms: int, limit: int) -> TelemetryBatch:
        """Documents of one vehicle received since `since_ms`, in order of arrival, at most `limit`."""
        return self._read(_HISTORY, vehicle, since_ms, limit)

    def plug_history(self, since_ms: int) -> PlugHistory:
        """When vehicles were plugged in since `since_ms`."""
        with self._asks() as reader:
            columns = reader.execute(_PLUG_HISTORY, {"since": since_ms}).fetchnumpy()
        return PlugHistory(
            _texts(columns["vehicle"]),
            np.asarray(columns["received_ms"], dtype=np.int64),
            np.asarray(columns["plugged"], dtype=np.int8),
        )

    def record(self, points: Sequence[MetricPoint]) -> None:
        """Keep nothing: no dashboard can read a file that this process owns."""

    def maintain(self, now_ms: int) -> None:
        """Roll up hours that are over, at most a day of them, and forget what is past its time."""
        with self._asks() as reader:
            (rolled_ms,) = _one(reader, "SELECT coalesce(max(hour_ms) + ?, 0) FROM hours", HOUR_MS)
            (first_ms,) = _one(reader, "SELECT min(received_ms) FROM documents WHERE received_ms >= ?", rolled_ms)
            forget_ms = (now_ms - RAW_KEPT_MS) // HOUR_MS * HOUR_MS
            if first_ms is not None:
                start_ms = first_ms // HOUR_MS * HOUR_MS
                until_ms = min(start_ms + _HOURS_AT_ONCE * HOUR_MS, now_ms // HOUR_MS * HOUR_MS)
                reader.execute(_ROLL_UP, [start_ms, until_ms])
                forget_ms = min(forget_ms, until_ms)
            reader.execute("DELETE FROM documents WHERE received_ms < ?", [forget_ms])
            reader.execute("DELETE FROM hours WHERE hour_ms < ?", [now_ms - HOURS_KEPT_MS])

    def status(self) -> StoreStatus:
        """Well, as long as it raises nothing."""
        return StoreStatus()

    def _opened(self, connection: duckdb.DuckDBPyConnection | None) -> duckdb.DuckDBPyConnection:
        if connection is None:
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._path} is not open")
        return connection

    def _read(self, query: str, *values: Any) -> TelemetryBatch:
        with self._asks() as reader:
            columns = reader.execute(query, values).fetchnumpy()
        return TelemetryBatch(
            vehicle=_texts(columns["vehicle"]),
            received_ms=np.asarray(columns["received_ms"], dtype=np.int64),
            ts_ms=np.asarray(columns["ts_ms"], dtype=np.int64),
            epoch=np.asarray(columns["epoch"], dtype=np.int64),
            seq=np.asarray(columns["seq"], dtype=np.int64),
            snapshot=np.asarray(columns["snapshot"], dtype=np.bool_),
            refusal=_texts(columns["refusal"]),
            signals={
                **{name: np.ma.filled(columns[name].astype(np.int8), -1) for name in BOOLEAN_SIGNALS},
                **{name: np.ma.filled(columns[name].astype(np.float64), np.nan) for name in NUMBER_SIGNALS},
            },
        )

    @contextmanager
    def _asks(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._asking, self._failures():
            yield self._opened(self._reader)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._path}: {error}") from error


def _one(reader: duckdb.DuckDBPyConnection, query: str, *values: Any) -> tuple[Any, ...]:
    found = reader.execute(query, values).fetchone()
    assert found is not None
    return found


def _columns(batches: Sequence[TelemetryBatch]) -> dict[str, NDArray[Any]]:
    return {
        **{name: _joined([getattr(batch, name) for batch in batches]) for name in (*_HEAD, "snapshot", "refusal")},
        **{name: _joined([_signal(batch, name, np.int8(-1)) for batch in batches]) for name in BOOLEAN_SIGNALS},
        **{name: _joined([_signal(batch, name, np.float64("nan")) for batch in batches]) for name in NUMBER_SIGNALS},
    }


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _signal(batch: TelemetryBatch, name: str, absent: np.generic) -> NDArray[Any]:
    column = batch.signals.get(name)
    return np.full(len(batch), absent) if column is None else column


def _texts(column: NDArray[Any]) -> NDArray[np.object_]:
    texts = np.ma.getdata(column).astype(object)
    texts[np.ma.getmaskarray(column)] = None
    return texts
