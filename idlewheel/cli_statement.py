"""`idlewheel owner statement`: what cars computed, what the energy cost, what was earned, as it is on record."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from idlewheel.cli_options import Json, Url, json_text
from idlewheel.errors import BadInput

if TYPE_CHECKING:
    from fleet_wire.api import ReceiptView, StatementLine

__all__ = ["statement"]

By = Literal["owner", "vehicle", "job", "month", "receipt"]


def statement(
    owner: Annotated[str | None, typer.Option(metavar="O", help="Only this owner's cars.")] = None,
    vehicle: Annotated[str | None, typer.Option(metavar="V", help="Only this car.")] = None,
    job: Annotated[str | None, typer.Option(metavar="J", help="Only this job.")] = None,
    month: Annotated[str | None, typer.Option(metavar="M", help="Only this local month, such as 2026-11.")] = None,
    by: Annotated[By, typer.Option(help="A line for each of these; `receipt` is one for each chunk.")] = "vehicle",
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write lines as CSV here.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show what cars computed and earned.

    Money is in the currency of the tariff, energy above what cars would have used anyway.

    \b
    Example:
      idlewheel owner statement --owner ada --month 2026-11
      idlewheel owner statement --month 2026-11 --by receipt --csv november.csv
    """
    from idlewheel.cli_tables import print_receipts, print_statement  # noqa: PLC0415 - with the client slow to load
    from idlewheel.client import Client  # noqa: PLC0415

    if csv_file is not None and as_json:
        raise BadInput("--csv writes a file and --json prints: give one of them")
    only = {"owner": owner, "vehicle": vehicle, "job": job, "month": month}
    with Client(url) as client:
        receipts = list(client.receipts(**only)) if by == "receipt" else []
        lines = [] if by == "receipt" else client.statement(by, **only)
    if csv_file is not None:
        _write_csv(csv_file, by, receipts or lines)
    elif as_json:
        typer.echo(json_text(receipts or lines))
    elif by == "receipt":
        print_receipts(receipts)
    else:
        print_statement(by, lines)


def _write_csv(path: Path, by: str, lines: "Iterable[StatementLine | ReceiptView]") -> None:
    from msgspec.structs import fields  # noqa: PLC0415 - as above

    from fleet_wire.api import ReceiptView, StatementLine  # noqa: PLC0415

    names = [each.name for each in fields(ReceiptView if by == "receipt" else StatementLine)]
    names = [name for name in names if name != "cursor"] + ["pay_micro"]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([by if name == "of" else name for name in names])
            writer.writerows([getattr(line, name) for name in names] for line in lines)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
