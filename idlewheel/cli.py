"""The command line: parses, calls the client, says in one line what went wrong. Never talks HTTP or MQTT itself.

Exit codes: 0 all is well, 1 the job did not end well, 2 bad input, 3 no coordinator, 130 interrupted.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from idlewheel.cli_lazy import Program
from idlewheel.cli_options import Json, Url, json_text
from idlewheel.cli_owner import owner_app
from idlewheel.cli_store import store_app
from idlewheel.cli_tariff import tariff_app
from idlewheel.errors import BadInput, IdlewheelError, JobFailed, Unreachable
from idlewheel.money_text import micro

if TYPE_CHECKING:
    from fleet_wire.api import JobView
    from idlewheel.client import Client, Job

__all__ = ["app", "main"]

_NOT_WELL: Final = 1
_BAD_INPUT: Final = 2
_UNREACHABLE: Final = 3
_INTERRUPTED: Final = 130

app = typer.Typer(
    name="idlewheel",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(owner_app, name="owner")
app.add_typer(store_app, name="store")
app.add_typer(tariff_app, name="tariff")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415 - only needed here

        typer.echo(f"idlewheel {version('idlewheel')}")
        raise typer.Exit


@app.callback()
def _program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """An inference cloud made of parked cars: run ONNX models on a fleet."""


JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that `submit` or `jobs` shows.")]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="OUT", help="Where the outputs go: .npz, or .npy for a single output."),
]


@app.command()
def submit(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help=".npz with an array for each input, or .npy for one.")],
    out: Out = None,
    name: Annotated[str, typer.Option(help="A name to know the job by.")] = "",
    priority: Annotated[int, typer.Option(help="Higher goes first, -100 to 100.")] = 0,
    chunk_rows: Annotated[
        int | None, typer.Option(help="Rows a car gets at once; sized to each car otherwise.")
    ] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
    purpose: Annotated[str, typer.Option(help="What it is for: only cars whose owners agreed to it work.")] = "general",
    price_ceiling: Annotated[
        float | None, typer.Option(metavar="PRICE", help="No work where a kWh costs more, as in 0.25.")
    ] = None,
    vehicle_share: Annotated[
        float, typer.Option(metavar="SHARE", help="The most of its rows that one car may get, as in 0.1.")
    ] = 1.0,
    max_attempts: Annotated[int, typer.Option(help="Give up a row that failed on so many cars, 1 to 100.")] = 3,
    verify: Annotated[
        str,
        typer.Option(metavar="RULE", help="How rows are verified: none, canaries, adaptive, or quorum:N."),
    ] = "none",
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="OUT=ABS:REL", help="How far two cars may differ in an output, as in scores=0.001:0.01."),
    ] = None,
    wrong_share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Wrong rows that `adaptive` may let through; 0.0001.")
    ] = None,
    canary_share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Rows that are known beforehand with `canaries`; 0.02.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and leave.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run a model over rows and write the outputs.

    \b
    Example:
      idlewheel submit model.onnx rows.npz -o out.npz
      idlewheel submit model.onnx rows.npz -o out.npz --price-ceiling 0.25
      idlewheel submit model.onnx rows.npz -o out.npz --verify adaptive --tolerance scores=0.001:0.01
    """
    if out is None and not no_wait:
        raise BadInput("say where the outputs go, as in -o out.npz, or leave at once with --no-wait")
    if out is not None and no_wait:
        raise BadInput("-o needs the outputs and --no-wait leaves before: give one of them")
    _check_out(out)
    from idlewheel.verification_text import parsed_tolerances  # noqa: PLC0415 - loads the protocol

    ceiling = None if price_ceiling is None else micro(price_ceiling)
    with _client(url) as client:
        job = client.submit(
            model,
            rows,
            name=name,
            priority=priority,
            chunk_rows=chunk_rows,
            deadline_s=deadline_s,
            purpose=purpose,
            price_ceiling_micro_per_kwh=ceiling,
            vehicle_share=vehicle_share,
            max_attempts=max_attempts,
            verify=verify,
            tolerances=parsed_tolerances(tolerance or ()),
            wrong_share=wrong_share,
            canary_share=canary_share,
            trace=_trace(),
        )
        if out is None:
            _print(json_text(job.status()) if as_json else job.id)
        else:
            _fetch(job, out, as_json=as_json)


