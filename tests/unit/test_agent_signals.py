"""What a car says of itself: replayed traces, epochs that only grow, telemetry that can be followed without gaps."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_wire.messages import Telemetry
from fleet_wire.signals import SIGNAL_PATHS, Signals
from vehicle_agent.errors import BadTrace
from vehicle_agent.presence import EpochFile, TelemetryStream
from vehicle_agent.signals import SignalStream, TraceReplay

MOVING, CHARGE = SIGNAL_PATHS["moving"], SIGNAL_PATHS["charge_percent"]
JSONL = f'{{"t_ms": 100, "{MOVING}": false, "{CHARGE}": 50}}\n\n{{"t_ms": 200, "{MOVING}": true}}\n'
CSV = f"t_ms,{MOVING},{CHARGE}\n100,false,50\n200,TRUE,\n"


@pytest.mark.parametrize(
    ("name", "text"), [("trace.jsonl", JSONL), ("trace.csv", CSV), ("spreadsheet.csv", f"\ufeff{CSV}")]
)
def test_a_trace_tells_what_held_at_a_time(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    trace = TraceReplay.open(tmp_path / name, start_ms=1000, speed=10.0)
    readings = [trace.read(now_ms) for now_ms in (1009, 1010, 1019, 1020, 9999)]
    parked, driving = Signals(moving=False, charge_percent=50.0), Signals(moving=True, charge_percent=50.0)
    assert readings == [Signals(), parked, parked, driving, driving]


async def test_a_trace_says_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(JSONL)
    trace = TraceReplay.open(tmp_path / "t.jsonl", start_ms=0)
    async with asyncio.timeout(60):
        await trace.changed(190)
    waiting = asyncio.create_task(trace.changed(200))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no samples"),
        ('{"t_ms": 1, "Vehicle.Speed": 3}', "unknown signal Vehicle.Speed"),
        ('{"t_ms": 2}\n{"t_ms": 1}', "time goes back to 1"),
        (f'{{"t_ms": 1, "{CHARGE}": 101}}', "100"),
        (f'{{"{CHARGE}": 10}}', "t_ms"),
        ("{", "trace.jsonl"),
        ("5", "5 is no object"),
        ('{"t_ms": Infinity}', "infinity"),
        ("\xff", "utf-8"),
    ],
)
def test_a_trace_that_cannot_be_played_says_why(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "trace.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(BadTrace, match=words):
        TraceReplay.open(tmp_path / "trace.jsonl", start_ms=0)


def test_epochs_only_grow(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    assert [EpochFile(path).next(), EpochFile(path).next()] == [1, 2]
    EpochFile(path).raise_to(40)
    EpochFile(path).raise_to(7)
    assert EpochFile(path).next() == 41
    path.write_text("garbage")
    assert EpochFile(path).next() == 1


def test_telemetry_is_a_snapshot_and_then_what_changed() -> None:
    stream = TelemetryStream(7)
    first = Signals(moving=False, charge_percent=50.0)
    assert stream.snapshot(first, 1) == Telemetry(7, 0, 1, True, first)
    assert stream.delta(Signals(moving=False, charge_percent=50.3), 2) is None
    delta = Signals(charge_percent=50.6)  # the drift counts since it was last sent
    assert stream.delta(Signals(moving=False, charge_percent=50.6), 3) == Telemetry(7, 1, 3, False, delta)
    assert first == Signals(moving=False, charge_percent=50.0)


def test_a_signal_that_is_lost_is_told_by_a_snapshot() -> None:
    stream = TelemetryStream(7)
    stream.snapshot(Signals(moving=False, plugged=True), 1)
    assert stream.delta(Signals(plugged=True), 2) == Telemetry(7, 1, 2, True, Signals(plugged=True))


class Gateway:
    """A car that serves its signals."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.connections: list[socket.socket] = []

    def accept(self) -> None:
        self.connections.append(self.listener.accept()[0])

    def say(self, line: Any) -> None:
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        self.connections[-1].sendall(text + b"\n")

    def close(self) -> None:
        for each in [self.listener, *self.connections]:
            each.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path / "car.sock")
    yield gateway
    gateway.close()


def until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.005)


def test_a_stream_tells_what_the_car_said_last(gateway: Gateway, tmp_path: Path) -> None:
    with SignalStream(tmp_path / "car.sock") as stream:
        assert stream.read(0) == Signals()
        gateway.accept()
        gateway.say({MOVING: False, CHARGE: 50, "Vehicle.Unheard.Of": 1})
        until(lambda: stream.read(0) == Signals(moving=False, charge_percent=50.0))
        gateway.say({MOVING: True})
        until(lambda: stream.read(0) == Signals(moving=True, charge_percent=50.0))
        gateway.say({CHARGE: None})
        until(lambda: stream.read(0) == Signals(moving=True))


@pytest.mark.parametrize("line", [b"{", b"[1]", b"7", b"[" * 60_000, {CHARGE: "full"}, {MOVING: 7}, b"x" * 100_000])
def test_after_a_line_that_is_none_nothing_is_known_until_the_car_says_all_again(
    gateway: Gateway, tmp_path: Path, line: Any
) -> None:
    with SignalStream(tmp_path / "car.sock") as stream:
        gateway.accept()
        gateway.say({MOVING: False})
        until(lambda: stream.read(0) == Signals(moving=False))
        gateway.say(line)
        until(lambda: stream.read(0) == Signals())
        gateway.accept()
        gateway.say({CHARGE: 50})
        until(lambda: stream.read(0) == Signals(charge_percent=50.0))


def test_a_car_that_is_silent_is_not_known_and_one_that_comes_later_is_found(tmp_path: Path) -> None:
    with SignalStream(tmp_path / "car.sock") as stream:
        gateway = Gateway(tmp_path / "car.sock")
        gateway.accept()
        gateway.say({MOVING: False})
        until(lambda: stream.read(0) == Signals(moving=False))
        gateway.close()
        until(lambda: stream.read(0) == Signals())


async def test_a_stream_says_when_it_changes(gateway: Gateway, tmp_path: Path) -> None:
    with SignalStream(tmp_path / "car.sock") as stream:
        await asyncio.to_thread(gateway.accept)
        changed = asyncio.create_task(stream.changed(0))
        await asyncio.sleep(0)
        gateway.say({MOVING: True})
        async with asyncio.timeout(10):
            await changed
        assert stream.read(0) == Signals(moving=True)
