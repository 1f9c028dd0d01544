"""How many group commits a ledger keeps a second: SQLite and PostgreSQL, each beside a plain writer of the same rows.

`python -m benchmarks.ledger [--quick] [--json FILE]`; also part of `make bench`. Rounds are those that real jobs make.
The plain writer gets rows that were prepared before its clock started, and adds them to tables without keys in a
transaction a round: by COPY on PostgreSQL, and by executemany on SQLite.
"""

import argparse
import asyncio
import contextlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg

from benchmarks.figures import Figure, Plan, listed, middle, report
from coordinator.adapters.ledger_rows import statements
from coordinator.adapters.postgres_ledger import PostgresLedger
from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.commands import AddJob, AddRows, EndLease, GrantLease, LedgerWrite
from coordinator.model import AcceptedRows, Job, LeaseEnd, LeaseRecord, Piece, ReceiptPart
from coordinator.ports import Ledger
from fleet_wire.api import JobTerms
from tests.postgres import PostgresProcess, find_postgres

GROUP: Final = "ledger"
Rounds = Sequence[Sequence[tuple[str, Sequence[tuple[Any, ...]]]]]  # each with its named statements, and their rows
_JOB: Final = Job("job", "benchmark", "ab" * 32, "cd" * 32, 10_000_000, 1024, JobTerms(), created_ms=1)
_TYPES: Final = {int: "BIGINT", float: "DOUBLE PRECISION", str: "TEXT", bytes: "BYTEA", type(None): "BIGINT"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one round keeps: results of as many cars, each of `leases` that end with it, and as many new leases."""

    name: str
    rounds: int
    results: int
    leases: int
    payload_bytes: int


# As they were counted in the coordinator under the demo's model, and under `benchmarks.dispatch`.
SHAPES: Final = (
    Shape("one car's result of 2 KB", 400, 1, 2, 1_740),
    Shape("results of 200 cars, 7 KB each", 40, 200, 1, 6_876),
    Shape("20 results of 90 leases each, 92 KB", 12, 20, 90, 92_160),
)


def rounds(shape: Shape) -> Iterator[list[LedgerWrite]]:
    """Rounds that follow each other: each ends the leases of the one before."""
    a_round = shape.results * shape.leases
    for number in range(shape.rounds + 1):
        granted = [_lease(shape, number * a_round + chunk) for chunk in range(a_round)]
        writes: list[LedgerWrite] = []
        for result in range(shape.results if number else 0):
            first = (number - 1) * a_round + result * shape.leases
            ended = [_lease(shape, first + chunk) for chunk in range(shape.leases)]
            writes.append(_added(shape, (number - 1) * shape.results + result + 1, ended))
            writes += [EndLease(_JOB.id, lease.chunk, LeaseEnd.DONE, 0, 2_000) for lease in ended]
        yield [*writes, *map(GrantLease, granted)]


def _lease(shape: Shape, chunk: int) -> LeaseRecord:
    vehicle = f"car-{chunk // shape.leases % shape.results:05}"
    return LeaseRecord(_JOB.id, chunk, chunk, chunk + 1, vehicle, 3, 1_000, 9_000, 2, 300_001, 20_000, 202611)


def _added(shape: Shape, seq: int, under: Sequence[LeaseRecord]) -> AddRows:
    pieces = tuple(Piece(lease.start, lease.stop, offset) for offset, lease in enumerate(under))
    payload = Random(seq).randbytes(shape.payload_bytes)
    counts = {"accepted_ms": 2_000, "compute_ms": 12.0, "energy_mwh": 7 * len(under), "pay_micro": 11 * len(under)}
    rows = AcceptedRows(
        seq=seq, job=_JOB.id, vehicle=under[0].vehicle, pieces=pieces, payload=payload, payload_ref=None, **counts
    )
    return AddRows(rows, tuple(ReceiptPart(lease, 1, 12_000, 7, 4, 7) for lease in under))


async def measure(plan: Plan) -> list[Figure]:
    """For `make bench`."""
    return await asyncio.to_thread(_measure, plan)


def _measure(plan: Plan) -> list[Figure]:
    engines: dict[str, tuple[Callable[[str], Ledger], Callable[[str, Rounds], float]]] = {
        "SQLite": (
            lambda name: SqliteLedger(plan.directory / f"{name}.sqlite"),
            lambda name, each: _plain_sqlite(plan.directory / f"{name}.plain", each),
        )
    }
    programs = find_postgres()
    with contextlib.ExitStack() as running:
        if programs is not None:
            server = PostgresProcess(programs)
            server.start()
            running.callback(server.close)
            engines["PostgreSQL"] = (
                lambda _: PostgresLedger(server.make_ledger(), "bench", "benchmark"),
                lambda _, each: _plain_postgres(server.make_ledger(), each),
            )
        figures = [
            _figure(plan, shape if not plan.quick else replace(shape, rounds=shape.rounds // 4), engine, *how)
            for shape in SHAPES
            for engine, how in engines.items()
        ]
    missing = Figure(GROUP, "PostgreSQL", "rows/s", note="not installed (tests/install_servers.sh)")
    return figures if programs is not None else [*figures, missing]


def _figure(
    plan: Plan, shape: Shape, engine: str, ledger: Callable[[str], Ledger], plain: Callable[[str, Rounds], float]
) -> Figure:
    writes = list(rounds(shape))
    prepared = [[(name, rows) for name, rows in statements(each)] for each in writes]
    rows = sum(len(each) for one in prepared[1:] for _, each in one)
    ours, floors = [], []
    for run in range(plan.runs):
        name = f"{engine}-{shape.results}-{run}"
        ours.append(_ours(ledger(name), writes))
        floors.append(plain(name, prepared))
    per_s, floor_per_s = ([rows / seconds for seconds in each] for each in (ours, floors))
    return Figure(
        GROUP,
        f"{engine}, {shape.name}",
        "rows/s",
        middle(per_s),
        middle(floor_per_s),
        "plain " + ("COPY" if engine == "PostgreSQL" else "executemany"),
        note=f"{shape.rounds / middle(ours):,.0f} commits/s; {listed(per_s)}; plain {listed(floor_per_s)}",
    )


def _ours(ledger: Ledger, writes: Sequence[Sequence[LedgerWrite]]) -> float:
    """Seconds of all rounds but the first, which only grants leases."""
    ledger.open()
    try:
        ledger.commit([AddJob(_JOB)])
        ledger.commit(writes[0])
        begun_s = time.perf_counter()
        for each in writes[1:]:
            ledger.commit(each)
        took_s = time.perf_counter() - begun_s
        (job,) = ledger.load().running
    finally:
        ledger.close()
    expected = sum(len(write.rows.pieces) for each in writes for write in each if isinstance(write, AddRows))
    assert job.done == ((0, expected),), "not all of it is kept"
    return took_s


def _plain_sqlite(path: Path, prepared: Rounds) -> float:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        begun_s = 0.0
        for number, each in enumerate(prepared):
            if number < 2:
                for name, rows in each:
                    database.execute(f"CREATE TABLE IF NOT EXISTS {name} ({_columns(rows[0])})")
                begun_s = time.perf_counter()
            database.execute("BEGIN")
            for name, rows in each:
                database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            database.execute("COMMIT")
        return time.perf_counter() - begun_s


def _plain_postgres(url: str, prepared: Rounds) -> float:
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        begun_s = 0.0
        for number, each in enumerate(prepared):
            if number < 2:
                for name, rows in each:
                    cursor.execute(f"CREATE TABLE IF NOT EXISTS {name} ({_columns(rows[0])})".encode())
                begun_s = time.perf_counter()
            cursor.execute("BEGIN")
            for name, rows in each:
                with cursor.copy(f"COPY {name} FROM STDIN (FORMAT BINARY)".encode()) as copy:
                    copy.set_types([_TYPES[type(value)].lower() for value in rows[0]])
                    for row in rows:
                        copy.write_row(row)
            cursor.execute("COMMIT")
        return time.perf_counter() - begun_s


def _columns(row: Sequence[Any]) -> str:
    return ", ".join(f"column_{number} {_TYPES[type(value)]}" for number, value in enumerate(row))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of each figure instead of three, and less work")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idlewheel-ledger-") as folder:
        figures = _measure(Plan(arguments.quick, 1 if arguments.quick else 3, Path(folder)))
    return report(figures, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
