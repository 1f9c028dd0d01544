"""`idlewheel store check URL`: whether telemetry can be kept there, in plain words. Asks no coordinator."""

from typing import Annotated

import typer

from idlewheel.cli_options import Json, json_text
from idlewheel.errors import BadInput

__all__ = ["store_app"]

store_app = typer.Typer(help="Where telemetry is kept.", no_args_is_help=True, rich_markup_mode=None)


@store_app.callback()
def store() -> None:
    """Where telemetry is kept."""


@store_app.command()
def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="influx://[USER:PASSWORD@]HOST:PORT/DATABASE")],
    as_json: Json = False,
) -> None:
    """Say what a server is and supports, what is missing, and what to do. Ends with 1 when something is missing.

    \b
    Example:
      idlewheel store check influx://127.0.0.1:8086/fleet
    """
    from coordinator.adapters.influx_check import examine  # noqa: PLC0415 - with what follows, only needed here
    from coordinator.adapters.influx_server import InfluxAddress  # noqa: PLC0415
    from coordinator.errors import StoreUnavailable  # noqa: PLC0415

    try:
        address = InfluxAddress.parse(url)
    except StoreUnavailable as error:
        raise BadInput(error.detail) from None
    findings = examine(address)
    if as_json:
        typer.echo(json_text(findings))
    else:
        for finding in findings:
            typer.echo(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.name}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
