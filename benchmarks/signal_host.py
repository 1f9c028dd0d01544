"""Agents of one process whose cars send their signals over Unix sockets: the benchmark plays those cars."""

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings
from vehicle_agent.signals import SignalStream


async def run(spec: list[dict[str, Any]]) -> None:
    """Each entry has an agent's settings and, as `signals`, its car's socket. Ends with the process."""
    with ExitStack() as streams:
        async with asyncio.TaskGroup() as group:
            for entry in spec:
                source = streams.enter_context(SignalStream(Path(entry.pop("signals"))))
                settings = AgentSettings.model_validate(entry)
                group.create_task(run_agent(settings, source, random=Random(settings.vehicle)))
            print(json.dumps({"ready": True}), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(Path(sys.argv[1]).read_text())))
