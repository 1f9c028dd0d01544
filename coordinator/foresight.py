"""Joins the fleet view to the availability model: what was heard goes in, and out comes how long each car stays.

Also turns the clock's time into the model's, which runs faster where a replay does. Never touches files or a clock.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.availability import Availability, AvailabilityTerms
from coordinator.events import PlugHistory
from coordinator.fleet_view import FleetView

__all__ = ["Foresight", "ForesightTerms"]

OffsetsAt = Callable[[Iterable[str], int], Mapping[str, int]]

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS


@dataclass(frozen=True, slots=True)
class ForesightTerms:
    """`chunk_chance` is the chance with which a car should stay for as long as its chunks take.

    `time_scale` says how much faster than the clock the cars live, which is 1 but for replays; `soon_minutes` and
    `forecast_minutes` are of the cars' time.
    """

    availability: AvailabilityTerms = field(default_factory=AvailabilityTerms)
    time_scale: float = 1.0
    chunk_chance: float = 0.95
    soon_minutes: float = 1.0
    look_every_ms: int = 1_000
    forecast_minutes: float = 60.0


@dataclass(slots=True)
class Foresight:
    """Keeps the fleet view's columns `plugged_since_ms` and `stay_ms`, and the chance that each car stays a minute.

    What is foreseen is worked out once a second; with a new car in between nothing speaks against it.
    """

    terms: ForesightTerms
    fleet: FleetView
    model: Availability = field(init=False)
    _looked_ms: int = -1
    _chances: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))

    def __post_init__(self) -> None:
        self.model = Availability(self._model_terms())

    def _model_terms(self) -> AvailabilityTerms:
        # Silence is about the link, which lives by the clock.
        silent_ms = int(self.terms.availability.most_silent_ms * self.terms.time_scale)
        return replace(self.terms.availability, most_silent_ms=silent_ms)

    def look(self, now_ms: int) -> None:
        """Take in what the fleet view holds, now and then; a clock that was set back is no reason to wait."""
        if 0 <= now_ms - self._looked_ms < self.terms.look_every_ms:
            return
        self._looked_ms = now_ms
        fleet, model = self.fleet, self.model
        model.make_room(len(fleet))
        said, received_ms = fleet.live("plugged"), fleet.live("received_ms")
        at_ms = self._model_ms(received_ms)
        since_ms, heard_ms = (model.column[name][: len(fleet)] for name in ("plugged_since_ms", "heard_ms"))
        changed = (said == 1) != (since_ms >= 0)
        long_ago = at_ms - heard_ms >= _MINUTE_MS * self.terms.time_scale
        rows = np.flatnonzero((said >= 0) & (received_ms > 0) & (changed | long_ago))
        model.observe(rows, at_ms[rows], said[rows] == 1, self._offsets_ms()[rows])
        model.advance(self._model_ms(now_ms))
        self._foresee(now_ms)

    def _foresee(self, now_ms: int) -> None:
        fleet, scale, at_ms = self.fleet, self.terms.time_scale, self._model_ms(now_ms)
        since_ms = self.model.column["plugged_since_ms"][: len(fleet)]
        plugged = np.flatnonzero(since_ms >= 0)
        since = np.full(len(fleet), -1, dtype=np.int64)
        since[plugged] = since_ms[plugged] / scale
        stay_ms = np.full(len(fleet), np.nan)
        stay_ms[plugged] = self.model.stay_minutes(plugged, at_ms, self.terms.chunk_chance) * (_MINUTE_MS / scale)
        chances = np.ones(len(fleet))
        chances[plugged] = self.model.stay_probability(plugged, at_ms, self.terms.soon_minutes)
        fleet.live("plugged_since_ms")[:], fleet.live("stay_ms")[:], self._chances = since, stay_ms, chances

    def stay_chances(self) -> NDArray[np.float64]:
        """Chance that each car stays for `soon_minutes`, shape [vehicles]; 1 where nobody looked since it came."""
        new = len(self.fleet) - len(self._chances)
        return np.concatenate([self._chances, np.ones(new)]) if new else self._chances

    def plugged_forecast(self, now_ms: int) -> float:
        """Share of the connected cars that should be plugged in after `forecast_minutes`."""
        self.model.make_room(len(self.fleet))
        rows = np.flatnonzero(self.fleet.live("online"))
        return float(self.model.forecast(rows, self._model_ms(now_ms), self.terms.forecast_minutes)[-1])

    def learn(self, history: PlugHistory, offsets_at: OffsetsAt) -> None:
        """Take in what a store remembers, except what was heard already."""
        rows = np.fromiter((self.fleet.row(vehicle) for vehicle in history.vehicle), np.int64, len(history))
        self.model.make_room(len(self.fleet))
        at_ms = self._model_ms(history.received_ms)
        fresh = at_ms > self.model.column["heard_ms"][rows]
        rows, at_ms, clock_ms = rows[fresh], at_ms[fresh], history.received_ms[fresh]
        plugged = history.plugged[fresh] == 1
        hours = clock_ms // _HOUR_MS
        for here in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(hours)) + 1):
            if not len(here):
                break
            self.fleet.utc_offsets_ms.update(offsets_at(self.fleet.timezones, int(clock_ms[here[0]])))
            offsets_ms = self._offsets_ms()
            for once in _without_repeats(rows[here]):
                part = here[once]
                self.model.observe(rows[part], at_ms[part], plugged[part], offsets_ms[rows[part]])
            self.model.advance(int(at_ms[here[-1]]))
        self.model.fleet.fit()

    def heard_until_ms(self) -> int:
        """The clock's time of the last word taken in; 0 before any."""
        heard_ms = self.model.column["heard_ms"]
        return int(max(heard_ms.max(initial=0), 0) / self.terms.time_scale)

    def to_bytes(self) -> bytes:
        """What was learned, to be kept."""
        return self.model.to_bytes(self.fleet.ids)

    def restore(self, data: bytes) -> None:
        """Go on from what was kept. Raises UnreadableState."""
        ids, model = Availability.from_bytes(data, self._model_terms())
        rows = np.array([self.fleet.row(vehicle) for vehicle in ids], dtype=np.int64)
        model.move(rows, len(self.fleet))
        self.model = model

    def _model_ms(self, clock_ms: Any) -> Any:
        """The model's time, an int or an array as given."""
        if self.terms.time_scale == 1:
            return clock_ms
        scaled = np.multiply(clock_ms, self.terms.time_scale)
        return scaled.astype(np.int64) if isinstance(clock_ms, np.ndarray) else int(scaled)

    def _offsets_ms(self) -> NDArray[np.int64]:
        known = self.fleet.utc_offsets_ms
        offsets_ms = np.array([known.get(name, 0) for name in self.fleet.timezones], dtype=np.int64)
        each: NDArray[np.int64] = offsets_ms[self.fleet.live("timezone")]
        return each


def _without_repeats(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of the first, the second, … time that each row comes."""
    order = np.argsort(rows, kind="stable")
    first = np.diff(rows[order], prepend=-1) != 0
    places = np.arange(len(rows))
    times = np.empty_like(places)
    times[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return [np.flatnonzero(times == time) for time in range(int(times.max(initial=-1)) + 1)]
