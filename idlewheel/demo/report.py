"""What the demo says at the end: the report as data, and as lines for a person. Pure."""

from collections.abc import Sequence

from msgspec import Struct

from fleet_wire.api import JobView, StatementLine
from idlewheel.demo.comparison import TOLERANCE_TEXT, Comparison
from idlewheel.demo.story import Story
from idlewheel.examples import Example

__all__ = ["CURRENCY", "Agreement", "Report", "Run", "make_report", "summary_lines"]

CURRENCY = "EUR"


class Agreement(Struct, frozen=True):
    """How many of the judged answers agree with what is known of the rows from elsewhere."""

    agreeing: int
    judged: int
    compared_with: str

    @property
    def share(self) -> float:
        """Agreeing answers, 0 to 1."""
        return self.agreeing / self.judged if self.judged else 0.0


class Run(Struct, frozen=True):
    """What was run, and how long it took: `wall_s` on the fleet, `direct_s` in one process with `direct_threads`."""

    seed: int
    broker: str
    speed_up: float
    wall_s: float
    direct_s: float
    direct_threads: int


class Report(Struct, frozen=True):
    """The summary. Energy is what the cars used above what they would have used anyway."""

    rows: int
    rows_right: int
    rows_wrong: int
    rows_missing: int
    rows_twice: int
    vehicles: int
    vehicles_computed: int
    departures: int
    killed: int
    rows_released_again: int
    rows_computed_again: int
    wall_s: float
    direct_s: float
    direct_threads: int
    energy_wh: float
    energy_cost: float
    earned: float
    currency: str
    agreement_share: float
    agreement: Agreement
    tolerance: str
    model: str
    attribution: str
    broker: str
    seed: int
    speed_up: float
    all_right: bool


def make_report(
    run: Run,
    story: Story,
    job: JobView,
    receipts: Sequence[StatementLine],
    comparison: Comparison,
    agreement: Agreement,
    example: Example,
) -> Report:
    """Put together what was counted, and what the receipts of each car add up to.

    The run is all right when the job is done, every row is right and came once, and the receipts hold all of them.
    """
    energy_mwh, cost_micro, pay_micro, rows_paid = (
        sum(getattr(line, name) for line in receipts)
        for name in ("energy_mwh", "energy_pay_micro", "pay_micro", "rows")
    )
    settled = (rows_paid, energy_mwh, pay_micro) == (job.rows_done, job.energy_mwh, job.pay_micro)
    return Report(
        rows=comparison.rows,
        rows_right=comparison.right,
        rows_wrong=comparison.wrong,
        rows_missing=comparison.missing,
        rows_twice=comparison.twice,
        vehicles=len(story.cars),
        vehicles_computed=job.vehicles,
        departures=story.departures,
        killed=len(story.killed),
        rows_released_again=job.rows_released_again,
        rows_computed_again=job.rows_duplicate,
        wall_s=round(run.wall_s, 3),
        direct_s=round(run.direct_s, 3),
        direct_threads=run.direct_threads,
        energy_wh=energy_mwh / 1000,
        energy_cost=cost_micro / 1_000_000,
        earned=pay_micro / 1_000_000,
        currency=CURRENCY,
        agreement_share=round(agreement.share, 4),
        agreement=agreement,
        tolerance=TOLERANCE_TEXT,
        model=example.name,
        attribution=example.attribution,
        broker=run.broker,
        seed=run.seed,
        speed_up=run.speed_up,
        all_right=job.state == "done" and comparison.all_right and settled,
    )


def summary_lines(report: Report) -> list[tuple[str, str]]:
    """Label and text of each line of the summary."""
    verdict = "all rows are right" if report.all_right else "NOT ALL ROWS ARE RIGHT"
    agreement = report.agreement
    return [
        (
            "result",
            f"{verdict}: {report.rows_right:,} of {report.rows:,} equal the direct run, {report.rows_wrong:,} differ, "
            f"{report.rows_missing:,} missing, {report.rows_twice:,} twice",
        ),
        (
            "fleet",
            f"{report.vehicles} cars, {report.vehicles_computed} computed; {report.departures} left while they held "
            f"work, {report.killed} killed; {report.rows_released_again:,} rows leased again",
        ),
        (
            "time",
            f"{report.wall_s:.1f} s on the fleet, {report.direct_s:.1f} s directly in one process with "
            f"{report.direct_threads} threads, both on this machine",
        ),
        (
            "energy",
            f"{report.energy_wh:.3f} Wh above what the cars would have used anyway, which cost "
            f"{report.energy_cost:.6f} {report.currency}",
        ),
        ("earned", f"{report.earned:.6f} {report.currency} by the owners together, that cost refunded with it"),
        (
            "answers",
            f"{agreement.agreeing:,} of {agreement.judged:,} ({agreement.share:.1%}) agree with "
            f"{agreement.compared_with}",
        ),
    ]
