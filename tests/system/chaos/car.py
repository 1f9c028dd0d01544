"""A real agent for a car that is plugged in until SIGUSR1 pulls its cable, and again after SIGUSR2.

Run as `python -m tests.system.chaos.car VEHICLE BROKER_PORT DATA LIES`; more settings by environment, as for any agent.
While there is a file LIES, the car answers wrongly in as many percent of its rows as that says.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import uvloop

from fleet_wire.signals import Signals
from fleet_wire.tensors import Array, Tensor
from simulator.car import Replay, SimulatedCar
from simulator.traces import parked
from vehicle_agent import inference
from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings

Decode = Callable[[list[Tensor]], dict[str, Array]]


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


def lying(lies: Path, vehicle: str, decode: Decode) -> Decode:
    """What reads a worker's outputs, and changes them in some rows, beyond any tolerance and as no other car does."""
    number, random = int(vehicle.rpartition("-")[2]), np.random.default_rng()

    def decoded(tensors: list[Tensor]) -> dict[str, Array]:
        outputs = decode(tensors)
        try:
            share = float(lies.read_text() or 0) / 100
        except FileNotFoundError:
            return outputs
        wrong = random.random(len(next(iter(outputs.values())))) < share
        outputs = {name: array.copy() for name, array in outputs.items()}
        for array in outputs.values():
            array[wrong] += (number * (1 + np.abs(array[wrong]))).astype(array.dtype)
        return outputs

    return decoded


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
    _, name, port, folder, lies = sys.argv
    inference.decode_tensors = lying(Path(lies), name, inference.decode_tensors)  # what its worker has computed
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            run(AgentSettings(fleet="test", vehicle=name, broker_port=int(port), data_dir=Path(folder), threads=1))
        )
