"""Runs the agents of several simulated cars as tasks of one process: `python -m idlewheel.agent_host --spec FILE.json`.

Prints one JSON line when all have begun. Lines of JSON on its standard input say when the cars' time goes on
(`Replay`); when that input ends, whoever started it is gone, and it ends too.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from random import Random

import msgspec
import uvloop

from fleet_link import SpanSink, open_spans
from simulator.car import Replay, SimulatedCar
from simulator.traces import CarTrace
from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings

__all__ = ["HostSpec", "HostedCar", "main", "run_cars"]


class HostedCar(msgspec.Struct, frozen=True):
    """A vehicle id, what its car does, and which of that is played when."""

    vehicle: str
    trace: CarTrace
    replay: Replay


class HostSpec(msgspec.Struct, frozen=True):
    """Where the agents connect, where they keep their files (a folder a vehicle), and their cars."""

    broker_host: str
    broker_port: int
    fleet: str
    data: str
    cars: tuple[HostedCar, ...]


async def run_cars(spec: HostSpec, spans: SpanSink | None) -> None:
    """Run the agents until SIGTERM, or the end of standard input; then let each of them sign off."""
    cars = {hosted.vehicle: SimulatedCar(hosted.trace, hosted.replay) for hosted in spec.cars}
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as tasks:
        agents = [
            tasks.create_task(run_agent(_settings(spec, vehicle), car, random=Random(), spans=spans), name=vehicle)
            for vehicle, car in cars.items()
        ]
        orders = tasks.create_task(_follow_orders(list(cars.values()), stop), name="orders")
        print(json.dumps({"ready": True, "vehicles": len(cars)}), flush=True)  # noqa: T201 - whoever started us waits
        await stop.wait()
        for task in (orders, *agents):
            task.cancel()


async def _follow_orders(cars: list[SimulatedCar], stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        replay = msgspec.json.decode(line, type=Replay)
        for car in cars:
            car.play(replay)
    stop.set()


def _settings(spec: HostSpec, vehicle: str) -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "fleet": spec.fleet,
            "vehicle": vehicle,
            "data_dir": Path(spec.data) / vehicle,
            "models_dir": Path(spec.data) / "models",
            "broker_host": spec.broker_host,
            "broker_port": spec.broker_port,
            "threads": 1,  # the cars of one machine share its cores
        }
    )


def main() -> None:
    """Run the cars of the file that is named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec = msgspec.json.decode(parser.parse_args().spec.read_bytes(), type=HostSpec)
    spans = open_spans("idlewheel-agent", os.environ)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_cars(spec, spans))
    finally:
        if spans is not None:
            spans.close()


if __name__ == "__main__":
    main()
