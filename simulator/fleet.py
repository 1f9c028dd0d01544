"""Chooses a fleet and a morning from the charging sessions, by a seed alone. Never runs a car.

A fleet of a few cars shows little by chance, so it is drawn by kind: half of it stands plugged in and leaves within
three hours, a sixth is plugged in and stays, and a third is away, first those that come back within three hours.
"""

import random
from collections.abc import Sequence
from itertools import cycle, islice

from msgspec import Struct

from simulator.sessions import MORNINGS_MS, load_traces
from simulator.traces import HOUR_MS, CarTrace, plug_in_at

__all__ = ["CarChoice", "FleetChoice", "choose_fleet"]

SOON_MS = 3 * HOUR_MS
_AWAY_SHARE = 1 / 3
_STAYING_SHARE = 1 / 6
_LEAST_STAYING = 2


class CarChoice(Struct, frozen=True):
    """A vehicle's id, which says nothing about the user, and its trace."""

    vehicle: str
    trace: CarTrace


class FleetChoice(Struct, frozen=True):
    """Cars, and the moment of their calendar at which the replay begins."""

    cars: tuple[CarChoice, ...]
    start_ms: int


def choose_fleet(vehicles: int, seed: int) -> FleetChoice:
    """Draw a working day, 06:15, on which cars also come, and `vehicles` users; a large fleet has users repeatedly."""
    draw = random.Random(seed)
    traces = load_traces()
    mornings = [start_ms for start_ms in MORNINGS_MS if len(_by_kind(traces, start_ms)[2]) >= 2]
    start_ms = draw.choice(mornings)
    leaving, staying, coming, away = _by_kind(traces, start_ms)
    for kind in (leaving, staying, coming, away):
        draw.shuffle(kind)
    staying_count = min(vehicles, max(_LEAST_STAYING, round(vehicles * _STAYING_SHARE)))
    away_count = min(vehicles - staying_count, round(vehicles * _AWAY_SHARE))
    drawn = [
        *islice(cycle(leaving), vehicles - staying_count - away_count),
        *islice(cycle(coming + away), away_count),
        *islice(cycle(staying), staying_count),
    ]
    draw.shuffle(drawn)
    cars = tuple(CarChoice(f"car-{number:02}", trace) for number, trace in enumerate(drawn, 1))
    return FleetChoice(cars, start_ms)


def _by_kind(traces: Sequence[CarTrace], start_ms: int) -> tuple[list[CarTrace], ...]:
    """Those that are plugged in and leave soon, that stay, that are away and come soon, and that stay away."""
    kinds: tuple[list[CarTrace], ...] = ([], [], [], [])
    for trace in traces:
        plug_in = plug_in_at(trace, start_ms)
        if plug_in is not None:
            kinds[0 if plug_in.stop_ms <= start_ms + SOON_MS else 1].append(trace)
        else:
            comes = any(start_ms < plug_in.start_ms <= start_ms + SOON_MS for plug_in in trace.plug_ins)
            kinds[2 if comes else 3].append(trace)
    return kinds
