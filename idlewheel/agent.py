"""`idlewheel agent`: one real agent in this process, for a real or simulated car, or the replay of recorded signals."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Annotated

import typer
import uvloop
from pydantic import ValidationError

from fleet_link import open_spans
from idlewheel.cli_arguments import made_folder, parse_address, settings_faults
from idlewheel.errors import BadInput
from simulator.car import Replay, SimulatedCar
from simulator.traces import parked
from vehicle_agent.daemon import run_agent
from vehicle_agent.errors import BadTrace, IdentityTaken
from vehicle_agent.settings import AgentSettings
from vehicle_agent.signals import SignalSource, SignalStream, TraceReplay

__all__ = ["agent"]


def agent(
    vehicle: Annotated[str, typer.Option(metavar="ID", help="Letters, digits, _ and -; not a plate or a VIN.")],
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="The fleet's MQTT broker.")] = "127.0.0.1:1883",
    fleet: Annotated[str, typer.Option(help="The fleet's name.")] = "demo",
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay signals: .jsonl or .csv with t_ms and VSS paths.")
    ] = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="A simulated car, plugged in for good.")] = False,
    signals: Annotated[
        Path | None, typer.Option(metavar="SOCKET", help="A real car's: see docs/operations.md.")
    ] = None,
    speed_up: Annotated[float, typer.Option(min=0.001, help="How much faster than it happened a trace is.")] = 1.0,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The agent's files; default: by its id.")] = None,
) -> None:
    """Be one vehicle until Ctrl-C. More settings by environment: IDLEWHEEL_AGENT_*.

    \b
    Example:
      idlewheel agent --broker 127.0.0.1:1883 --vehicle car-01 --simulated
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    host, port = parse_address(broker)
    given = {
        "fleet": fleet,
        "vehicle": vehicle,
        "broker_host": host,
        "broker_port": port,
        "data_dir": data or Path("idlewheel-agents") / vehicle,
    }
    try:
        settings = AgentSettings.model_validate(given)
    except ValidationError as error:
        raise settings_faults(error) from None
    made_folder(settings.data_dir)
    try:
        with (
            _source(trace, signals, simulated=simulated, speed_up=speed_up) as source,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_run(settings, source))
    except IdentityTaken as error:
        typer.echo(f"idlewheel agent: {error}", err=True)
        raise typer.Exit(1) from None


async def _run(settings: AgentSettings, source: SignalSource) -> None:
    """Run the agent until SIGINT or SIGTERM; then let it sign off."""
    spans = open_spans("idlewheel-agent", os.environ)
    running = asyncio.ensure_future(run_agent(settings, source, random=Random(), spans=spans))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        if spans is not None:
            spans.close()


def _source(
    trace: Path | None, signals: Path | None, *, simulated: bool, speed_up: float
) -> contextlib.AbstractContextManager[SignalSource]:
    now_ms = time.time_ns() // 1_000_000
    if [trace is not None, signals is not None, simulated].count(True) != 1:
        raise BadInput("say one of --trace FILE, --signals SOCKET and --simulated")
    if signals is not None:
        return SignalStream(signals)
    if trace is None:
        return contextlib.nullcontext(SimulatedCar(parked(now_ms), Replay(now_ms, now_ms)))
    try:
        return contextlib.nullcontext(TraceReplay.open(trace, start_ms=now_ms, speed=speed_up))
    except (BadTrace, OSError) as error:
        raise BadInput(f"the trace cannot be played: {error}") from None
