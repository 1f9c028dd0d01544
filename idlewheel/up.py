"""`idlewheel up`: a broker, a coordinator and, if asked, simulated cars on this machine, until Ctrl-C or SIGTERM.

Nothing is started again: when a part ends by itself, all of it ends, and says so.
"""

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import typer

from idlewheel.agent_host import HostedCar
from idlewheel.brokers import BrokerChoice, BrokerFailed, is_answering
from idlewheel.cli_arguments import made_folder, parse_address
from idlewheel.client import DEFAULT_URL
from idlewheel.local_fleet import LocalFleet, run_agents, run_local_fleet
from idlewheel.processes import Child, ChildFailed
from simulator.car import Replay
from simulator.traces import parked

__all__ = ["up"]

_BROKER_CHECK_S = 5.0


class _Stopped(Exception):
    """A signal asked for the end."""


@dataclass(frozen=True, slots=True)
class _Fleet:
    host: str
    port: int
    broker: BrokerChoice
    fleet: str
    fleet_policy: Path | None
    store: str
    ledger: str


def up(
    vehicles: Annotated[int, typer.Option(min=0, max=1000, help="Simulated cars, plugged in for good.")] = 0,
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the coordinator serves.")] = "127.0.0.1:8470",
    broker: Annotated[BrokerChoice, typer.Option(help="auto takes Mosquitto when it is installed.")] = "auto",
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all data here; else nothing is kept.")] = None,
    fleet: Annotated[str, typer.Option(help="The fleet's name.")] = "demo",
    fleet_policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What owners agree to by default, as JSON; all general work unless given."),
    ] = None,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="IDLEWHEEL_STORE", help="influx://HOST:PORT/DATABASE, for telemetry.")
    ] = "",
    ledger: Annotated[
        str,
        typer.Option(metavar="URL", envvar="IDLEWHEEL_LEDGER", help="postgresql://HOST:PORT/DATABASE, for jobs."),
    ] = "",
) -> None:
    """Serve until Ctrl-C: broker, coordinator, simulated cars.

    \b
    Example:
      idlewheel up --vehicles 4
    """
    host, port = parse_address(http)
    try:
        with _directory(data) as directory:
            asyncio.run(_serve(directory, vehicles, _Fleet(host, port, broker, fleet, fleet_policy, store, ledger)))
    except* (ChildFailed, BrokerFailed) as errors:
        for error in _single(errors):
            typer.echo(f"idlewheel up: {error}", err=True)
        raise typer.Exit(1) from None


def _single(errors: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    """Every error of a group, and of groups in it: one for each task group that it went through."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single(error)
        else:
            yield error


@contextlib.contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield made_folder(data).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="idlewheel-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)


async def _serve(directory: Path, vehicles: int, choice: _Fleet) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_raise_when(stop), name="signals")
            tasks.create_task(_run(directory, vehicles, choice), name="fleet")
    except* _Stopped:
        typer.echo("stopped")


async def _raise_when(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _Stopped


async def _run(directory: Path, vehicles: int, choice: _Fleet) -> None:
    async with contextlib.AsyncExitStack() as stack:
        local = await stack.enter_async_context(
            run_local_fleet(
                directory,
                broker=choice.broker,
                fleet=choice.fleet,
                http_host=choice.host,
                http_port=choice.port,
                fleet_policy=choice.fleet_policy,
                store=choice.store,
                ledger=choice.ledger,
            )
        )
        children = [local.coordinator]
        if vehicles:
            children.append(await stack.enter_async_context(run_agents(local, "cars", _parked_cars(vehicles))))
        _announce(local, vehicles, choice)
        await _watch(local, children)


def _parked_cars(vehicles: int) -> list[HostedCar]:
    now_ms = time.time_ns() // 1_000_000
    replay = Replay(trace_ms=now_ms, start_ms=now_ms)
    return [HostedCar(f"car-{number:02}", parked(now_ms), replay) for number in range(1, vehicles + 1)]


def _announce(local: LocalFleet, vehicles: int, choice: _Fleet) -> None:
    typer.echo(f"coordinator  {local.url}")
    typer.echo(f"broker       mqtt://{local.broker.host}:{local.broker.port} ({local.broker.kind})")
    typer.echo(f"vehicles     {vehicles} simulated")
    typer.echo(f"telemetry    {_without_secrets(choice.store) or 'a DuckDB file'}")
    typer.echo(f"ledger       {_without_secrets(choice.ledger) or 'a SQLite file'}")
    typer.echo(f"files        {local.directory}")
    typer.echo("Submit with:")
    if local.url != DEFAULT_URL:
        typer.echo(f"  export IDLEWHEEL_URL={local.url}")
    typer.echo("  idlewheel submit MODEL.onnx ROWS.npz -o OUT.npz")
    typer.echo("Ctrl-C ends it.")
    sys.stdout.flush()


def _without_secrets(url: str) -> str:
    """A store's or ledger's URL without password and token."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


async def _watch(local: LocalFleet, children: list[Child]) -> None:
    """Return never; raise ChildFailed or BrokerFailed when a part does not live any more."""
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(child.expect_running(), name=child.name)
        tasks.create_task(_expect_broker(local), name="broker")


async def _expect_broker(local: LocalFleet) -> None:
    while await is_answering(local.broker.host, local.broker.port):  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(_BROKER_CHECK_S)
    raise BrokerFailed(f"{local.broker.kind} broker on port {local.broker.port} does not answer any more")
