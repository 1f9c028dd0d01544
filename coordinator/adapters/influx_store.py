"""The record of telemetry in InfluxDB. What the server can't take now waits on disk and is written later, in order.

Never holds more in memory than what is under way, and never says that something is kept before it is.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from coordinator.adapters.influx_lines import LineEncoder, batch_of, joined, parse_lines, point_line
from coordinator.adapters.influx_reading import InfluxReading
from coordinator.adapters.influx_server import (
    InfluxAddress,
    InfluxDenied,
    InfluxError,
    InfluxServer,
    LinesRefused,
    ServerGone,
)
from coordinator.adapters.influx_spill import SpillLog
from coordinator.errors import StoreUnavailable
from coordinator.events import PlugHistory, TelemetryBatch
from coordinator.metrics import MetricPoint
from coordinator.ports import HOUR_MS, StoreStatus

__all__ = ["InfluxLimits", "InfluxStore"]

_CONNECTIONS: Final = 3  # one more than keeps the server busy, as this process may not send at once
_FRAMES_AT_ONCE: Final = 1_000
_GRACE_S: Final = 1.0  # for a write that is under way at the end
_CLOSE_S: Final = 2.0  # for the last points, after that
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InfluxLimits:
    """How much at once, and how long. After a failure the server is asked again after `again_s`, doubling."""

    lines_at_once: int = 10_000
    write_timeout_s: float = 10.0
    again_s: float = 0.5
    longest_again_s: float = 15.0
    denied_again_s: float = 30.0
    points_waiting: int = 20_000
    points_every_s: float = 1.0
    spill_bytes: int = 4 << 30
    rejected_bytes: int = 1 << 20


class InfluxStore:
    """Lines go straight to the server while nothing waits on disk; else to the disk, which a thread of ours empties."""

    def __init__(
        self,
        address: InfluxAddress,
        folder: Path,
        region_of: Callable[[str], str],
        rng: Random,
        limits: InfluxLimits | None = None,
    ) -> None:
        self._address = address
        self._folder = folder
        self._rng = rng
        self._limits = limits or InfluxLimits()
        self._encoder = LineEncoder(region_of)
        self._server = InfluxServer(address, self._limits.write_timeout_s)
        self._reading = InfluxReading(self._server)
        self._spill = SpillLog(folder, most_bytes=self._limits.spill_bytes)
        self._senders = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="influx")
        self._replayer = threading.Thread(target=self._replay, name="influx-replay", daemon=True)
        self._is_open = False
        self._ready = False
        self._knows_the_last = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._given_up: Future[float] = Future()
        self._points: deque[str] = deque()
        self._counters: Counter[str] = Counter()
        self._trouble = ""
        self._disk_trouble = ""
        self._lock = threading.Lock()

    def open(self) -> None:
        """Serve from now on, also when the server is away. Raises StoreUnavailable when the folder can't be used."""
        try:
            self._spill.open()
        except (OSError, ValueError) as error:
            raise StoreUnavailable(
                "telemetry_unavailable", f"the telemetry spill folder {self._folder}: {error}"
            ) from error
        self._is_open = True
        try:
            self._prepare()
        except InfluxError as error:
            self._trouble_is(f"telemetry is kept on disk until the server takes it: {error}")
        self._replayer.start()

    def give_up(self) -> None:
        """Let an append end: one that waits for the server puts the rest on disk, one that waits for room raises
        StoreUnavailable. In any thread.
        """
        with self._lock:
            if not self._given_up.done():
                self._given_up.set_result(time.monotonic() + _GRACE_S)
        self._closing.set()
        self._wake.set()

    def close(self) -> None:
        """Send the points that wait, if the server takes them at once, and close; what waits on disk stays there."""
        self.give_up()
        if self._is_open:
            self._is_open = False
            self._replayer.join(_CLOSE_S)
            if self._points:
                self._count("points_dropped", len(self._points))
                _log.warning("%d points for dashboards were dropped at the end", len(self._points))
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._spill.close()
        self._server.close()

    def append(self, batches: Sequence[TelemetryBatch]) -> None:
        """Keep batches, in the server or on disk on return. Raises StoreUnavailable when it is closed."""
        self._require_open()
        for batch in batches:
            self._encoder.check(batch)
        bodies = self._bodies(batches)
        waiting = list(bodies) if not self._is_direct() else self._send(bodies)
        if waiting:
            self._keep(waiting)

    def latest(self) -> TelemetryBatch:
        """The last known value of every signal of every vehicle, one document a vehicle."""
        with self._asking():
            return batch_of(self._reading.latest(self._waiting_documents()))

    def history(self, vehicle: str, since_ms: int, limit: int) -> TelemetryBatch:
        """Documents of one vehicle received since `since_ms`, in order of arrival, at most `limit`."""
        with self._asking():
            waiting = [each for each in self._waiting_documents() if each["vehicle"] == vehicle]
            return batch_of(self._reading.history(vehicle, since_ms, limit, waiting))

    def plug_history(self, since_ms: int) -> PlugHistory:
        """When vehicles were plugged in since `since_ms`."""
        with self._asking():
            return self._reading.plug_history(since_ms, self._waiting_documents())

    def record(self, points: Sequence[MetricPoint]) -> None:
        """Take points for dashboards; those that find no room are dropped, and all while telemetry waits on disk."""
        room = self._limits.points_waiting - len(self._points) if self._is_direct() else 0
        self._points.extend(map(point_line, points[:room]))
        self._count("points_dropped", len(points) - min(room, len(points)))

    def maintain(self, now_ms: int) -> None:
        """Roll up hours that are over, but none of which documents wait on disk, and forget what is past its time."""
        with self._asking():
            oldest_ms = self._spill.oldest_ms
            known_ms = now_ms if oldest_ms is None else min(now_ms, oldest_ms)
            for hour in self._reading.hours(known_ms // HOUR_MS * HOUR_MS):
                for start in range(0, len(hour), self._limits.lines_at_once):
                    self._deliver(joined(hour[start : start + self._limits.lines_at_once]))
            if not self._reading.forget(now_ms):
                self._count("retention_refused")

    def status(self) -> StoreStatus:
        """How it is doing; may be called in any thread."""
        with self._lock:
            counters = dict(self._counters)
        if self._spill.torn_bytes:
            counters["spill_torn_bytes"] = self._spill.torn_bytes
        return StoreStatus(self._disk_trouble or self._trouble, self._spill.lines, self._spill.oldest_ms, counters)

    # Writing

    def _is_direct(self) -> bool:
        return self._ready and not self._spill.lines

    def _bodies(self, batches: Sequence[TelemetryBatch]) -> Iterator[bytes]:
        """Requests of at most so many lines each."""
        lines: list[str] = []
        for batch in batches:
            lines += self._encoder.encode(batch)
            while len(lines) >= self._limits.lines_at_once:
                yield joined(lines[: self._limits.lines_at_once])
                del lines[: self._limits.lines_at_once]
        if lines:
            yield joined(lines)

    def _send(self, bodies: Iterator[bytes]) -> list[bytes]:
        """Send as many at once as there are connections; return those that the server did not take."""
        under_way: deque[tuple[bytes, Future[None]]] = deque()
        not_taken: list[bytes] = []

        def finish_one() -> None:
            body, sent = under_way.popleft()
            try:
                self._wait_for(sent)
            except InfluxError as error:
                self._lost_it(error)
                not_taken.append(body)
            else:
                self._count("lines_written", _lines(body))

        for body in bodies:
            if not_taken:
                not_taken.append(body)
                continue
            under_way.append((body, self._senders.submit(self._deliver, body)))
            if len(under_way) > _CONNECTIONS:
                finish_one()
        while under_way:
            finish_one()
        return not_taken

    def _wait_for(self, sent: Future[None]) -> None:
        """Wait until the server has taken what was sent, at the end not long. Raises InfluxError."""
        either: tuple[Future[Any], ...] = (sent, self._given_up)
        wait(either, return_when=FIRST_COMPLETED)
        if not sent.done():
            wait((sent,), max(0.0, self._given_up.result() - time.monotonic()))
        if not sent.done():
            raise ServerGone("it did not answer before the end")
        sent.result()

    def _deliver(self, body: bytes) -> None:
        """Have the server take lines, without those that it refuses. Raises ServerGone, InfluxDenied."""
        try:
            self._server.write(body)
        except LinesRefused as refused:
            lines = body.split(b"\n")
            if len(lines) > 1:
                half = len(lines) // 2
                self._deliver(b"\n".join(lines[:half]))
                self._deliver(b"\n".join(lines[half:]))
            else:
                self._reject(body, refused)

    def _reject(self, line: bytes, refused: LinesRefused) -> None:
        """A line that the server will never take: counted, and kept for a person to look at while there is room."""
        self._count("lines_refused_too_large" if refused.status == 413 else "lines_refused_invalid")
        path = self._folder / "rejected.txt"
        try:
            if not path.exists() or path.stat().st_size < self._limits.rejected_bytes:
                with path.open("ab") as file:
                    file.write(b"# " + str(refused).encode() + b"\n" + line + b"\n")
        except OSError:
            _log.warning("a line that the server refused could not be kept: %s", refused)

    def _keep(self, bodies: list[bytes]) -> None:
        """Put bodies on disk. While that can't be done, nothing is acknowledged: try both until one takes them."""
        while True:
            try:
                self._spill.append(bodies)
            except OSError as error:
                self._disk_trouble_is(
                    f"telemetry is not acknowledged: {self._folder}: {error.strerror or error}; make room there"
                )
                self._count("spill_failed")
            else:
                self._count("lines_spilled", sum(map(_lines, bodies)))
                self._wake.set()
                return self._disk_trouble_is("")
            if self._closing.wait(self._limits.again_s):
                raise StoreUnavailable("telemetry_unavailable", self._disk_trouble)
            if self._ready:
                bodies = self._send(iter(bodies))
                if not bodies:
                    return self._disk_trouble_is("")

    # What waits on disk

    def _replay(self) -> None:
        """In a thread of its own: empty the disk whenever the server is there, and send points for dashboards."""
        failures = 0
        while not self._closing.is_set():
            try:
                if not self._ready:
                    self._prepare()
                more = self._replay_some() or self._send_points()
                failures = 0
                wait_s = 0.0 if more else self._limits.points_every_s
            except InfluxError as error:
                self._lost_it(error)
                failures += 1
                wait_s = self._again_s(failures, error)
            except OSError as error:
                self._trouble_is(f"the telemetry spill folder {self._folder}: {error}")
                wait_s = self._limits.longest_again_s
            if wait_s:
                (self._closing if failures else self._wake).wait(wait_s)
                self._wake.clear()
        self._send_last_points()

    def _again_s(self, failures: int, error: InfluxError) -> float:
        limits = self._limits
        if isinstance(error, InfluxDenied):  # nothing will change until a person changes it
            return limits.denied_again_s
        ceiling_s = min(limits.longest_again_s, limits.again_s * 2 ** min(failures - 1, 10))
        return self._rng.uniform(ceiling_s / 2, ceiling_s)

    def _prepare(self) -> None:
        self._server.prepare()
        if not self._knows_the_last:
            for document in self._reading.last_documents():
                self._encoder.remember(document["vehicle"], document["epoch"], document["seq"], document["time_ns"])
            self._knows_the_last = True
        self._ready = True
        self._trouble_is("")

    def _replay_some(self) -> bool:
        frames = self._spill.first(_FRAMES_AT_ONCE)
        bodies, count = _gathered(frames, self._limits.lines_at_once)
        sent = [self._senders.submit(self._deliver, body) for body in bodies]
        wait(sent)  # both have ended before the first failure is told
        for future in sent:
            future.result()
        if bodies:
            self._count("lines_replayed", sum(map(_lines, bodies)))
            self._spill.taken(count)
        return bool(bodies)

    def _send_points(self) -> bool:
        """Points are not tried again: a dashboard can do without a moment."""
        count = min(len(self._points), self._limits.lines_at_once)
        if count:
            outcome = "points_dropped"
            try:
                self._deliver(joined([self._points[place] for place in range(count)]))
                outcome = "points_written"
            finally:
                self._count(outcome, count)
                for _ in range(count):
                    self._points.popleft()
        return count == self._limits.lines_at_once

    def _send_last_points(self) -> None:
        """All that wait, for as long as `close` waits for it."""
        ends = time.monotonic() + _CLOSE_S
        try:
            while self._ready and self._points and time.monotonic() < ends:
                self._send_points()
        except InfluxError as error:
            self._lost_it(error)

    def _waiting_documents(self) -> Iterator[dict[str, Any]]:
        for body in self._spill.bodies():
            yield from parse_lines(body)

    # How it is doing

    def _lost_it(self, error: InfluxError) -> None:
        if self._ready:
            self._count("server_lost")
        self._ready = False
        self._trouble_is(f"telemetry is kept on disk until the server takes it: {error}")
        self._wake.set()

    def _trouble_is(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            _log.warning("%s", text or f"{self._address} is there")

    def _disk_trouble_is(self, text: str) -> None:
        if text != self._disk_trouble:
            self._disk_trouble = text
            _log.warning("%s", text or f"{self._folder} has room again")

    def _count(self, name: str, count: int = 1) -> None:
        with self._lock:
            if count:
                self._counters[name] += count

    def _require_open(self) -> None:
        if not self._is_open:
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._address} is not open")

    def _asking(self) -> "_Asking":
        self._require_open()
        if not self._ready:
            raise StoreUnavailable("telemetry_unavailable", self._trouble or f"{self._address} is away")
        return _Asking(self._address)


class _Asking:
    """Turns what goes wrong with the server into StoreUnavailable."""

    def __init__(self, address: InfluxAddress) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, InfluxError):
            raise StoreUnavailable("telemetry_unavailable", f"the telemetry store {self._address}: {error}") from error


def _lines(body: bytes) -> int:
    return body.count(b"\n") + 1


def _gathered(frames: Sequence[bytes], lines_at_once: int) -> tuple[list[bytes], int]:
    """Bodies for the connections, made of the first frames, and of how many of these."""
    bodies: list[bytes] = []
    start = 0
    while start < len(frames) and len(bodies) < _CONNECTIONS:
        stop, lines = start + 1, _lines(frames[start])
        while stop < len(frames) and lines + _lines(frames[stop]) <= lines_at_once:
            lines += _lines(frames[stop])
            stop += 1
        bodies.append(b"\n".join(frames[start:stop]))
        start = stop
    return bodies, start
