"""The demo's summary: its energy and earnings are those of the receipts, and receipts that miss something are told."""

import msgspec

from fleet_wire.api import StatementLine
from idlewheel.demo.comparison import Comparison
from idlewheel.demo.report import Agreement, Report, Run, make_report, summary_lines
from idlewheel.demo.story import Story
from idlewheel.examples import EXAMPLES
from tests.unit.test_story import JOB

RECEIPTS = [StatementLine("car-01", 60, 9, 1_500, 375, 3), StatementLine("car-02", 40, 6, 500, 125, 2)]


def report(*receipts: StatementLine) -> Report:
    job = msgspec.structs.replace(JOB, state="done", rows_done=100, energy_mwh=2_000, pay_micro=505, vehicles=2)
    run = Run(1, "mosquitto", 1.0, 1.0, 1.0, 1)
    compared = Comparison(rows=100, right=100, wrong=0, missing=0, twice=0)
    return make_report(run, Story(100), job, receipts, compared, Agreement(1, 1, "x"), EXAMPLES["digits"])


def test_what_is_told_of_energy_and_money_is_the_sum_of_the_receipts() -> None:
    made = report(*RECEIPTS)
    assert (made.energy_wh, made.energy_cost, made.earned, made.all_right) == (2.0, 0.0005, 0.000505, True)
    lines = dict(summary_lines(made))
    assert lines["energy"].endswith("2.000 Wh above what the cars would have used anyway, which cost 0.000500 EUR")
    assert lines["earned"] == "0.000505 EUR by the owners together, that cost refunded with it"


def test_a_receipt_that_is_missing_or_wrong_is_not_all_right() -> None:
    assert not report(RECEIPTS[0]).all_right
    assert not report(RECEIPTS[0], msgspec.structs.replace(RECEIPTS[1], fee_pay_micro=3)).all_right
