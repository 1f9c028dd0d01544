"""Reads tables of charging sessions, with the faults that the published ones have. Never guesses a time.

A row needs a user, when the cable went in and when it went out, in local time; see `left_out` for what is not used.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["BadTable", "Car", "SessionTable", "read_table"]

Span = tuple[int, int]
_CLOCK_TOLERANCE_MS = 2 * 60_000
_LONGEST = timedelta(days=60)
_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class BadTable(Exception):
    """Theirs: the file is no table of sessions; the message is one line."""


@dataclass(frozen=True, slots=True)
class Car:
    """Plug-ins of one car in order, in local milliseconds; a user with two cars has two."""

    user: str
    spans: list[Span]


@dataclass(slots=True)
class SessionTable:
    """`left_out` counts rows by why they are not used; `first_unreadable` names the line and column of one of them."""

    cars: list[Car] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    first_unreadable: str = ""
    used: int = 0


def read_table(path: Path) -> SessionTable:
    """Read a CSV file, gzipped or not. Raises BadTable."""
    table = SessionTable()
    spans: dict[str, set[Span]] = {}
    try:
        for line, row in _rows(path):
            user = row.get("user_id") or row.get("user")
            span = _span(row, line, table)
            if not user:
                table.left_out["no_user"] += 1
            elif span is not None:
                if span in spans.setdefault(user, set()):
                    table.left_out["twice"] += 1
                spans[user].add(span)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(f"{path}: {' '.join(str(error).split())}") from error
    for user in sorted(spans):
        lanes = _lanes(sorted(spans[user]))
        table.cars += [Car(user, lane) for lane in lanes]
        table.used += sum(map(len, lanes))
    if not table.cars:
        why = table.first_unreadable and f"; {table.first_unreadable}"
        raise BadTable(f"{path}: there is no session with both times in it{why}")
    return table


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row with the number of its last line."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    names = set(reader.fieldnames or ())
    missing = [name for name in ("plugin_local", "plugout_local") if name not in names]
    if not names & {"user_id", "user"}:
        missing.insert(0, "user_id")
    if missing:
        raise BadTable(f"{path}: its first line lacks the columns {', '.join(missing)}")
    for row in reader:
        yield reader.line_num, row


def _span(row: dict[str, str], line: int, table: SessionTable) -> Span | None:
    if row.get("flag") == "no_plugout" or not row["plugout_local"]:
        table.left_out["no_plugout"] += 1
        return None
    column = "plugin_local"
    try:
        start = _local(row[column])
        column = "plugout_local"
        stop = _local(row[column])
        if row.get("flag") == "clock_step":  # the charger's own measure is right then
            column = "connection_h"
            stop = start + timedelta(hours=float(row[column]))
    except (ValueError, TypeError, KeyError, OverflowError):
        table.left_out["unreadable"] += 1
        table.first_unreadable = table.first_unreadable or f"line {line}: {column} is {str(row.get(column))[:40]!r}"
        return None
    if not _FIRST <= start < stop <= min(_LAST, start + _LONGEST):
        table.left_out["impossible"] += 1
        return None
    return round(start.timestamp() * 1000), round(stop.timestamp() * 1000)


def _local(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _lanes(spans: list[Span]) -> list[list[Span]]:
    """As few cars as can have plugged in like this; chargers' clocks overlap by a minute now and then."""
    lanes: list[list[Span]] = []
    for start, stop in spans:
        for lane in lanes:
            end = lane[-1][1]
            if start >= end - _CLOCK_TOLERANCE_MS and stop > end:
                lane.append((max(start, end), stop))
                break
        else:
            lanes.append([(start, stop)])
    return lanes
