"""`idlewheel demo`: a real job on a fleet of real agents whose cars come and go, compared with a direct run."""

import asyncio
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console

from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.tensors import Array
from idlewheel.brokers import BrokerChoice, BrokerFailed
from idlewheel.cli_options import json_text
from idlewheel.demo.comparison import count, matching_rows
from idlewheel.demo.player import DemoFailed, Player
from idlewheel.demo.report import Agreement, Report, Run, make_report
from idlewheel.demo.screen import Headline, Show, print_summary, showing
from idlewheel.demo.stage import build_stage
from idlewheel.demo.story import Story
from idlewheel.errors import BadInput, IdlewheelError
from idlewheel.examples import EXAMPLES, Example, ExampleRows, count_agreement
from idlewheel.processes import ChildFailed, run_child
from simulator.fleet import choose_fleet
from simulator.sessions import ATTRIBUTION

__all__ = ["demo"]

# Of the direct run: where Magika is fastest of 1 to 32, with one thread and with two.
_BATCH_ROWS = 4


@dataclass(frozen=True, slots=True)
class _Options:
    example: Example
    rows: int
    vehicles: int
    seed: int
    speed_up: float
    broker: BrokerChoice
    store: str


def demo(
    example: Annotated[Literal["magika", "digits"], typer.Option(help="What the cars compute.")] = "magika",
    rows: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Rows of the job.")] = None,
    vehicles: Annotated[int, typer.Option(min=3, max=500, help="Cars.")] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the day, the cars and the rows.")] = 1,
    speed_up: Annotated[float, typer.Option(min=1, help="How much faster than life the cars come and go.")] = 360.0,
    broker: Annotated[BrokerChoice, typer.Option(help="auto takes Mosquitto when it is installed.")] = "auto",
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="IDLEWHEEL_STORE", help="influx://HOST:PORT/DATABASE, for telemetry.")
    ] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a screen, for logs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; all else as errors.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary as JSON.")] = None,
) -> None:
    """Watch a fleet of cars compute something real and right, while cars leave.

    \b
    Example:
      idlewheel demo --example digits --seed 7
    """
    console = Console(stderr=as_json, highlight=False)
    chosen = EXAMPLES[example]
    options = _Options(chosen, rows or chosen.default_rows, vehicles, seed, speed_up, broker, store)
    try:
        made = asyncio.run(_run(options, console, plain=plain or not console.is_terminal))
    except (ChildFailed, BrokerFailed, IdlewheelError, DemoFailed) as error:
        typer.echo(f"idlewheel demo: {error}", err=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
    print_summary(console, made)
    text = json_text(made)
    if report is not None:
        _write(report, text)
    if as_json:
        typer.echo(text)
    raise typer.Exit(0 if made.all_right else 1)


def _write(report: Path, text: str) -> None:
    try:
        report.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{report} cannot be written: {error.strerror or error}") from None


async def _run(options: _Options, console: Console, *, plain: bool) -> Report:
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: what was started is ended on the way out.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    example = options.example
    model, rows = example.model(), example.rows(options.rows, options.seed)
    story, headline = Story(len(rows)), Headline(f"Idlewheel · {example.name} on {options.vehicles} cars")
    with (
        tempfile.TemporaryDirectory(prefix="idlewheel-demo-", ignore_cleanup_errors=True) as folder,
        showing(console, headline, story, lambda row: example.picture(rows, row), plain=plain) as show,
    ):
        _introduce(console, options, len(rows))
        return await _play(options, Path(folder), model, rows, story, show)


def _introduce(console: Console, options: _Options, rows: int) -> None:
    example = options.example
    console.print(f"{example.name}: {example.description}, {rows:,} rows; {example.attribution}", soft_wrap=True)
    console.print(f"{options.vehicles} cars, {options.speed_up:g} times as fast as life; {ATTRIBUTION}", soft_wrap=True)


async def _play(
    options: _Options, directory: Path, model: bytes, rows: ExampleRows, story: Story, show: Show
) -> Report:
    example, fleet = options.example, choose_fleet(options.vehicles, options.seed)
    show.phase("starting")
    async with build_stage(directory, fleet, options.speed_up, options.broker, options.store) as stage:
        kind = stage.local.broker.kind
        show.phase(f"agents connect ({kind} broker)")
        player = Player(stage, example, rows, story, show)
        job, receipts, wall_s = await player.play(model)
    # Alone on the machine, as the fleet was.
    show.phase("directly, in one process")
    direct, direct_s, threads = await _run_directly(directory, model, rows.inputs, _BATCH_ROWS)
    right = matching_rows(player.collected, direct, np.ones(len(rows), dtype=np.bool_))
    if (unlike := player.collected.came & ~right).any():
        # A kernel for a single row adds up in another order than one for many, and cars get single rows too: what
        # differs is right when it is what the runtime gives for the row alone.
        inputs = {name: array[unlike] for name, array in rows.inputs.items()}
        alone, _, _ = await _run_directly(directory, model, inputs, 1)
        right |= matching_rows(player.collected, alone, unlike)
    show.phase("done")
    agreement = Agreement(*count_agreement(rows, example.answers(direct)), example.compared_with)
    run = Run(options.seed, kind, options.speed_up, wall_s, direct_s, threads)
    return make_report(run, story, job, receipts, count(player.collected, right), agreement, example)


async def _run_directly(
    directory: Path, model: bytes, inputs: dict[str, Array], batch_rows: int
) -> tuple[dict[str, Array], float, int]:
    """Outputs, seconds without loading the model, and threads, as many as there are cores for us."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = [directory / name for name in ("direct.onnx", "direct-rows", "direct-outputs")]
    files[0].write_bytes(model)
    files[1].write_bytes(encode_bundle(inputs))
    arguments = ["-m", "idlewheel.demo.direct", *map(str, files), "--threads", str(threads)]
    arguments += ["--batch-rows", str(batch_rows)]
    async with run_child("the direct run", arguments, directory / "direct.log") as child:
        seconds = float((await child.read())["seconds"])
        await child.wait()
    return decode_bundle(files[2].read_bytes()), seconds, threads
