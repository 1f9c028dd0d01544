"""The demo's story: from what was polled and streamed to what a screen shows and a report says. Pure; knows no clock.

Times are seconds since the job was submitted.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from fleet_wire.api import JobView, VehicleView

__all__ = ["Answer", "CarCell", "CarState", "Event", "Story"]

_RATE_WINDOW_S = 2.0
_KEPT_EVENTS = 200
_KEPT_ANSWERS = 50


class CarState(StrEnum):
    """What a car does, as far as one can see from outside."""

    COMPUTING = "computing"
    READY = "ready"
    WAITING = "waiting"
    AWAY = "away"
    OFFLINE = "offline"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class CarCell:
    """One car on the screen."""

    vehicle: str
    state: CarState
    charge_percent: float | None
    rows_done: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling; `kind` chooses its colour."""

    at_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's answer."""

    row: int
    title: str
    text: str


@dataclass(slots=True)
class Story:
    """What has happened so far. Fed by `poll`, `rows_came` and `was_killed`; everything else only reads."""

    rows: int
    cars: dict[str, CarCell] = field(default_factory=dict)
    rows_done: int = 0
    rows_released_again: int = 0
    departures: int = 0
    killed: list[str] = field(default_factory=list)
    at_s: float = 0.0
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    answers: deque[Answer] = field(default_factory=lambda: deque(maxlen=_KEPT_ANSWERS))
    progress: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    _last: dict[str, VehicleView] = field(default_factory=dict)

    def poll(self, at_s: float, vehicles: Sequence[VehicleView], job: JobView | None) -> list[Event]:
        """Take in what the coordinator says now; return what is new since the last time."""
        self.at_s = at_s
        events = [event for view in vehicles for event in self._changes(view)]
        if job is not None:
            events += self._job_changes(job)
        self._last = {view.id: view for view in vehicles}
        self.cars = {view.id: self._cell(view) for view in sorted(vehicles, key=lambda view: view.id)}
        self.events.extend(events)
        return events

    def was_killed(self, at_s: float, vehicle: str, leases: int) -> Event:
        """Tell that a car's agent was ended without a warning."""
        self.killed.append(vehicle)
        event = Event(at_s, "killed", f"{vehicle} killed (SIGKILL), held {_counted(leases, 'chunk')}")
        self.events.append(event)
        return event

    def rows_came(self, answers: Iterable[Answer]) -> None:
        """Take in rows that were streamed to the client."""
        self.answers.extend(answers)

    def rows_per_s(self) -> float:
        """Rows a second over the last two seconds."""
        since = max(0.0, self.at_s - _RATE_WINDOW_S)
        elapsed = self.at_s - since
        return (self.rows_done - _rows_at(self.progress, since)) / elapsed if elapsed > 0 else 0.0

    def rates(self, slots: int) -> list[float]:
        """Rows a second in each of `slots` equal parts of the time so far."""
        width = self.at_s / slots
        if width <= 0:
            return [0.0] * slots
        marks = [_rows_at(self.progress, slot * width) for slot in range(slots + 1)]
        return [(after - before) / width for before, after in pairwise(marks)]

    def _cell(self, view: VehicleView) -> CarCell:
        return CarCell(view.id, self._state(view), view.charge_percent, view.rows_done)

    def _state(self, view: VehicleView) -> CarState:
        if view.id in self.killed:
            return CarState.KILLED
        if not view.online:
            return CarState.OFFLINE
        if view.plugged is not True:
            return CarState.AWAY
        if view.leases > 0:
            return CarState.COMPUTING
        return CarState.READY if view.eligible else CarState.WAITING

    def _changes(self, view: VehicleView) -> list[Event]:
        before = self._last.get(view.id)
        if before is None or view.id in self.killed:
            return []
        left = before.plugged is True and view.plugged is not True
        if left and before.leases > 0:
            self.departures += 1
            held = _counted(before.leases, "chunk")
            return [Event(self.at_s, "departure", f"{view.id} drove off, held {held}")]
        if left:
            return [Event(self.at_s, "left", f"{view.id} drove off, held nothing")]
        if before.plugged is False and view.plugged is True:
            return [Event(self.at_s, "came", f"{view.id} came back and plugged in")]
        if before.online and not view.online:
            return [Event(self.at_s, "left", f"{view.id} went offline")]
        return []

    def _job_changes(self, job: JobView) -> list[Event]:
        again = job.rows_released_again - self.rows_released_again
        self.rows_done, self.rows_released_again = job.rows_done, job.rows_released_again
        self.progress.append((self.at_s, job.rows_done))
        return [Event(self.at_s, "released", f"{_counted(again, 'row')} leased again")] if again > 0 else []


def _rows_at(progress: Sequence[tuple[float, int]], at_s: float) -> float:
    """Rows done at a moment, evenly between two polls."""
    before = progress[0]
    for after in progress:
        if after[0] >= at_s:
            span = after[0] - before[0]
            return after[1] if span <= 0 else before[1] + (after[1] - before[1]) * (at_s - before[0]) / span
        before = after
    return before[1]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
