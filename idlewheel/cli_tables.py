"""Jobs and vehicles as tables on standard output, without colours where that is no terminal. Only prints."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from fleet_wire.api import JobView, ReceiptView, StatementLine, VehicleView

__all__ = ["print_jobs", "print_receipts", "print_statement", "print_vehicles"]

_PIPE_COLUMNS = 200
_MONEY = ("energy_pay_micro", "fee_pay_micro", "pay_micro")


def print_jobs(views: Sequence[JobView]) -> None:
    """One line a job."""
    table = _table("JOB", "NAME", "STATE", ">ROWS", ">DONE", ">CARS", ">ENERGY Wh", ">PAY", "BEGAN", "NOTE")
    for view in views:
        table.add_row(
            view.id,
            view.name,
            view.state,
            str(view.rows),
            str(view.rows_done),
            str(view.vehicles),
            _thousandths(view.energy_mwh),
            _millionths(view.pay_micro),
            _local_time(view.created_ms),
            view.error or view.waiting_for or "",
        )
    _show(table)


def print_vehicles(views: Sequence[VehicleView]) -> None:
    """One line a vehicle."""
    table = _table("CAR", "ONLINE", "WORKS", ">CHARGE %", ">CHUNKS", ">ROWS/S", ">ROWS", ">PAY", "WHY NOT")
    for view in views:
        table.add_row(
            view.id,
            _yes(view.online),
            _yes(view.eligible),
            "" if view.charge_percent is None else f"{view.charge_percent:.0f}",
            str(view.leases),
            "" if view.rows_per_s is None else f"{view.rows_per_s:.1f}",
            str(view.rows_done),
            _millionths(view.pay_micro),
            view.reason or "",
        )
    _show(table)


_SUMS = (">ROWS", ">COMPUTING h", ">ENERGY Wh", ">ENERGY COST", ">FEE", ">EARNED")


def print_statement(by: str, lines: Sequence[StatementLine]) -> None:
    """One line an owner, vehicle, job or month, and the sum. Energy costs and earnings are in the currency."""
    table = _table(by.upper(), *_SUMS)
    for line in lines:
        table.add_row(line.of or "(not on record)", *_sums([line]))
    if len(lines) != 1:
        table.add_row("together", *_sums(lines), style="bold")
    _show(table)


def print_receipts(receipts: Iterable[ReceiptView]) -> None:
    """One line a chunk."""
    table = _table("LEASED", "OWNER", "CAR", "CONSENT", "JOB", ">CHUNK", ">A kWh", ">AN HOUR", *_SUMS)
    for receipt in receipts:
        table.add_row(
            _local_time(receipt.granted_ms),
            receipt.owner or "(not on record)",
            receipt.vehicle,
            str(receipt.consent_version),
            receipt.job,
            str(receipt.chunk),
            _millionths(receipt.energy_micro_per_kwh),
            _millionths(receipt.pay_micro_per_h),
            *_sums([receipt]),
        )
    _show(table)


def _sums(lines: Sequence[StatementLine | ReceiptView]) -> list[str]:
    return [
        str(sum(line.rows for line in lines)),
        f"{sum(line.compute_us for line in lines) / 3.6e9:.6f}",
        _thousandths(sum(line.energy_mwh for line in lines)),
        *(_millionths(sum(getattr(line, name) for line in lines)) for name in _MONEY),
    ]


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title.removeprefix(">"), justify="right" if title.startswith(">") else "left")
    return table


def _show(table: Table) -> None:
    # Names come from others: nothing in them is markup. In a pipe there is no width to fit into.
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=_PIPE_COLUMNS)
    size = console.measure(table, options=console.options.update(width=_PIPE_COLUMNS))
    if size.minimum > console.width:  # rich would cut words short, ids among them; the terminal wraps whole lines
        console.width = size.maximum
    console.print(table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _thousandths(value: int) -> str:
    return f"{value / 1000:.3f}"


def _millionths(value: int) -> str:
    return f"{value / 1_000_000:.6f}"


def _local_time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
