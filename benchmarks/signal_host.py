"""Agents of one process whose cars send their signals over Unix sockets: the benchmark plays those cars.

An agent without a guard has one that sees no more than its event loop has seen.
"""

import asyncio
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from fleet_wire.signals import Signals
from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings
from vehicle_agent.signals import SignalSource, SignalStream


class HeardByTheLoop:
    """A car of which other threads learn what the event loop's thread, the main one, has read last."""

    def __init__(self, car: SignalSource) -> None:
        self._car = car
        self._read = Signals()

    def read(self, now_ms: int) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._read = self._car.read(now_ms)
        return self._read

    async def changed(self, now_ms: int) -> None:
        await self._car.changed(now_ms)

    def set_computing(self, share: float) -> None:
        self._car.set_computing(share)


async def run(spec: list[dict[str, Any]]) -> None:
    """Each entry has an agent's settings, as `signals` its car's socket, and `is_guarded`. Ends with the process."""
    with ExitStack() as streams:
        async with asyncio.TaskGroup() as group:
            for entry in spec:
                stream = streams.enter_context(SignalStream(Path(entry.pop("signals"))))
                source = stream if entry.pop("is_guarded") else HeardByTheLoop(stream)
                settings = AgentSettings.model_validate(entry)
                group.create_task(run_agent(settings, source, random=Random(settings.vehicle)))
            print(json.dumps({"ready": True}), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(Path(sys.argv[1]).read_text())))
