"""Each message of a soak that the broker acknowledged to a vehicle, looked up in the ledger and in the telemetry store.

What a vehicle sent and when that was acknowledged is a `Book`, a file of records of equal size a simulator process. It
is read once, after the end; nothing here runs while anything is measured, but for `Book`.

What is promised: the broker that was killed keeps nothing, so what it had acknowledged and not yet handed on went with
it. It hands on in the order in which it takes, over one connection, so that can only be the last of what it took: a
message that is missing and was acknowledged before the last one that arrived was even sent, was lost by somebody else.
"""

import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

__all__ = ["Account", "Book", "Fates", "account", "fates"]

# Times are of the machine's monotonic clock, which all processes share; NaN: never acknowledged.
_RESULT: Final = struct.Struct("<12siiidd")
_RESULT_TYPE: Final = np.dtype(
    [("job", "S12"), ("vehicle", "<i4"), ("chunk", "<i4"), ("rows", "<i4"), ("sent_s", "<f8"), ("told_s", "<f8")]
)
_DOCUMENT: Final = struct.Struct("<iqqdd")
_DOCUMENT_TYPE: Final = np.dtype(
    [("vehicle", "<i4"), ("epoch", "<i8"), ("seq", "<i8"), ("sent_s", "<f8"), ("told_s", "<f8")]
)
_KEPT_DOCUMENTS: Final = """SELECT EXISTS (
    SELECT 1 FROM store.documents AS kept
    WHERE kept.vehicle = 'soak-' || said.vehicle AND kept.epoch = said.epoch AND kept.seq = said.seq
) AS kept FROM said ORDER BY place"""
_KEPT_ROWS: Final = """SELECT coalesce(leases.rows_done, 0) AS kept FROM said LEFT JOIN leases
ON leases.job = said.job AND leases.chunk = said.chunk AND leases.vehicle = 'soak-' || said.vehicle
ORDER BY place"""


class Book:
    """What the vehicles of one process know of their messages, in two files of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._results = (folder / f"{name}.results").open("wb")
        self._documents = (folder / f"{name}.documents").open("wb")

    def result(self, job: str, vehicle: int, chunk: int, rows: int, sent_s: float, told_s: float) -> None:
        """One lease that a result answered."""
        self._results.write(_RESULT.pack(job.encode(), vehicle, chunk, rows, sent_s, told_s))

    def document(self, vehicle: int, epoch: int, seq: int, sent_s: float, told_s: float) -> None:
        """One telemetry document that was acknowledged."""
        self._documents.write(_DOCUMENT.pack(vehicle, epoch, seq, sent_s, told_s))

    def close(self) -> None:
        """Write what is left."""
        self._results.close()
        self._documents.close()


@dataclass(frozen=True, slots=True)
class Fates:
    """How many of some messages' units (documents, rows) were acknowledged, are kept, and what became of the others.

    `missing` were taken by a broker that had more to hand on afterwards. `with_broker` may have gone with one that was
    killed, the oldest of them `oldest_s` before. `unknown` were never acknowledged and are not kept.
    """

    acknowledged: int
    kept: int
    missing: int
    with_broker: int
    oldest_s: float
    unknown: int


@dataclass(frozen=True, slots=True)
class Account:
    """Of all that vehicles sent; `rows_refused` is what the coordinator refused of it, in rows, by its own count."""

    documents: Fates
    rows: Fates
    rows_refused: Mapping[str, int]

    @property
    def rows_lost(self) -> int:
        """Acknowledged rows that are neither kept nor refused."""
        return max(0, self.rows.missing - sum(self.rows_refused.values()))

    @property
    def rows_made_up(self) -> int:
        """Refused rows that nobody can have sent: then the counts prove nothing."""
        rows = self.rows
        return max(0, sum(self.rows_refused.values()) - rows.missing - rows.with_broker - rows.unknown)


def fates(
    units: NDArray[np.int64],
    kept: NDArray[np.int64],
    sent_s: NDArray[np.float64],
    told_s: NDArray[np.float64],
    handed_on: NDArray[np.float64],
    killed_s: float,
) -> Fates:
    """Judge messages of so many units each, of which so many are kept.

    `handed_on` are times at which messages were sent that arrived, of this and any other kind.
    """
    acknowledged = ~np.isnan(told_s)
    before = handed_on[handed_on < killed_s]
    last_s = before.max() if len(before) else -np.inf
    with_broker = acknowledged & (kept < units) & (sent_s < killed_s) & (told_s > last_s)
    left = units - kept
    return Fates(
        acknowledged=int(units[acknowledged].sum()),
        kept=int(kept[acknowledged].sum()),
        missing=int(left[acknowledged & ~with_broker].sum()),
        with_broker=int(left[with_broker].sum()),
        oldest_s=float(killed_s - told_s[with_broker].min()) if with_broker.any() else 0.0,
        unknown=int(left[~acknowledged].sum()),
    )


def account(folder: Path, ledger: Path, store: Path, killed_s: float, rows_refused: Mapping[str, int]) -> Account:
    """Look up all that the books in a folder hold; to be called when the coordinator has ended."""
    results = _read(folder, "results", _RESULT_TYPE)
    documents = _read(folder, "documents", _DOCUMENT_TYPE)
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(f"ATTACH '{store}' AS store (READ_ONLY)")
        database.register("leases", _leases(ledger))
        rows_kept = _looked_up(
            database, _KEPT_ROWS, {**_columns(results), "job": results["job"].astype(str).astype(object)}
        )
        documents_kept = _looked_up(database, _KEPT_DOCUMENTS, _columns(documents))
    handed_on = np.concatenate([results["sent_s"][rows_kept > 0], documents["sent_s"][documents_kept > 0]])
    ones = np.ones(len(documents), dtype=np.int64)
    return Account(
        fates(ones, documents_kept, documents["sent_s"], documents["told_s"], handed_on, killed_s),
        fates(results["rows"].astype(np.int64), rows_kept, results["sent_s"], results["told_s"], handed_on, killed_s),
        rows_refused,
    )


def _read(folder: Path, kind: str, record: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, record), *(np.fromfile(file, record) for file in folder.glob(f"*.{kind}"))])


def _columns(records: NDArray[Any]) -> dict[str, NDArray[Any]]:
    columns = {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}
    return {name: column.astype(str).astype(object) if name == "job" else column for name, column in columns.items()}


def _leases(ledger: Path) -> dict[str, NDArray[Any]]:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        leases = database.execute("SELECT job, chunk, vehicle, rows_done FROM leases WHERE rows_done > 0").fetchall()
    kinds = {"job": object, "chunk": np.int64, "vehicle": object, "rows_done": np.int64}
    columns = list(zip(*leases, strict=True)) or [()] * len(kinds)
    return {name: np.array(column, dtype=kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)}


def _looked_up(database: duckdb.DuckDBPyConnection, query: str, said: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    database.register("said", {**said, "place": np.arange(len(said["vehicle"]))})
    return np.asarray(database.execute(query).fetchnumpy()["kept"], dtype=np.int64)
