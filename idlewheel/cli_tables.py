"""Jobs and vehicles as tables on standard output, without colours where that is no terminal. Only prints."""

from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from fleet_wire.api import JobView, ReceiptView, StatementLine, VehicleView
from idlewheel.words import job_note

__all__ = ["print_jobs", "print_receipts", "print_statement", "print_vehicles"]

_PIPE_COLUMNS = 200
_MOST_COLUMNS = 1000
_BREAKABLE = {"NAME", "NOTE"}
_BROKEN_COLUMNS = 10  # what they keep at least
_Row = Sequence[str]
_MONEY = ("energy_pay_micro", "fee_pay_micro", "pay_micro")


def print_jobs(views: Sequence[JobView]) -> None:
    """One line a job, and what keeps it."""
    if not views:
        return typer.echo("no job yet: give one with `idlewheel submit MODEL.onnx ROWS.npz -o OUT.npz`")
    whole: list[_Row] = []
    short: list[_Row] = []
    today = datetime.now(UTC).astimezone().date()
    for view in views:
        begun = datetime.fromtimestamp(view.created_ms / 1000, UTC).astimezone()
        counts = (view.state, str(view.rows), str(view.rows_done), str(view.vehicles))
        money = (_thousandths(view.energy_mwh), _millionths(view.pay_micro))
        shortly = f"{begun:%H:%M:%S}" if begun.date() == today else f"{begun:%Y-%m-%d}"
        whole.append((view.id, view.name, *counts, *money, f"{begun:%Y-%m-%d %H:%M:%S}", job_note(view)))
        short.append((view.id, view.name, *counts, shortly, job_note(view)))
    titles = ("JOB", "NAME", "STATE", ">ROWS", ">DONE", ">CARS")
    return _show(
        _table((*titles, ">ENERGY Wh", ">PAY", "BEGAN", "NOTE"), whole), _table((*titles, "BEGAN", "NOTE"), short)
    )


def print_vehicles(views: Sequence[VehicleView]) -> None:
    """One line a vehicle; where there is little room, of the reason only its code."""
    if not views:
        return typer.echo("no car yet: `idlewheel agent` is one, `idlewheel up --vehicles 4` simulates some")
    whole: list[_Row] = []
    short: list[_Row] = []
    for view in views:
        row = (
            view.id,
            _yes(view.online),
            _yes(view.eligible),
            "" if view.charge_percent is None else f"{view.charge_percent:.0f}",
            str(view.leases),
            "" if view.rows_per_s is None else f"{view.rows_per_s:.1f}",
            str(view.rows_done),
        )
        reason = view.reason or ""
        trust = f"{view.trust}, {view.convictions} x convicted" if view.convictions else str(view.trust)
        whole.append((*row, _millionths(view.pay_micro), trust, reason))
        short.append((*row, reason.partition(":")[0]))
    titles = ("CAR", "ONLINE", "WORKS", ">CHARGE %", ">CHUNKS", ">ROWS/S", ">ROWS")
    return _show(_table((*titles, ">PAY", ">TRUST", "WHY NOT"), whole), _table((*titles, "WHY NOT"), short))


_SUMS = (">ROWS", ">COMPUTING h", ">ENERGY Wh", ">ENERGY COST", ">FEE", ">EARNED")
_NO_RECEIPTS = "nothing is on record for this: no car has computed any of it yet"


def print_statement(by: str, lines: Sequence[StatementLine]) -> None:
    """One line an owner, vehicle, job or month, and the sum. Energy costs and earnings are in the currency."""
    if not lines:
        return typer.echo(_NO_RECEIPTS)
    rows: list[_Row] = [(line.of or "(not on record)", *_sums([line])) for line in lines]
    table = _table((by.upper(), *_SUMS), [*rows, ("together", *_sums(lines))] if len(lines) > 1 else rows)
    if len(lines) > 1:
        table.rows[-1].style = "bold"
    return _show(table)


def print_receipts(receipts: Sequence[ReceiptView]) -> None:
    """One line a chunk."""
    if not receipts:
        return typer.echo(_NO_RECEIPTS)
    whole: list[_Row] = []
    short: list[_Row] = []
    for receipt in receipts:
        leased, sums = _local_time(receipt.granted_ms), _sums([receipt])
        whole.append(
            (
                leased,
                receipt.owner or "(not on record)",
                receipt.vehicle,
                str(receipt.consent_version),
                receipt.job,
                str(receipt.chunk),
                _millionths(receipt.energy_micro_per_kwh),
                _millionths(receipt.pay_micro_per_h),
                *sums,
            )
        )
        short.append((leased, receipt.vehicle, receipt.job, str(receipt.chunk), sums[0], sums[2], sums[-1]))
    titles = ("LEASED", "OWNER", "CAR", ">CONSENT", "JOB", ">CHUNK", ">A kWh", ">AN HOUR", *_SUMS)
    return _show(
        _table(titles, whole), _table(("LEASED", "CAR", "JOB", ">CHUNK", ">ROWS", ">ENERGY Wh", ">EARNED"), short)
    )


def _sums(lines: Sequence[StatementLine | ReceiptView]) -> list[str]:
    return [
        str(sum(line.rows for line in lines)),
        f"{sum(line.compute_us for line in lines) / 3.6e9:.6f}",
        _thousandths(sum(line.energy_mwh for line in lines)),
        *(_millionths(sum(getattr(line, name) for line in lines)) for name in _MONEY),
    ]


def _table(titles: Sequence[str], rows: Sequence[_Row]) -> Table:
    """A table with figures (`>`) to the right. Names and notes may be broken over lines, everything else not."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(titles):
        name = title.removeprefix(">")
        longest = max(cell_len(row[place]) for row in rows)
        table.add_column(
            name,
            justify="left" if name == title else "right",
            overflow="fold",
            min_width=max(cell_len(name), min(longest, _BROKEN_COLUMNS) if name in _BREAKABLE else longest),
        )
    for row in rows:
        table.add_row(*row)
    return table


def _show(whole: Table, short: Table | None = None) -> None:
    """Print the whole table where there is room for it, else the short one."""
    # Names come from others: nothing in them is markup. In a pipe there is no width to fit into.
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=_PIPE_COLUMNS)
    unlimited = console.options.update(width=_MOST_COLUMNS)
    table = whole
    if short is not None and _narrowest(whole) > console.width:
        table = short
    if _narrowest(table) > console.width:  # rich would cut words short, ids among them; the terminal wraps whole lines
        console.width = console.measure(table, options=unlimited).maximum
    with console.capture() as text:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in text.get().splitlines()))  # a pipe needs no padding


def _narrowest(table: Table) -> int:
    """Columns that a table needs. Rich's own measure never breaks a word, though it does so when it prints."""
    return sum((column.min_width or 0) + 2 for column in table.columns) - 2


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _thousandths(value: int) -> str:
    return f"{value / 1000:.3f}"


def _millionths(value: int) -> str:
    return f"{value / 1_000_000:.6f}"


def _local_time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
