"""A simulated car as an agent's source of signals: plays a trace at a speed-up on the wall clock. Decides nothing."""

import asyncio
import contextlib
import math
import threading
from bisect import bisect_right

from msgspec import UNSET, Struct

from fleet_wire.signals import Signals
from simulator.traces import CarTrace, signals_at

__all__ = ["Replay", "SimulatedCar"]

# Above what the car uses anyway.
COMPUTE_W = 25.0
_IDLE_C = 35.0
_BUSY_C = 62.0
_COMPUTE_TIME_MS = 20_000


class Replay(Struct, frozen=True):
    """Which moment of a trace is played when: `trace_ms` at `start_ms` of the wall clock, `speed_up` times as fast.

    With a speed-up of zero the car's time stands still.
    """

    trace_ms: int
    start_ms: int
    speed_up: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.speed_up < math.inf:
            raise ValueError(f"a speed-up of {self.speed_up}")

    def to_trace_ms(self, now_ms: int) -> int:
        """Moment of the trace that is played now."""
        return self.trace_ms + math.floor((now_ms - self.start_ms) * self.speed_up)

    def to_wall_ms(self, trace_ms: int) -> int | None:
        """When a moment of the trace is played; None when never."""
        if self.speed_up == 0:
            return None
        return self.start_ms + math.ceil((trace_ms - self.trace_ms) / self.speed_up)


class SimulatedCar:
    """A SignalSource. The vehicle runs in the trace's time; the computer, which truly computes, in the clock's."""

    def __init__(self, trace: CarTrace, replay: Replay) -> None:
        self._trace = trace
        self._replay = replay
        self._changes_ms = sorted({time for plug_in in trace.plug_ins for time in (plug_in.start_ms, plug_in.stop_ms)})
        self._replayed = asyncio.Event()
        self._computing = 0.0
        self._reading = threading.Lock()
        self._compute_c = _IDLE_C
        self._read_ms: int | None = None

    def play(self, replay: Replay) -> None:
        """Go on by another replay from now on."""
        self._replay = replay
        self._replayed.set()

    def read(self, now_ms: int) -> Signals:
        """Return all signals; times in them are the clock's."""
        signals = signals_at(self._trace, self._replay.to_trace_ms(now_ms))
        if signals.departure_ms is not UNSET:
            due_ms = self._replay.to_wall_ms(signals.departure_ms)
            signals.departure_ms = UNSET if due_ms is None else due_ms
        with self._reading:
            elapsed_ms = 0 if self._read_ms is None else now_ms - self._read_ms
            self._compute_c = _warmed(self._compute_c, elapsed_ms, self._computing)
            self._read_ms = now_ms
            signals.compute_temperature_c = self._compute_c
        signals.compute_power_w = COMPUTE_W * self._computing
        return signals

    async def changed(self, now_ms: int) -> None:
        """Wait until the cable next goes in or out, or another replay begins."""
        self._replayed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._replayed.wait(), self._next_change_s(now_ms))

    def set_computing(self, share: float) -> None:
        """Turn computing into power and heat from now on."""
        self._computing = share

    def _next_change_s(self, now_ms: int) -> float | None:
        place = bisect_right(self._changes_ms, self._replay.to_trace_ms(now_ms))
        due_ms = self._replay.to_wall_ms(self._changes_ms[place]) if place < len(self._changes_ms) else None
        return None if due_ms is None else max(0, due_ms - now_ms) / 1000


def _warmed(celsius: float, elapsed_ms: int, computing: float) -> float:
    """Temperature after a while, which nears that of its state with one time constant."""
    final = _IDLE_C + (_BUSY_C - _IDLE_C) * computing
    return final + (celsius - final) * math.exp(-max(0, elapsed_ms) / _COMPUTE_TIME_MS)
