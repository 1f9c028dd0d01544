"""Where the car's signals come from: the port, a live stream, and the replay of a recorded trace. Never decides."""

import asyncio
import contextlib
import csv
import json
import logging
import socket
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, Self

import msgspec

from fleet_wire.signals import SIGNAL_PATHS, Signals
from vehicle_agent.errors import BadTrace

__all__ = ["SignalSource", "SignalStream", "TraceReplay"]

_log = logging.getLogger(__name__)
_TIME = "t_ms"
_RETRY_S: Final = 1.0
_MAX_LINE_BYTES: Final = 64 * 1024


class SignalSource(Protocol):
    """A vehicle bus, a recording or a simulated car."""

    def read(self, now_ms: int) -> Signals:
        """Return every signal that is known at this time. What it leaves out counts as not known.

        While a worker lives this is asked 50 times a second, by a thread of its own: it must not block.
        """

    async def changed(self, now_ms: int) -> None:
        """Return as soon as the reading may differ from that at `now_ms`; wait for ever when it never will.

        An agent reads at a steady pace besides: this is for what can't wait, like a cable that is pulled.
        """

    def set_computing(self, share: float) -> None:
        """Learn which part of its full power computing takes from now on, which a simulated car turns into heat."""


class SignalStream:
    """Signals as the car's gateway sends them, over a Unix socket that it serves: lines of JSON objects by VSS path.

    A line names what changed, null what is not known any more; the first says all. Without a connection, or after a
    line that can't be read, nothing is known, and the stream is opened anew. A thread of its own reads it, so that
    what the car says is known at once, whatever the agent does meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signals = Signals()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_changed = asyncio.Event()
        self._is_over = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="car's signals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it was not connected
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def read(self, now_ms: int) -> Signals:  # noqa: ARG002 - the port's
        """Return what the car said last."""
        return self._signals

    async def changed(self, now_ms: int) -> None:  # noqa: ARG002 - the port's
        """Wait until the car says something."""
        self._loop = asyncio.get_running_loop()
        await self._has_changed.wait()
        self._has_changed.clear()

    def set_computing(self, share: float) -> None:
        """Change nothing: the car measures what computing draws."""

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as self._socket:
                    self._socket.connect(str(self._path))
                    self._follow(self._socket)
            except (OSError, ValueError, TypeError, RecursionError) as error:  # msgspec's and json's are ValueError
                _log.warning("%s: the car's signals can't be read: %s", self._path, error)
            self._know(Signals())
            self._is_over.wait(_RETRY_S)

    def _follow(self, connection: socket.socket) -> None:
        known: dict[str, Any] = {}
        lines = connection.makefile("rb")
        while not self._is_over.is_set() and (line := lines.readline(_MAX_LINE_BYTES)):
            known |= json.loads(line)
            self._know(msgspec.convert({path: value for path, value in known.items() if value is not None}, Signals))

    def _know(self, signals: Signals) -> None:
        self._signals = signals
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._has_changed.set)


class TraceReplay:
    """Plays timed signals by VSS path from a file, `speed` times as fast, from `start_ms` on the wall clock.

    A sample names only what changed; the rest stands as before. After the last sample nothing changes any more.
    """

    def __init__(self, times_ms: list[int], readings: list[Signals], start_ms: int, speed: float) -> None:
        self._times_ms = times_ms
        self._readings = readings
        self._start_ms = start_ms
        self._speed = speed

    @classmethod
    def open(cls, path: Path, *, start_ms: int, speed: float = 1.0) -> "TraceReplay":
        """Read a trace: JSON lines (`.jsonl`) or CSV, with `t_ms` and VSS paths as names. Raise BadTrace."""
        try:
            text = path.read_text(encoding="utf-8-sig")
            rows = (
                [json.loads(line) for line in text.splitlines() if line.strip()]
                if path.suffix == ".jsonl"
                else [_typed(row) for row in csv.DictReader(text.splitlines())]
            )
            times_ms, readings = _accumulate(rows)
        except (ValueError, KeyError, TypeError, OverflowError) as error:  # msgspec's and json's are ValueError
            raise BadTrace(f"{path.name}: {error}") from None
        return cls(times_ms, readings, start_ms, speed)

    def read(self, now_ms: int) -> Signals:
        """Return what held at this time; nothing is known before the first sample."""
        place = self._place(now_ms)
        return self._readings[place - 1] if place else Signals()

    async def changed(self, now_ms: int) -> None:
        """Wait for the next sample of the trace."""
        place = self._place(now_ms)
        if place == len(self._times_ms):
            await asyncio.Event().wait()
        due_ms = self._start_ms + self._times_ms[place] / self._speed
        await asyncio.sleep(max(0.0, due_ms - now_ms + 1) / 1000)

    def set_computing(self, share: float) -> None:
        """Change nothing: what was recorded has happened."""

    def _place(self, now_ms: int) -> int:
        return bisect_right(self._times_ms, (now_ms - self._start_ms) * self._speed)


def _accumulate(rows: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[Signals]]:
    known: dict[str, Any] = {}
    times_ms: list[int] = []
    readings: list[Signals] = []
    paths = frozenset(SIGNAL_PATHS.values())
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"{row!r} is no object")
        unknown = row.keys() - paths - {_TIME}
        if unknown:
            raise ValueError(f"unknown signal {min(unknown)}")
        time_ms = int(row[_TIME])
        if times_ms and time_ms < times_ms[-1]:
            raise ValueError(f"time goes back to {time_ms}")
        known |= {path: value for path, value in row.items() if path != _TIME}
        times_ms.append(time_ms)
        readings.append(msgspec.convert(known, Signals))
    if not times_ms:
        raise ValueError("no samples")
    return times_ms, readings


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    """CSV has text only: true, false and numbers are what they look like; an empty cell says nothing."""
    return {name: _value(text) for name, text in row.items() if text}


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower())
    except ValueError:
        return text
