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
    """`left_out` counts rows by why they are not used."""

    cars: list[Car] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    used: int = 0


def read_table(path: Path) -> SessionTable:
    """Read a CSV file, gzipped or not. Raises BadTable."""
    table = SessionTable()
    spans: dict[str, set[Span]] = {}
    try:
        for row in _rows(path):
            user = row.get("user_id") or row.get("user")
            span = _span(row, table.left_out)
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
        raise BadTable(f"{path}: there is no session with both times in it")
    return table


def _rows(path: Path) -> Iterator[dict[str, str]]:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    names = set(reader.fieldnames or ())
    missing = [name for name in ("plugin_local", "plugout_local") if name not in names]
    if not names & {"user_id", "user"}:
        missing.insert(0, "user_id")
    if missing:
        raise BadTable(f"{path}: it lacks the columns {', '.join(missing)}")
    yield from reader


def _span(row: dict[str, str], left_out: Counter[str]) -> Span | None:
    if row.get("flag") == "no_plugout" or not row["plugout_local"]:
        left_out["no_plugout"] += 1
        return None
    try:
        start, stop = (_local(row[name]) for name in ("plugin_local", "plugout_local"))
        if row.get("flag") == "clock_step":  # the charger's own measure is right then
            stop = start + timedelta(hours=float(row["connection_h"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        left_out["unreadable"] += 1
        return None
    if not _FIRST <= start < stop <= min(_LAST, start + _LONGEST):
        left_out["impossible"] += 1
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
