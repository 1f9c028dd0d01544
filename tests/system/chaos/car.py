"""A real agent for a car that is plugged in until SIGUSR1 pulls its cable, and again after SIGUSR2.

Run as `python -m tests.system.chaos.car VEHICLE BROKER_PORT DATA`; more settings by environment, as for any agent.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from pathlib import Path
from random import Random

import uvloop

from fleet_wire.signals import Signals
from simulator.car import Replay, SimulatedCar
from simulator.traces import parked
from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings


class Cable(SimulatedCar):
    """A parked car whose cable somebody pulls."""

    def __init__(self, now_ms: int) -> None:
        super().__init__(parked(now_ms), Replay(now_ms, now_ms))
        self._is_in = True
        self._moved = asyncio.Event()

    def move(self, *, is_in: bool) -> None:
        self._is_in = is_in
        self._moved.set()

    def read(self, now_ms: int) -> Signals:
        signals = super().read(now_ms)
        if not self._is_in:
            signals.plugged = signals.charging = False
        return signals

    async def changed(self, now_ms: int) -> None:
        self._moved.clear()
        await self._moved.wait()


async def run(settings: AgentSettings) -> None:
    car = Cable(time.time_ns() // 1_000_000)
    running = asyncio.ensure_future(run_agent(settings, car, random=Random()))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, running.cancel)
    loop.add_signal_handler(signal.SIGUSR1, lambda: car.move(is_in=False))
    loop.add_signal_handler(signal.SIGUSR2, lambda: car.move(is_in=True))
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    _, name, port, folder = sys.argv
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            run(AgentSettings(fleet="test", vehicle=name, broker_port=int(port), data_dir=Path(folder), threads=1))
        )
