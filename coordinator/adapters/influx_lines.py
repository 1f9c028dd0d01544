"""Telemetry as InfluxDB's line protocol, and back. Pure: knows no server, file or clock.

One document is one line in `vehicle_state`, at the time of receipt in nanoseconds; what came after a later document of
its vehicle is in `vehicle_state_late`, so that the last value of a series is the latest. Flags are integers, numbers
are floats that are finite, no id but the vehicle's is a tag, and no text can end a line, a tag or a field.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.errors import StoreUnavailable
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, TelemetryBatch
from coordinator.metrics import MetricPoint

__all__ = [
    "HEAD_FIELDS",
    "HOURS",
    "LATE",
    "STATE",
    "Document",
    "LineEncoder",
    "batch_of",
    "hour_line",
    "joined",
    "parse_lines",
    "point_line",
]

STATE: Final = "vehicle_state"
LATE: Final = "vehicle_state_late"
HOURS: Final = "vehicle_state_1h"
HEAD_FIELDS: Final = ("ts_ms", "epoch", "seq", "snapshot")

Document = dict[str, Any]
"""One document: `vehicle`, `time_ns`, the HEAD_FIELDS, and of `refusal` and the signals what it holds."""

_MS_NS: Final = 1_000_000
_OFFSETS: Final = 900_000  # of the nanoseconds of a millisecond; the rest is room for documents that would meet
_VEHICLE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_LINE = re.compile(
    rf"(?:{LATE}|{STATE}),(?:region=(?:[^\\ ,]|\\.)*,)?vehicle=([A-Za-z0-9_-]+) (.+) (-?\d+)", re.ASCII | re.DOTALL
)
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,"]+)(?:,|$)')
_CONTROLS: Final = (*range(32), 127)
_TAG = str.maketrans({"\\": "/", " ": "\\ ", ",": "\\,", "=": "\\="} | dict.fromkeys(map(chr, _CONTROLS), "\\ "))
_TEXT = str.maketrans({"\\": "\\\\", '"': '\\"'} | dict.fromkeys(map(chr, _CONTROLS), " "))
_SIGNALS: Final = (*BOOLEAN_SIGNALS, *NUMBER_SIGNALS)
_REFUSAL_BIT: Final = len(_SIGNALS)
# Each % stands for the value of a document.
_HEAD_FORM: Final = "% ts_ms=%i,epoch=%i,seq=%i,snapshot=%i"
_FORMS: Final = (
    *(f"{name}=%i" for name in BOOLEAN_SIGNALS),
    *(f"{name}=%" for name in NUMBER_SIGNALS),
    'refusal="%"',
)
_SMALL: Final = np.array([str(number) for number in range(128)], dtype=object)
_json = msgspec.json.Encoder()


@dataclass(slots=True)
class _Series:
    """A vehicle's tags with each measurement, and what its latest document was."""

    region: str
    state: str
    late: str
    latest: tuple[int, int] = (-1, -1)
    time_ns: int = -1


