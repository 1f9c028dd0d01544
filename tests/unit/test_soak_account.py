"""What becomes of acknowledged messages around a broker's death: only the last that it took can have gone with it."""

import sqlite3
from contextlib import closing
from math import inf, nan
from pathlib import Path

import duckdb
import numpy as np
import pytest

from benchmarks.soak_account import Account, Book, Fates, account, fates

_KILLED_S = 100.0


def judged(*messages: tuple[int, int, float, float]) -> Fates:
    """Messages of (units, of them kept, sent, acknowledged)."""
    units, kept, sent_s, told_s = (np.array(column) for column in zip(*messages, strict=True))
    return fates(units, kept, sent_s.astype(float), told_s.astype(float), sent_s[kept > 0].astype(float), _KILLED_S)


def test_what_is_kept_is_not_lost() -> None:
    assert judged((50, 50, 10, 11), (50, 50, 110, 111)) == Fates(100, 100, 0, 0, 0.0, 0)


@pytest.mark.parametrize(
    ("sent_s", "told_s", "missing", "with_broker"),
    [
        (97, 98, 50, 0),  # told before the last one that arrived was even sent: it was in front of that one
        (97, 99.5, 0, 50),  # it may have been behind that one
        (99.5, 99.75, 0, 50),
        (110, 111, 50, 0),  # nobody killed the second broker
    ],
)
def test_only_the_last_messages_may_have_gone_with_the_broker(
    sent_s: float, told_s: float, missing: int, with_broker: int
) -> None:
    found = judged((50, 50, 10, 11), (50, 50, 99, inf), (50, 0, sent_s, told_s), (50, 50, 105, 106))
    assert (found.missing, found.with_broker) == (missing, with_broker)
    assert found.oldest_s == (100 - told_s if with_broker else 0.0)


def test_what_was_never_acknowledged_is_nobodys_loss() -> None:
    assert judged((50, 0, 10, nan), (50, 50, 20, nan), (50, 30, 30, nan)) == Fates(0, 0, 0, 0, 0.0, 70)


@pytest.mark.parametrize(
    ("refused", "lost", "made_up"), [(0, 50, 0), (49, 1, 0), (50, 0, 0), (60, 0, 0), (80, 0, 0), (81, 0, 1)]
)
def test_rows_that_are_not_kept_must_have_been_refused(refused: int, lost: int, made_up: int) -> None:
    rows = Fates(acknowledged=1000, kept=940, missing=50, with_broker=10, oldest_s=0.1, unknown=20)
    found = Account(rows, rows, {"duplicate": refused})
    assert (found.rows_lost, found.rows_made_up) == (lost, made_up)


def test_each_message_of_each_book_is_looked_up(tmp_path: Path) -> None:
    for process, vehicle in enumerate((7, 8)):
        book = Book(tmp_path, f"soak-{process}")
        book.result("abcdef012345", vehicle, 3 + process, 50, 10.0, 11.0)
        book.result("abcdef012345", vehicle, 9, 50, 12.0, 13.0)  # a lease that is another car's
        book.document(vehicle, 1_700_000_000_000, 0, 10.0, 11.0)
        book.document(vehicle, 1_700_000_000_000, 1, 12.0, 13.0)
        book.close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("CREATE TABLE leases (job TEXT, chunk INTEGER, vehicle TEXT, rows_done INTEGER)")
        leases = [("abcdef012345", 3, "soak-7", 50), ("abcdef012345", 4, "soak-8", 20), ("abcdef012345", 9, "x", 50)]
        ledger.executemany("INSERT INTO leases VALUES (?, ?, ?, ?)", leases)
    with duckdb.connect(str(tmp_path / "telemetry.duckdb")) as store:
        store.execute("CREATE TABLE documents (vehicle VARCHAR, epoch BIGINT, seq BIGINT)")
        documents = [("soak-7", 0), ("soak-7", 0), ("soak-7", 1), ("soak-8", 1), ("soak-9", 0)]  # one came twice
        store.executemany("INSERT INTO documents VALUES (?, 1700000000000, ?)", documents)
    found = account(tmp_path, tmp_path / "ledger.sqlite", tmp_path / "telemetry.duckdb", _KILLED_S, {"duplicate": 130})
    assert (found.documents.acknowledged, found.documents.kept, found.documents.missing) == (4, 3, 1)
    assert (found.rows.acknowledged, found.rows.kept) == (200, 70)
    assert found.rows.missing + found.rows.with_broker == 130
    assert (found.rows_lost, found.rows_made_up) == (0, 0)
