"""`idlewheel tariff check FILE`: whether a coordinator would start with this tariff file. Asks no coordinator."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from idlewheel.errors import BadInput

__all__ = ["tariff_app"]

tariff_app = typer.Typer(help="What energy costs where and when.", no_args_is_help=True, rich_markup_mode=None)


@tariff_app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Tariffs as .json, or one price series as .csv.")],
    timezone: Annotated[str, typer.Option(help="The fleet's timezone (IANA name), as the coordinator has it.")] = "UTC",
) -> None:
    """Say whether a tariff file leaves no hole, and what energy costs now.

    \b
    Example:
      idlewheel tariff check prices.csv
      idlewheel tariff check tariffs.json --timezone Europe/Oslo
    """
    from coordinator.errors import BadTariff  # noqa: PLC0415 - with what follows, only needed here
    from coordinator.tariff_file import read_tariffs  # noqa: PLC0415

    try:
        tariffs = read_tariffs(file, timezone)
    except BadTariff as fault:
        raise BadInput(str(fault)) from None
    now_ms = time.time_ns() // 1_000_000
    for name, price in [
        ("everywhere else" if tariffs.regions else "everywhere", tariffs.default),
        *tariffs.regions.items(),
    ]:
        micro = price.at(now_ms)
        cost = "the price is not known now" if micro is None else f"{micro:,} micro-units a kWh now"
        until = "" if price.known_until_ms is None else f", known until {_utc(price.known_until_ms)}"
        typer.echo(f"{name}: {cost}{until}")


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
