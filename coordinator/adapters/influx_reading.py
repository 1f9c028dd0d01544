"""What the telemetry store asks InfluxDB: InfluxQL that 1.x and newer servers speak, and what waits on disk beside it.

Writes nothing; `forget` deletes.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from coordinator.adapters.influx_lines import HEAD_FIELDS, HOURS, LATE, STATE, Document, hour_line
from coordinator.adapters.influx_server import InfluxError, InfluxServer, ServerGone
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, PlugHistory
from coordinator.metrics import CATALOGUE, Measurement
from coordinator.ports import HOUR_MS, HOURS_KEPT_MS, RAW_KEPT_MS

__all__ = ["InfluxReading"]

_MS_NS: Final = 1_000_000
_HOUR_NS: Final = HOUR_MS * _MS_NS
_OURS: Final = (STATE, LATE, HOURS)
_LATEST_WITHIN_NS: Final = 24 * _HOUR_NS
_SIGNALS: Final = (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS)
_HOURS_AT_ONCE: Final = 24
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
Reading = tuple[int, str, int]


class InfluxReading:
    """Questions to one server. Each raises InfluxError."""

    def __init__(self, server: InfluxServer) -> None:
        self._server = server
        self._rolled_ns: int | None = None

    def last_documents(self) -> list[Document]:
        """Of every vehicle the latest document, without its signals."""
        rows = self._rows(f"SELECT last(seq) AS seq, epoch, ts_ms FROM {STATE} GROUP BY vehicle")  # noqa: S608
        return [row for row in rows if row["seq"] is not None]

    def latest(self, waiting: Iterable[Document]) -> list[Document]:
        """Of every vehicle the last value of every signal, with what waits on disk."""
        found = {row["vehicle"]: row for row in self.last_documents()}
        since_ns = max((row["time_ns"] for row in found.values()), default=0) - _LATEST_WITHIN_NS
        values = ", ".join(f"last({name}) AS {name}" for name in ("refusal", *_SIGNALS))
        query = f"SELECT {values} FROM {STATE} WHERE time >= {since_ns} GROUP BY vehicle"  # noqa: S608
        for row in self._rows(query):
            found[row["vehicle"]] = row | found[row["vehicle"]]
        for document in sorted(waiting, key=lambda each: (each["epoch"], each["seq"])):
            known = found.setdefault(document["vehicle"], document)
            if (document["epoch"], document["seq"]) >= (known["epoch"], known["seq"]):
                found[document["vehicle"]] = known | document
            else:
                found[document["vehicle"]] = document | {
                    name: value for name, value in known.items() if value is not None
                }
        newest_ns = max((row["time_ns"] for row in found.values()), default=0)
        return [
            row | {"snapshot": 1} for _, row in sorted(found.items()) if row["time_ns"] >= newest_ns - _LATEST_WITHIN_NS
        ]

    def history(self, vehicle: str, since_ms: int, limit: int, waiting: Iterable[Document]) -> list[Document]:
        """Documents of one vehicle in order of arrival."""
        if not _ID.fullmatch(vehicle):
            return []
        names = ", ".join((*HEAD_FIELDS, "refusal", *_SIGNALS))
        rows = self._rows(
            f"SELECT {names} FROM {STATE}, {LATE}"  # noqa: S608 - the id was checked
            f" WHERE vehicle = '{vehicle}' AND time >= {since_ms * _MS_NS} ORDER BY time LIMIT {limit}"
        )
        found = {row["time_ns"]: row | {"vehicle": vehicle} for row in rows}
        found |= {each["time_ns"]: each for each in waiting if each["time_ns"] >= since_ms * _MS_NS}
        return [found[time_ns] for time_ns in sorted(found)[:limit]]

    def plug_history(self, since_ms: int, waiting: Iterable[Document]) -> PlugHistory:
        """Changes as the server finds them, one reading for each hour that is rolled up, and the rest thinned out."""
        since_ns = since_ms * _MS_NS
        rolled_ns = max(self._rolled_until(), since_ns)
        first = self._time(f"SELECT first(seq) FROM {STATE}")  # noqa: S608
        kept_ns = rolled_ns if first is None else first // _HOUR_NS * _HOUR_NS
        readings: list[Reading] = []
        hours = f"SELECT plugged FROM {HOURS} WHERE time > {since_ns - _HOUR_NS} GROUP BY vehicle"  # noqa: S608
        for row in self._rows(hours):
            share, end_ns = row["plugged"], row["time_ns"] + _HOUR_NS - _MS_NS
            if share in {0, 1} or (share is not None and row["time_ns"] < kept_ns):
                readings.append((end_ns, row["vehicle"], int(share >= 0.5)))
        changes = (
            f"SELECT change FROM (SELECT difference(plugged) AS change FROM {STATE} WHERE time >= {since_ns}"  # noqa: S608
            f" AND time < {rolled_ns} GROUP BY vehicle) WHERE change != 0 GROUP BY vehicle"
        )
        if rolled_ns > since_ns:
            readings += [(row["time_ns"], row["vehicle"], int(row["change"] > 0)) for row in self._rows(changes)]
        raw = f"SELECT plugged FROM {STATE} WHERE time >= {rolled_ns} GROUP BY vehicle"  # noqa: S608
        thinned = _Thinned()
        for row in self._rows(raw):
            if row["plugged"] is not None:
                thinned.add((row["time_ns"], row["vehicle"], row["plugged"]))
        for document in sorted(waiting, key=lambda each: each["time_ns"]):
            if document.get("plugged") is not None and document["time_ns"] >= since_ns:
                thinned.add((document["time_ns"], document["vehicle"], document["plugged"]))
        readings += thinned.readings
        readings.sort()
        return PlugHistory(
            np.array([vehicle for _, vehicle, _ in readings], dtype=object),
            np.array([time_ns for time_ns, _, _ in readings], dtype=np.int64) // _MS_NS,
            np.array([plugged for _, _, plugged in readings], dtype=np.int8),
        )

    def hours(self, until_ms: int) -> Iterator[list[str]]:
        """The lines of hours that are over and not rolled up yet, hour by hour, at most a day of them at once.

        An hour counts as rolled up when the next one is asked for. The last hour that an earlier process rolled up is
        done again, as it may have been broken off.
        """
        until_ns = until_ms * _MS_NS
        if self._rolled_ns is None:
            self._rolled_ns = max(self._rolled_until() - _HOUR_NS, 0)
        for _ in range(_HOURS_AT_ONCE):
            first = self._time(f"SELECT first(seq) FROM {STATE} WHERE time >= {self._rolled_ns}")  # noqa: S608
            start_ns = until_ns if first is None else first // _HOUR_NS * _HOUR_NS
            if start_ns >= until_ns:
                return
            yield self._hour(start_ns)
            self._rolled_ns = start_ns + _HOUR_NS

    def forget(self, now_ms: int) -> bool:
        """Delete what is past its time; False when the server refuses, as 3.x does."""
        rolled_ms = now_ms if self._rolled_ns is None else self._rolled_ns // _MS_NS
        raw_ms = (now_ms - RAW_KEPT_MS) // HOUR_MS * HOUR_MS
        if self._time(f"SELECT first(seq) FROM {STATE} WHERE time >= {self._rolled_ns or 0}") is not None:  # noqa: S608
            raw_ms = min(raw_ms, rolled_ms)
        done = True
        for measurement, field, until_ms in (
            (STATE, "seq", raw_ms),
            (LATE, "seq", raw_ms),
            (HOURS, "documents", now_ms - HOURS_KEPT_MS),
            *(
                (each.name, each.fields[0].name, now_ms - _kept_ms(each))
                for each in CATALOGUE
                if each.name not in _OURS
            ),
        ):
            until_ns = until_ms * _MS_NS
            if self._time(f"SELECT first({field}) FROM {measurement} WHERE time < {until_ns}") is not None:  # noqa: S608
                try:
                    self._server.query(f"DELETE FROM {measurement} WHERE time < {until_ns}")  # noqa: S608
                except ServerGone:
                    raise
                except InfluxError:
                    done = False
        return done

    def _hour(self, start_ns: int) -> list[str]:
        means = ", ".join(f"mean({name}) AS {name}" for name in _SIGNALS)
        rows = self._rows(
            f"SELECT count(seq) AS documents, {means} FROM {STATE}"  # noqa: S608
            f" WHERE time >= {start_ns} AND time < {start_ns + _HOUR_NS} GROUP BY vehicle, region"
        )
        return [
            hour_line(
                row["vehicle"],
                row["region"],
                row["documents"],
                {name: row[name] for name in _SIGNALS if row.get(name) is not None},
                start_ns // _MS_NS,
            )
            for row in rows
        ]

    def _rolled_until(self) -> int:
        last = self._time(f"SELECT last(documents) FROM {HOURS}")  # noqa: S608
        return 0 if last is None else last + _HOUR_NS

    def _time(self, query: str) -> int | None:
        """The time of the one point that the query finds."""
        return next((row["time_ns"] for row in self._rows(query)), None)

    def _rows(self, query: str) -> Iterator[dict[str, Any]]:
        """Points with their tags, by name; the time is `time_ns`."""
        for series in self._server.series(query):
            names = ["time_ns", *series["columns"][1:]]
            tags = series.get("tags", {})
            for values in series.get("values", ()):
                yield {**tags, **dict(zip(names, values, strict=True))}


class _Thinned:
    """Leaves out a reading that says the same as the one before it of its vehicle in the same hour."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._last: dict[str, tuple[int, int]] = defaultdict(lambda: (-1, -1))

    def add(self, reading: Reading) -> None:
        time_ns, vehicle, plugged = reading
        says = (plugged, time_ns // _HOUR_NS)
        if self._last[vehicle] != says:
            self._last[vehicle] = says
            self.readings.append(reading)


def _kept_ms(measurement: Measurement) -> int:
    """How long points for dashboards are kept: those of single vehicles, which are many, as long as documents."""
    return HOURS_KEPT_MS if measurement.fleet_wide else RAW_KEPT_MS
