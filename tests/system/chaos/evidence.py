"""What the ledger of a coordinator that has ended says, in the terms of the oracle. Changes and judges nothing."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from coordinator.model import REFEREE, Check
from coordinator.payloads import decode_payload
from fleet_wire.tensors import Array
from tests.system.chaos.facts import AnswerFacts, Conviction, Facts, Held, LeaseFacts, differing
from tests.system.chaos.stage import Stage

__all__ = ["convicted_cars", "copied", "held_rows", "look_into_ledger"]

_LEASES: Final = "SELECT {} FROM leases ORDER BY job, chunk".format(", ".join(LeaseFacts.__dataclass_fields__))
_JOBS: Final = "SELECT id, row_count, verified FROM jobs"
_RESULTS: Final = "SELECT job, vehicle, accepted_ms, retracted, pieces FROM results ORDER BY seq"
_SLOTS: Final = "SELECT job, vehicle, pieces FROM answers"
_ANSWERS: Final = "SELECT job, vehicle, void, received_ms, pieces, payload FROM answers ORDER BY job, number"
_CHECKS: Final = "SELECT job, row, state FROM checks"
_CONDUCT: Final = "SELECT vehicle, convictions, convicted_ms, checks_passed FROM conduct"


def look_into_ledger(stage: Stage, facts: Facts) -> None:
    """Everything that the oracle wants to know of it."""
    facts.leases = [LeaseFacts(*row) for row in _read(stage, _LEASES)]
    facts.held = held_rows(stage)
    kept: dict[str, list[int]] = defaultdict(list)
    kept_of: dict[str, set[str]] = defaultdict(set)
    last_ms: dict[str, int] = defaultdict(int)
    for job, vehicle, accepted_ms, retracted, pieces in _read(stage, _RESULTS):
        rows = [row for start, stop, _ in _pieces(pieces) for row in range(start, stop)]
        kept[job] += [~row for row in rows] if retracted else rows
        kept_of[job].add(vehicle)
        last_ms[vehicle] = max(last_ms[vehicle], accepted_ms)
    for job, vehicle, void, received_ms, pieces, payload in _read(stage, _ANSWERS):
        slots = frozenset(slot for start, stop, _ in _pieces(pieces) for slot in range(start, stop))
        expected = facts.expected.get(job)
        wrong = None if expected is None else _wrong(facts.held[job].rows, _pieces(pieces), payload, expected)
        facts.answers.append(AnswerFacts(job, vehicle, bool(void), received_ms, slots, wrong))
        last_ms[vehicle] = max(last_ms[vehicle], received_ms)
    for job, row, state in _read(stage, _CHECKS):
        if state != Check.DECIDED:
            facts.checks_open.setdefault(job, set()).add(row)
    for vehicle, times, convicted_ms, trust in _read(stage, _CONDUCT):
        facts.trust[vehicle] = trust
        if times:
            facts.convictions[vehicle] = Conviction(times, convicted_ms)
    facts.kept, facts.kept_of, facts.last_accepted_ms = kept, kept_of, last_ms


def held_rows(stage: Stage) -> dict[str, Held]:
    """What each job has of what cars sent.

    Of a verified job that is all answers, void or not. Rows wait for no more that have counted, were computed by the
    coordinator, or are going to be by it alone.
    """
    jobs = _read(stage, _JOBS)
    held = {job: Held(rows, set(), set()) for job, rows, _ in jobs}
    verified = {job for job, _, is_verified in jobs if is_verified}
    for job, _, _, _, pieces in _read(stage, _RESULTS):
        _add(held[job].settled if job in verified else held[job].answered, pieces)
    for job, vehicle, pieces in _read(stage, _SLOTS):
        _add(held[job].settled if vehicle == REFEREE else held[job].answered, pieces)
    for job, row, state in _read(stage, _CHECKS):
        if state == Check.REFEREE_ALONE:
            held[job].settled.add(row)
    return held


def convicted_cars(stage: Stage) -> set[str]:
    """Whose messages are taken and count no more."""
    return {vehicle for vehicle, times, _, _ in _read(stage, _CONDUCT) if times}


def _pieces(data: bytes) -> list[tuple[int, int, int]]:
    return [tuple(piece) for piece in msgspec.msgpack.decode(data)]  # type: ignore[misc]


def _add(rows: set[int], pieces: bytes) -> None:
    for start, stop, _ in _pieces(pieces):
        rows.update(range(start, stop))


def _wrong(
    rows: int, pieces: list[tuple[int, int, int]], payload: bytes, expected: Mapping[str, Array]
) -> frozenset[int]:
    outputs = decode_payload(payload)
    found = set()
    for start, stop, offset in pieces:
        first, last = start % rows, start % rows + stop - start
        for name, array in expected.items():
            there = outputs[name][offset : offset + stop - start]
            found.update(first + row for row in differing(there, array[first:last]))
    return frozenset(found)


@contextlib.contextmanager
def copied(*files: Path) -> Iterator[Path]:
    """Copies of a database's files, so that opening them changes nothing; the first one's path."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for file in files:
            if file.exists():
                shutil.copyfile(file, Path(folder) / file.name)
        yield Path(folder) / files[0].name


def _read(stage: Stage, query: str) -> list[Any]:
    if stage.postgres is not None:
        with psycopg.connect(stage.postgres.url, connect_timeout=2, options="-c statement_timeout=5000") as connection:
            return connection.execute(query.encode()).fetchall()
    ledger = stage.folder("coordinator") / "ledger.sqlite"
    if not ledger.exists():
        return []
    with copied(ledger, ledger.with_name(f"{ledger.name}-wal")) as copy:
        database = sqlite3.connect(copy)
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()