class LineEncoder:
    """Encodes batches in the order in which they came; remembers the latest document of every vehicle.

    Two documents of one vehicle never have the same time, so that none overwrites another.
    """

    def __init__(self, region_of: Callable[[str], str]) -> None:
        self._region_of = region_of
        self._series: dict[str, _Series] = {}

    def remember(self, vehicle: str, epoch: int, seq: int, time_ns: int) -> None:
        """Know the latest document that the server has of a vehicle, unless a later one is known."""
        series = self._series_of(vehicle)
        if series.latest < (epoch, seq):
            series.latest, series.time_ns = (epoch, seq), time_ns

    def check(self, batch: TelemetryBatch) -> None:
        """Raises StoreUnavailable when an id can't be a tag: nothing with such an id gets past the topics."""
        for vehicle in batch.vehicle:
            if vehicle not in self._series and not (isinstance(vehicle, str) and _VEHICLE.fullmatch(vehicle)):
                raise StoreUnavailable("telemetry_unavailable", f"{vehicle!r} is no vehicle id: not stored")

    def encode(self, batch: TelemetryBatch) -> list[str]:
        """The lines of a batch that was checked, one a document."""
        starts, times = self._starts(batch)
        present, columns = _present(batch)
        heads: list[NDArray[Any]] = [starts, batch.ts_ms, batch.epoch, batch.seq, batch.snapshot.view(np.int8)]
        masks = np.unique(present).tolist()
        lines = [""] * len(batch)
        for mask in masks:  # documents that hold the same signals go in columns
            chosen = np.flatnonzero(present == mask)
            names = [place for place in range(_REFUSAL_BIT + 1) if mask >> place & 1]
            whole = (*heads, *(columns[name] for name in names), times)
            form = ",".join([_HEAD_FORM, *(_FORMS[name] for name in names)]) + " %\n"
            found = _filled(form, [_texts(column[chosen]) for column in whole])
            if len(masks) == 1:
                return found
            for place, line in zip(chosen.tolist(), found, strict=True):
                lines[place] = line
        return lines

    def _starts(self, batch: TelemetryBatch) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Measurement and tags, and the time, of every document."""
        starts, times = [], []
        columns = (batch.vehicle.tolist(), batch.received_ms.tolist(), batch.epoch.tolist(), batch.seq.tolist())
        for vehicle, received_ms, epoch, seq in zip(*columns, strict=True):
            series = self._series_of(vehicle)
            time_ns = received_ms * _MS_NS + seq % _OFFSETS
            if time_ns <= series.time_ns and received_ms == series.time_ns // _MS_NS:
                time_ns = series.time_ns + 1
            series.time_ns = time_ns
            times.append(time_ns)
            document = (epoch, seq)
            if document < series.latest:
                starts.append(series.late)
            else:
                starts.append(series.state)
                series.latest = document
        return np.array(starts, dtype=object), np.array(times, dtype=np.int64)

    def _series_of(self, vehicle: str) -> _Series:
        region = self._region_of(vehicle)
        series = self._series.get(vehicle)
        if series is None or series.region != region:
            tags = _tags({"region": region, "vehicle": vehicle})
            latest, time_ns = ((-1, -1), -1) if series is None else (series.latest, series.time_ns)
            series = self._series[vehicle] = _Series(region, STATE + tags, LATE + tags, latest, time_ns)
        return series


def _present(batch: TelemetryBatch) -> tuple[NDArray[np.int64], dict[int, NDArray[Any]]]:
    """Which signals each document holds, a bit each, and the columns by bit."""
    present = np.zeros(len(batch), dtype=np.int64)
    columns: dict[int, NDArray[Any]] = {}
    for place, name in enumerate(_SIGNALS):
        column = batch.signals.get(name)
        if column is not None:
            held = column >= 0 if name in BOOLEAN_SIGNALS else np.isfinite(column)
            present |= held.astype(np.int64) << place
            columns[place] = column
    texts = [None if text is None else text.translate(_TEXT) for text in batch.refusal.tolist()]
    held = np.array([text is not None for text in texts], dtype=np.int64)
    columns[_REFUSAL_BIT] = np.array(texts, dtype=object)
    return present | held << _REFUSAL_BIT, columns


def _texts(values: NDArray[Any]) -> list[str]:
    """Finite numbers as JSON writes them, which is much faster than one by one; texts as they are."""
    if values.dtype == np.int8:
        return cast("list[str]", _SMALL[values].tolist())
    if values.dtype == object:
        return cast("list[str]", values.tolist())
    return _json.encode(values.tolist())[1:-1].decode().split(",")


def _filled(form: str, columns: Sequence[list[str]]) -> list[str]:
    """Lines of a form, whose holes are filled from columns; put together in one piece, not line by line."""
    _, *between = form.split("%")
    count, width = len(columns[0]), 2 * len(columns)
    pieces = [""] * (count * width)
    for place, (texts, after) in enumerate(zip(columns, between, strict=True)):
        pieces[2 * place :: width] = texts
        pieces[2 * place + 1 :: width] = [after] * count
    return "".join(pieces).split("\n")[:-1]


def joined(lines: Sequence[str]) -> bytes:
    """The body of a request."""
    return "\n".join(lines).encode("utf-8", "replace")


def point_line(point: MetricPoint) -> str:
    """The line of a point for dashboards."""
    fields = ",".join(f"{name}={_field(value)}" for name, value in point.fields.items())
    return f"{point.measurement}{_tags(point.tags)} {fields} {point.time_ms * _MS_NS}"


def hour_line(vehicle: str, region: str, documents: int, means: Mapping[str, float], hour_ms: int) -> str:
    """The line of an hour of one vehicle: how many documents, and the mean of every signal that they held."""
    fields = ",".join([f"documents={documents}i", *(f"{name}={float(mean)!r}" for name, mean in means.items())])
    return f"{HOURS}{_tags({'region': region, 'vehicle': vehicle})} {fields} {hour_ms * _MS_NS}"


def _tags(tags: Mapping[str, str]) -> str:
    """With a comma before each; an empty one can't be written, and is the same as none."""
    return "".join(f",{name}={text.translate(_TAG)}" for name, text in sorted(tags.items()) if text)


def _field(value: float | str) -> str:
    if isinstance(value, str):
        return f'"{value.translate(_TEXT)}"'
    return f"{value}i" if isinstance(value, int) else repr(value)


def parse_lines(body: bytes) -> Iterator[Document]:
    """The documents of lines that this module encoded; those of other measurements are passed over."""
    for line in body.decode().split("\n"):
        found = _LINE.fullmatch(line)
        if found is not None:
            fields = {name: _value(text) for name, text in _FIELD.findall(found[2])}
            yield {"vehicle": found[1], "time_ns": int(found[3]), **fields}


def _value(text: str) -> int | float | str:
    if text.startswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return int(text[:-1]) if text.endswith("i") else float(text)


def batch_of(documents: Iterable[Document]) -> TelemetryBatch:
    """Documents in columns."""
    rows = list(documents)

    def column(name: str, absent: Any, kind: Any) -> NDArray[Any]:
        return np.array([absent if (value := row.get(name)) is None else value for row in rows], dtype=kind)

    return TelemetryBatch(
        vehicle=column("vehicle", "", object),
        received_ms=column("time_ns", 0, np.int64) // _MS_NS,
        ts_ms=column("ts_ms", 0, np.int64),
        epoch=column("epoch", 0, np.int64),
        seq=column("seq", 0, np.int64),
        snapshot=column("snapshot", 0, np.bool_),
        refusal=column("refusal", None, object),
        signals={
            **{name: column(name, -1, np.int8) for name in BOOLEAN_SIGNALS},
            **{name: column(name, np.nan, np.float64) for name in NUMBER_SIGNALS},
        },
    )
