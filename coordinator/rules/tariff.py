"""What a kilowatt-hour costs where and when: flat, by the hour of the local week, or a price series.

Pure, and never guesses: a document whose prices leave a hole is refused, and after the end of a series nobody knows the
price.
"""

import contextlib
import csv
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import mode
from typing import Annotated, Literal, Protocol
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

from coordinator.errors import BadTariff

__all__ = [
    "FlatTariff",
    "SeriesTariff",
    "TariffDocument",
    "Tariffs",
    "TimeOfUseTariff",
    "Window",
    "compiled",
    "csv_points",
    "flat_tariffs",
    "series_tariffs",
    "zone_named",
]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_MOST_MICRO = 1_000_000_000
_CITED_CHARACTERS = 80
_FIRST, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")

Micro = Annotated[int, Meta(ge=-_MOST_MICRO, le=_MOST_MICRO, description="Millionths of the currency a kWh")]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Start = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$(?!\n)", description="Local time, HH:MM")]
Stop = Annotated[str, Meta(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$(?!\n)", description="Local time, HH:MM")]


class FlatTariff(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="flat"):
    """One price at all times."""

    micro_per_kwh: Micro


class Window(Struct, frozen=True, forbid_unknown_fields=True):
    """A price from `start` until `stop` (excluded) on some days; a `stop` not after `start` is the next day's."""

    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Meta(min_length=1, max_length=7)]
    start: Start
    stop: Stop
    micro_per_kwh: Micro


class TimeOfUseTariff(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="time_of_use"):
    """Prices by the local week, which the windows cover without overlap; `timezone` is the fleet's unless given."""

    windows: Annotated[list[Window], Meta(min_length=1)]
    timezone: Annotated[str, Meta(min_length=1, max_length=64, description="IANA name")] | None = None


class SeriesTariff(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="series"):
    """Prices by time, evenly spaced, each until the next; the last holds as long as the others.

    `points` are times with an offset from UTC and prices; or `csv` names a file beside this one with the columns `time`
    and `micro_per_kwh`.
    """

    points: list[tuple[Annotated[datetime, Meta(tz=True)], Micro]] = []
    csv: str | None = None


class TariffDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """Which tariff holds in which region; `default` in all regions that are not named.

    Prices below zero are taken only where `allow_negative` says that they are meant. Nothing is refunded then.
    """

    tariffs: Annotated[dict[Name, FlatTariff | TimeOfUseTariff | SeriesTariff], Meta(min_length=1)]
    default: Name
    regions: dict[Name, Name] = {}
    allow_negative: bool = False


class Price(Protocol):
    """What a kilowatt-hour costs by time."""

    @property
    def known_until_ms(self) -> int | None:
        """When the last price ends that is known; None for prices without an end."""

    def at(self, time_ms: int) -> int | None:
        """The price in micro-units, None where it is not known."""


@dataclass(frozen=True, slots=True)
class _Flat:
    micro_per_kwh: int
    known_until_ms: None = None

    def at(self, _time_ms: int) -> int | None:
        return self.micro_per_kwh


@dataclass(frozen=True, slots=True)
class _Week:
    """`prices[i]` holds from minute `starts[i]` of the local week; the first start is 0."""

    zone: ZoneInfo
    starts: tuple[int, ...]
    prices: tuple[int, ...]
    known_until_ms: None = None

    def at(self, time_ms: int) -> int | None:
        local = datetime.fromtimestamp(time_ms / 1000, self.zone)
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return self.prices[bisect_right(self.starts, minute) - 1]


@dataclass(frozen=True, slots=True)
class _Series:
    """`prices[i]` holds from `starts_ms[i]` for `step_ms`."""

    starts_ms: tuple[int, ...]
    prices: tuple[int, ...]
    step_ms: int

    @property
    def known_until_ms(self) -> int:
        return self.starts_ms[-1] + self.step_ms

    def at(self, time_ms: int) -> int | None:
        place = bisect_right(self.starts_ms, time_ms) - 1
        return self.prices[place] if place >= 0 and time_ms < self.starts_ms[place] + self.step_ms else None


@dataclass(frozen=True, slots=True)
class Tariffs:
    """The tariff of every region."""

    default: Price
    regions: Mapping[str, Price]

    def price(self, region: str, time_ms: int) -> int | None:
        """What a kilowatt-hour costs in a region, in micro-units; None where nobody knows."""
        return self.regions.get(region, self.default).at(time_ms)


def flat_tariffs(micro_per_kwh: int) -> Tariffs:
    """One price everywhere and always."""
    return Tariffs(_Flat(micro_per_kwh), {})


def series_tariffs(points: Iterable[tuple[datetime, int]]) -> Tariffs:
    """One price series everywhere. Raises BadTariff."""
    return Tariffs(_series("the series", list(points), allow_negative=False), {})


def compiled(document: TariffDocument, fleet_zone: ZoneInfo) -> Tariffs:
    """The tariffs of a document whose CSV files were read into points already. Raises BadTariff, in one line."""
    prices = {name: _price(name, tariff, document, fleet_zone) for name, tariff in document.tariffs.items()}
    named = {"default": document.default} | {f"region {region!r}": name for region, name in document.regions.items()}
    for place, name in named.items():
        if name not in prices:
            raise BadTariff(f"{place} is to have tariff {name!r}, and there is none of that name")
    return Tariffs(prices[document.default], {region: prices[name] for region, name in document.regions.items()})


def zone_named(name: str) -> ZoneInfo:
    """The timezone of an IANA name. Raises BadTariff."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadTariff(f"{name!r} is no timezone: give an IANA name, such as Europe/Oslo") from None


def csv_points(text: str) -> list[tuple[datetime, int]]:
    """The points of a series in CSV with the columns `time` and `micro_per_kwh`. Raises BadTariff."""
    rows = csv.reader(text.splitlines())
    try:
        header = [name.strip() for name in next(rows, [])]
        if header != ["time", "micro_per_kwh"]:
            raise BadTariff(f"the first line must be time,micro_per_kwh and is {_cited(header)}")
        return [_point(row, rows.line_num) for row in rows]
    except csv.Error as error:
        raise BadTariff(f"line {rows.line_num}: {error}") from None


def _point(row: list[str], line: int) -> tuple[datetime, int]:
    time = None
    if len(row) == 2 and _WHOLE.fullmatch(row[1].strip()):
        with contextlib.suppress(ValueError):
            time = datetime.fromisoformat(row[0].strip())
    if time is None:
        raise BadTariff(
            f"line {line} is {_cited(row)} where a time such as 2026-11-23T14:00+01:00 and a whole number of "
            "micro-units belong"
        )
    micro = int(row[1])
    if time.tzinfo is None:
        raise BadTariff(f"line {line}: {row[0]!r} does not say its offset from UTC, as 2026-11-23T14:00Z does")
    if abs(micro) > _MOST_MICRO:
        raise BadTariff(f"line {line}: {micro} micro-units a kWh are more than a thousand of the currency")
    return time, micro


def _cited(row: list[str]) -> str:
    return repr(",".join(row)[:_CITED_CHARACTERS])


def _price(
    name: str, tariff: FlatTariff | TimeOfUseTariff | SeriesTariff, document: TariffDocument, fleet_zone: ZoneInfo
) -> Price:
    shown, negative = f"tariff {name!r}", document.allow_negative
    match tariff:
        case FlatTariff(micro):
            _check_sign(shown, micro, "always", allowed=negative)
            return _Flat(micro)
        case TimeOfUseTariff(windows, timezone):
            zone = fleet_zone if timezone is None else zone_named(timezone)
            return _week(shown, windows, zone, allow_negative=negative)
        case SeriesTariff(points):
            return _series(shown, points, allow_negative=negative)


def _check_sign(shown: str, micro: int, when: str, *, allowed: bool) -> None:
    if micro < 0 and not allowed:
        raise BadTariff(f"{shown}: {micro} micro-units a kWh {when} is below zero; say allow_negative if that is meant")


def _week(shown: str, windows: Iterable[Window], zone: ZoneInfo, *, allow_negative: bool) -> _Week:
    spans: list[tuple[int, int, int]] = []
    for window in windows:
        _check_sign(shown, window.micro_per_kwh, f"from {window.start}", allowed=allow_negative)
        start, stop = _minute(window.start), _minute(window.stop)
        length = (stop - start) % _DAY_MINUTES or _DAY_MINUTES
        for day in window.days:
            first = _DAYS.index(day) * _DAY_MINUTES + start
            spans.append((first, min(first + length, _WEEK_MINUTES), window.micro_per_kwh))
            if first + length > _WEEK_MINUTES:  # Sunday's night goes on on Monday
                spans.append((0, first + length - _WEEK_MINUTES, window.micro_per_kwh))
    spans.sort()
    reached = 0
    for start, stop, _ in [*spans, (_WEEK_MINUTES, _WEEK_MINUTES, 0)]:
        if start > reached:
            raise BadTariff(f"{shown}: no window has a price from {_shown(reached)} until {_shown(start)}")
        if start < reached:
            raise BadTariff(f"{shown}: two windows have a price from {_shown(start)} on")
        reached = stop
    return _Week(zone, tuple(start for start, _, _ in spans), tuple(micro for _, _, micro in spans))


def _minute(clock: str) -> int:
    hour, _, minute = clock.partition(":")
    return int(hour) * 60 + int(minute)


def _shown(minute: int) -> str:
    day, rest = divmod(minute % _WEEK_MINUTES, _DAY_MINUTES)
    return f"{_DAYS[day]} {rest // 60:02}:{rest % 60:02}"


def _series(shown: str, points: list[tuple[datetime, int]], *, allow_negative: bool) -> _Series:
    if len(points) < 2:
        raise BadTariff(f"{shown}: a series has at least two points, whose distance says how long each price holds")
    for time, _ in points:
        if not _FIRST <= time < _END:
            raise BadTariff(f"{shown}: {time.isoformat()} lies outside of the years 1970 to 2999")
    starts = [round(time.timestamp() * 1000) for time, _ in points]
    step_ms = mode(after - before for before, after in pairwise(starts))
    for before, after in pairwise(starts):
        if after <= before:
            raise BadTariff(f"{shown}: {_utc(after)} comes after {_utc(before)}: times must rise, and come once")
        if after - before > step_ms:
            raise BadTariff(f"{shown}: no price is given from {_utc(before + step_ms)} until {_utc(after)}")
        if after - before < step_ms:
            raise BadTariff(f"{shown}: {_utc(after)} comes before the price of {_utc(before)} has ended")
    for start, (_, micro) in zip(starts, points, strict=True):
        _check_sign(shown, micro, f"from {_utc(start)}", allowed=allow_negative)
    return _Series(tuple(starts), tuple(micro for _, micro in points), step_ms)


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