@app.command()
def result(
    job: JobId,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Where to: .npz, or .npy for one output.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Also when rows are missing: those become NaN, zero or empty.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Wait for a job and write its outputs.

    \b
    Example:
      idlewheel result JOB -o out.npz
      idlewheel result JOB -o out.npz --partial
    """
    _check_out(out)
    with _client(url) as client:
        _fetch(client.job(job), out, as_json=as_json, partial=partial)


@app.command()
def jobs(as_json: Json = False, url: Url = None) -> None:
    """List jobs, those that run first.

    \b
    Example:
      idlewheel jobs
      idlewheel jobs --json
    """
    with _client(url) as client:
        views = client.jobs()
    if as_json:
        return _print(json_text(views))
    from idlewheel.cli_tables import print_jobs  # noqa: PLC0415 - rich is slow to load

    return print_jobs(views)


@app.command()
def vehicles(as_json: Json = False, url: Url = None) -> None:
    """List the cars, and why some get no work.

    \b
    Example:
      idlewheel vehicles
      idlewheel vehicles --json
    """
    with _client(url) as client:
        views = client.vehicles()
    if as_json:
        return _print(json_text(views))
    from idlewheel.cli_tables import print_vehicles  # noqa: PLC0415 - rich is slow to load

    return print_vehicles(views)


@app.command()
def why(
    vehicle: Annotated[str | None, typer.Argument(metavar="VEHICLE", help="A car's id.")] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="A job's id, instead of a car's.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say why a car works or does not, or where a job stands.

    \b
    Example:
      idlewheel why car-0007
      idlewheel why --job JOB
    """
    if (vehicle is None) == (job is None):
        raise BadInput("name one car, as in `idlewheel why car-0007`, or one job, as in `idlewheel why --job JOB`")
    from idlewheel.words import why_job, why_running_job, why_vehicle  # noqa: PLC0415 - loads the protocol

    with _client(url) as client:
        if vehicle is not None:
            view = client.vehicle(vehicle)
            _print(json_text(view) if as_json else why_vehicle(view))
        elif job is not None:
            status = client.job(job).status()
            if status.state == "running":
                explanation = client.job(job).why()
                _print(json_text(explanation) if as_json else why_running_job(explanation))
            else:
                _print(json_text(status) if as_json else why_job(status))


@app.command()
def cancel(job: JobId, as_json: Json = False, url: Url = None) -> None:
    """End a job early.

    \b
    Example:
      idlewheel cancel JOB
    """
    from idlewheel.words import why_job  # noqa: PLC0415 - loads the protocol

    with _client(url) as client:
        view = client.job(job).cancel()
    _print(json_text(view) if as_json else why_job(view))


@app.command()
def status(as_json: Json = False, url: Url = None) -> None:
    """Say whether the coordinator is well.

    \b
    Example:
      idlewheel status
    """
    from idlewheel.words import health_lines  # noqa: PLC0415 - loads the protocol

    with _client(url) as client:
        health = client.health()
    _print(json_text(health) if as_json else health_lines(health))
    if health.status != "ok":
        raise typer.Exit(_NOT_WELL)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        app(arguments, prog_name="idlewheel")
    except JobFailed as error:
        _leave(_NOT_WELL, error, f"what is there of it: idlewheel result {error.job} -o OUT.npz --partial")
    except Unreachable as error:
        _leave(_UNREACHABLE, error)
    except IdlewheelError as error:
        _leave(_BAD_INPUT, error)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _client(url: str | None) -> "Client":
    from idlewheel.client import Client  # noqa: PLC0415 - httpx and numpy are slow to load

    return Client(url)


def _trace() -> dict[str, str]:
    """The trace that CI tools start a command in; the standard has a malformed one ignored."""
    from idlewheel.traces import environment_trace  # noqa: PLC0415 - loads the protocol

    try:
        return environment_trace(os.environ)
    except BadInput as error:
        typer.echo(f"idlewheel: TRACEPARENT is ignored: {error}", err=True)
        return {}


def _check_out(out: Path | None) -> None:
    from idlewheel.rows_files import check_output  # noqa: PLC0415 - numpy is slow to load

    if out is not None:
        check_output(out)


def _fetch(job: "Job", out: Path, *, as_json: bool, partial: bool = False) -> None:
    """Wait with progress on a terminal, and write the outputs; of a partial result say what is missing."""
    from idlewheel.rows_files import save_rows  # noqa: PLC0415 - numpy is slow to load

    try:
        view = _wait(job)
        save_rows(out, job.result(partial=partial))
    except KeyboardInterrupt:
        typer.echo(
            f"\njob {job.id} does not end by that; fetch it with:\n  idlewheel result {job.id} -o {out}", err=True
        )
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        _print(json_text(view))
    if view.rows_done < view.rows:
        from idlewheel.words import missing_rows  # noqa: PLC0415 - loads the protocol

        typer.echo(missing_rows(view, job.failures()), err=True)


def _wait(job: "Job") -> "JobView":
    if not sys.stderr.isatty():
        return job.wait()
    from idlewheel.cli_progress import wait_with_progress  # noqa: PLC0415 - rich is slow to load

    return wait_with_progress(job)


def _print(text: str) -> None:
    typer.echo(text)


def _leave(code: int, error: Exception, hint: str = "") -> None:
    typer.echo(f"idlewheel: {' '.join(str(error).split())}", err=True)
    if hint:
        typer.echo(hint, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
