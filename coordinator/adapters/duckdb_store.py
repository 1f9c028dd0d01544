"""The record of telemetry in one DuckDB file that this process owns. Columns in, columns out; never a row at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from coordinator.errors import StoreUnavailable
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, TelemetryBatch

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
_HISTORY = "SELECT * FROM documents WHERE vehicle = ? AND received_ms >= ? ORDER BY rowid LIMIT ?"


class DuckdbStore:
    """`open` and every other method are to be called in the same thread.

    `latest` looks back `latest_within_ms` from the newest document, so that a start does not take longer every month.
    Cars send all they know every few minutes, so that only those that fell silent before are left out.
    """

    def __init__(self, path: Path, latest_within_ms: int = 24 * 3600 * 1000) -> None:
        self._path = path
        self._latest_within_ms = latest_within_ms
        self._database: duckdb.DuckDBPyConnection | None = None

    def open(self) -> None:
        """Open or create. Raises StoreUnavailable."""
        with self._failures():
            self._database = duckdb.connect(str(self._path), config=_CONFIG)
            self._database.execute(_CREATE)

    def close(self) -> None:
        """Close; appended batches stay."""
        if self._database is not None:
            with self._failures():
                self._database.close()
            self._database = None

    def append(self, batches: Sequence[TelemetryBatch]) -> None:
        """Keep batches in one transaction, durable on return. Raises StoreUnavailable."""
        if batches:
            with self._failures():
                self._connection.register("columns", _columns(batches))
                try:
                    self._connection.execute(_INSERT)
                finally:
                    self._connection.unregister("columns")

    def latest(self) -> TelemetryBatch:
        """The last known value of every signal of every vehicle, one document a vehicle."""
        return self._read(_LATEST, self._latest_within_ms)

    def history(self, vehicle: str, since_ms: int, limit: int) -> TelemetryBatch:
        """Documents of one vehicle received since `since_ms`, in order of arrival, at most `limit`."""
        return self._read(_HISTORY, vehicle, since_ms, limit)

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._database is None:
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._path} is not open")
        return self._database

    def _read(self, query: str, *values: Any) -> TelemetryBatch:
        with self._failures():
            columns = self._connection.execute(query, values).fetchnumpy()
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
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._path}: {error}") from error


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
