"""How long each car stays plugged in, learned from what it and the fleet did, in counts. Knows no clock and no files.

A discrete-time hazard: the fleet's rate of being unplugged (see `hazard`) times three factors of each car's own: over
all, by hour of the working day or weekend, and by time plugged. A factor is the mean of a rate under a gamma prior,
(unplugged + weight) / (expected + weight), where `expected` is what the fleet's rates would have had in the same
minutes: a car without history has factors of one, and one with much of it goes by its own.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from coordinator.hazard import (
    ELAPSED_BINS,
    MINUTE_MS,
    QUARTER_MINUTES,
    QUARTER_MS,
    WEEK_QUARTERS,
    FleetHazard,
    HazardTerms,
    elapsed_bin,
    week_quarter,
)

__all__ = ["Availability", "AvailabilityTerms", "UnreadableState"]

Rows = NDArray[np.int64]
Times = NDArray[np.int64]
Numbers = NDArray[np.float64]

_VERSION: Final = 1
_DAY_MS: Final = 24 * 60 * MINUTE_MS
_PARTS: Final = 2 * 24
# How far ahead a car's hazard is worked out once a quarter of an hour and kept, so that asking again costs little.
_KEPT_QUARTERS: Final = 9
_MOST_ASKED: Final = 2_000
_QUARTERS = np.arange(WEEK_QUARTERS)
_PART_OF_QUARTER = _QUARTERS % 96 // 4 + np.where(_QUARTERS >= 5 * 96, 24, 0)
_FLEET_COUNTS: Final = (
    "minutes",
    "unplugged",
    "away_minutes",
    "plugged_in",
    "recent_expected",
    "recent_unplugged",
)
_CAR_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...], float]]] = {
    "plugged_since_ms": ("i8", (), -1),
    "heard_ms": ("i8", (), -1),
    "offset_ms": ("i8", (), 0),
    "expected": ("f4", (), 0),
    "unplugged": ("f4", (), 0),
    "expected_by_part": ("f4", (_PARTS,), 0),
    "unplugged_by_part": ("f4", (_PARTS,), 0),
    "expected_by_bin": ("f4", (ELAPSED_BINS,), 0),
    "unplugged_by_bin": ("f4", (ELAPSED_BINS,), 0),
}
_CAR_COUNTS: Final = tuple(name for name in _CAR_COLUMNS if name.startswith(("expected", "unplugged")))


class UnreadableState(Exception):
    """Ours: saved bytes are not a state of this model, or of another version of it."""


@dataclass(frozen=True, slots=True)
class AvailabilityTerms:
    """Weights are in events: with as many of its own, a car's factor goes half by itself and half by the fleet.

    After `most_silent_ms` without a word from a car nobody knows what it did, so that the time is not counted.
    The weights were chosen on a fifth of the users of the Norwegian sessions; results hardly depend on them.
    """

    hazard: HazardTerms = field(default_factory=HazardTerms)
    car_weight: float = 5.0
    part_weight: float = 1.0
    bin_weight: float = 15.0
    half_life_days: float = 90.0
    most_silent_ms: int = 2 * 60 * MINUTE_MS
    fit_every_ms: int = 6 * 60 * MINUTE_MS


@dataclass(slots=True)
class Availability:
    """The fleet's counts, and columns with one row a car.

    Cars outside `teaching` (shape [cars]; None: all teach) have habits of their own and leave the fleet's counts
    alone: that is how an evaluation holds cars out. One that `learns` no more only keeps who is plugged in since when.
    """

    terms: AvailabilityTerms = field(default_factory=AvailabilityTerms)
    teaching: NDArray[np.bool_] | None = None
    learns: bool = True
    fleet: FleetHazard = field(init=False)
    column: dict[str, NDArray[Any]] = field(default_factory=lambda: _columns(0))
    fitted_ms: int = -1
    forgot_ms: int = -1
    _kept: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, _KEPT_QUARTERS + 1), dtype=np.float32))
    _kept_quarter: int = -1

    def __post_init__(self) -> None:
        self.fleet = FleetHazard(self.terms.hazard)

    def __len__(self) -> int:
        return len(self.column["heard_ms"])

    def make_room(self, cars: int) -> None:
        """Have rows for so many cars at least."""
        missing = cars - len(self)
        if missing > 0:
            more = _columns(max(missing, len(self)))
            self.column = {name: np.concatenate([values, more[name]]) for name, values in self.column.items()}

    def move(self, rows: Rows, cars: int) -> None:
        """Give the cars that have the first rows these rows, out of `cars`."""
        moved = _columns(cars)
        for name, values in moved.items():
            values[rows] = self.column[name][: len(rows)]
        self.column = moved
        self._kept_quarter = -1

    # Learning -------------------------------------------------------------------------------------------------------

    def observe(self, rows: Rows, at_ms: Times, plugged: NDArray[np.bool_], offset_ms: Times | int = 0) -> None:
        """Take in whether cars are plugged in, as heard at these times; no row twice, each car's times in order.

        `offset_ms` is how far the car's local time is ahead. What changed since the last word of a car is taken to
        have happened now.
        """
        if not len(rows):
            return
        self.make_room(int(rows.max()) + 1)
        column = self.column
        silent_ms = at_ms - column["heard_ms"][rows]
        known = (column["heard_ms"][rows] >= 0) & (silent_ms >= 0) & (silent_ms <= self.terms.most_silent_ms)
        known &= self.learns
        was = column["plugged_since_ms"][rows] >= 0
        column["offset_ms"][rows] = offset_ms
        for here in (known & was, known & ~was):
            self._count_time(rows[here], at_ms[here])
        left, came = known & was & ~plugged, known & ~was & plugged
        self._count_leaving(rows[left], at_ms[left])
        came = came & self._teach(rows)
        self.fleet.come_now(self._quarter(rows[came], at_ms[came]))
        column["heard_ms"][rows] = at_ms
        column["plugged_since_ms"][rows[~plugged]] = -1
        fresh = plugged & ~was
        column["plugged_since_ms"][rows[fresh]] = at_ms[fresh]
        changed = rows[plugged != was]
        self._kept[changed[changed < len(self._kept)]] = np.nan

    def _count_time(self, rows: Rows, until_ms: Times) -> None:
        """Count the time since the last word, quarter by quarter; all of these rows are plugged in, or none."""
        start_ms = self.column["heard_ms"][rows]
        while len(rows):
            stop_ms = np.minimum(until_ms, (start_ms // QUARTER_MS + 1) * QUARTER_MS)
            minutes = (stop_ms - start_ms) / MINUTE_MS
            quarter, teach = self._quarter(rows, start_ms), self._teach(rows)
            if self.column["plugged_since_ms"][rows[0]] >= 0:
                bins = self._bin(rows, start_ms)
                self.fleet.stay_plugged(quarter[teach], bins[teach], minutes[teach])
                self._add("expected", rows, quarter, bins, self.fleet.leave[quarter, bins] * minutes)
            else:
                self.fleet.stay_away(quarter[teach], minutes[teach])
            more = stop_ms < until_ms
            rows, until_ms, start_ms = rows[more], until_ms[more], stop_ms[more]

    def _count_leaving(self, rows: Rows, at_ms: Times) -> None:
        before_ms = at_ms - 1
        quarter, bins, teach = self._quarter(rows, before_ms), self._bin(rows, before_ms), self._teach(rows)
        self.fleet.leave_now(quarter[teach], bins[teach])
        self._add("unplugged", rows, quarter, bins, np.ones(len(rows)))

    def _add(self, name: str, rows: Rows, quarter: Rows, bins: Rows, amount: Numbers) -> None:
        self.column[name][rows] += amount
        self.column[f"{name}_by_part"][rows, _PART_OF_QUARTER[quarter]] += amount
        self.column[f"{name}_by_bin"][rows, bins] += amount

    def advance(self, now_ms: int) -> bool:
        """Let time pass: forget what is old once a day, fit the fleet's rates when that is due; say whether it was."""
        if self.fitted_ms < 0:
            self.fitted_ms = self.forgot_ms = now_ms
        if now_ms - self.forgot_ms >= _DAY_MS:
            days = (now_ms - self.forgot_ms) / _DAY_MS
            self.fleet.forget(days)
            for name in _CAR_COUNTS:
                self.column[name] *= np.float32(0.5 ** (days / self.terms.half_life_days))
            self.forgot_ms = now_ms
        due = now_ms - self.fitted_ms >= self.terms.fit_every_ms
        if due:
            self.fleet.fit()
            self.fitted_ms = now_ms
        return due

    # Foreseeing -----------------------------------------------------------------------------------------------------

    def stay_probability(self, rows: Rows, now_ms: int, minutes: float) -> Numbers:
        """Chance of each car to stay plugged in for so many minutes more; 0 for one that is not plugged in."""
        begin = now_ms % QUARTER_MS / QUARTER_MS
        end = begin + minutes / QUARTER_MINUTES
        table = self._table(rows, now_ms, math.ceil(end))
        hazard = _between(table, end) - _between(table, begin)
        return np.where(self.column["plugged_since_ms"][rows] >= 0, np.exp(-hazard), 0.0)

    def stay_minutes(self, rows: Rows, now_ms: int, at_least: float, most_minutes: float = 120.0) -> Numbers:
        """Longest time that each car stays with a chance of `at_least` (0 to 1, excluded), up to `most_minutes`."""
        begin = now_ms % QUARTER_MS / QUARTER_MS
        table = self._table(rows, now_ms, math.ceil(begin + most_minutes / QUARTER_MINUTES))
        allowed = _between(table, begin) - math.log(at_least)
        quarters = np.full(len(rows), -begin)
        for before, after in pairwise(table.T):
            quarters += np.clip((allowed - before) / (after - before), 0.0, 1.0)
        minutes = np.minimum(quarters * QUARTER_MINUTES, most_minutes)
        return np.where(self.column["plugged_since_ms"][rows] >= 0, minutes, 0.0)

    def forecast(self, rows: Rows, now_ms: int, minutes: float) -> Numbers:
        """Share of these cars that should be plugged in at each of the next quarters of an hour, the present first.

        Those plugged in now stay by their own habits; those that come, come and leave again as the fleet does. Of a
        large fleet every so many-th car is asked.
        """
        asked = rows[:: max(1, len(rows) // _MOST_ASKED)]
        if not len(asked):
            return np.zeros(1)
        residents = asked[self.column["plugged_since_ms"][asked] >= 0]
        quarters = math.ceil(minutes / QUARTER_MINUTES)
        stay = np.exp(-self._hazard_ahead(residents, now_ms, quarters)).sum(axis=0) / len(asked)
        newly, away = 0.0, 1.0 - float(stay[0])
        shares = [float(stay[0])]
        for place in range(quarters):
            quarter = self._quarter(asked, np.full(len(asked), now_ms + place * QUARTER_MS, dtype=np.int64))
            come = away * -math.expm1(-float(self.fleet.come[quarter].mean()) * QUARTER_MINUTES)
            leave = newly * -math.expm1(-float(self.fleet.leave_by_quarter[quarter].mean()) * QUARTER_MINUTES)
            newly += come - leave
            away += leave - come + float(stay[place] - stay[place + 1])
            shares.append(float(stay[place + 1]) + newly)
        return np.array(shares)

    def _table(self, rows: Rows, now_ms: int, quarters: int) -> Numbers:
        """Hazard ahead, out of what is kept for this quarter of an hour where that reaches far enough."""
        if quarters > _KEPT_QUARTERS:
            return self._hazard_ahead(rows, now_ms, quarters)
        if self._kept_quarter != now_ms // QUARTER_MS or len(self._kept) < len(self):
            self._kept_quarter = now_ms // QUARTER_MS
            self._kept = np.full((len(self), _KEPT_QUARTERS + 1), np.nan, dtype=np.float32)
        table = self._kept[rows, : quarters + 1]
        missing = np.isnan(table[:, 0])
        if missing.any():
            new = rows[missing]
            self._kept[new] = self._hazard_ahead(new, now_ms, _KEPT_QUARTERS)
            table[missing] = self._kept[new, : quarters + 1]
        return table.astype(np.float64)

    def _hazard_ahead(self, rows: Rows, now_ms: int, quarters: int) -> Numbers:
        """Hazard summed up from the start of this quarter to the end of each of the next; shape [rows, quarters + 1].

        That of a car that is not plugged in has no meaning.
        """
        hazard = np.zeros((len(rows), quarters + 1))
        own = self._own_factor(rows)
        for place in range(quarters):
            at_ms = np.full(len(rows), now_ms + place * QUARTER_MS, dtype=np.int64)
            rate = self._rate(rows, self._quarter(rows, at_ms), self._bin(rows, at_ms), own)
            hazard[:, place + 1] = hazard[:, place] + rate * QUARTER_MINUTES
        return hazard

    def _own_factor(self, rows: Rows) -> Numbers:
        weight, column = self.terms.car_weight, self.column
        factor: Numbers = (column["unplugged"][rows] + weight) / (column["expected"][rows] + weight)
        return factor

    def _rate(self, rows: Rows, quarter: Rows, bins: Rows, own: Numbers) -> Numbers:
        column, terms = self.column, self.terms
        part = _PART_OF_QUARTER[quarter]
        rate = self.fleet.leave[quarter, bins] * own
        rate *= column["unplugged_by_part"][rows, part] + terms.part_weight
        rate /= own * column["expected_by_part"][rows, part] + terms.part_weight
        rate *= column["unplugged_by_bin"][rows, bins] + terms.bin_weight
        rate /= own * column["expected_by_bin"][rows, bins] + terms.bin_weight
        return rate

    def _quarter(self, rows: Rows, at_ms: Times) -> Rows:
        return week_quarter(at_ms + self.column["offset_ms"][rows])

    def _bin(self, rows: Rows, at_ms: Times) -> Rows:
        return elapsed_bin(at_ms - self.column["plugged_since_ms"][rows])

    def _teach(self, rows: Rows) -> NDArray[np.bool_]:
        return np.ones(len(rows), dtype=np.bool_) if self.teaching is None else self.teaching[rows]

    # Keeping --------------------------------------------------------------------------------------------------------

    def to_bytes(self, ids: Sequence[str]) -> bytes:
        """All that was learned, with the cars' ids in the order of the rows."""
        self.make_room(len(ids))
        file = io.BytesIO()
        arrays: dict[str, Any] = {
            "version": np.array(_VERSION),
            "times": np.array([self.fitted_ms, self.forgot_ms]),
            "ids": np.frombuffer("\n".join(ids).encode(), dtype=np.uint8),
            **{f"fleet_{name}": getattr(self.fleet, name) for name in _FLEET_COUNTS},
            **{f"car_{name}": values[: len(ids)] for name, values in self.column.items()},
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, terms: AvailabilityTerms | None = None) -> tuple[list[str], Self]:
        """Ids and what was learned of them. Raises UnreadableState with what is wrong in one line."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise UnreadableState(f"these bytes hold no saved state: {error}") from None
        version = arrays.get("version")
        if version is None or version.shape != () or version.dtype.kind != "i" or int(version) != _VERSION:
            raise UnreadableState(f"this state is not of version {_VERSION}")
        made = cls(AvailabilityTerms() if terms is None else terms)
        try:
            text = arrays["ids"].astype(np.uint8, casting="equiv").tobytes().decode()
            ids = text.split("\n") if text else []
            made.fitted_ms, made.forgot_ms = (int(value) for value in arrays["times"])
            for name in _FLEET_COUNTS:
                setattr(made.fleet, name, _checked(arrays[f"fleet_{name}"], getattr(made.fleet, name), name))
            expected = _columns(len(ids))
            made.column = {name: _checked(arrays[f"car_{name}"], expected[name], name) for name in _CAR_COLUMNS}
        except (KeyError, ValueError, TypeError) as error:
            raise UnreadableState(f"this state is damaged: {error}") from None
        made.fleet.fit()
        return ids, made


def _between(table: Numbers, quarters: float) -> Numbers:
    """Value of a table with one column a quarter at a place between two of its columns."""
    place = min(math.floor(quarters), table.shape[1] - 2)
    value: Numbers = table[:, place] + (quarters - place) * (table[:, place + 1] - table[:, place])
    return value


def _columns(cars: int) -> dict[str, NDArray[Any]]:
    return {name: np.full((cars, *shape), value, dtype=kind) for name, (kind, shape, value) in _CAR_COLUMNS.items()}


def _checked(found: NDArray[Any], expected: NDArray[Any], name: str) -> NDArray[Any]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(f"{name} is {found.dtype} {found.shape} where {expected.dtype} {expected.shape} belongs")
    if found.dtype.kind == "f" and not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError(f"{name} holds numbers that are no counts")
    return found
