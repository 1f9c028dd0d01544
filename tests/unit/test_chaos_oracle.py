"""The oracle of the fault harness sees each kind of wrong: a run that went well is doctored, one thing at a time."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from fleet_wire.api import JobView, PolicyView, ReceiptView, StatementLine
from fleet_wire.policy import OwnerPolicy
from tests.system.chaos.oracle import Collected, Facts, LeaseFacts, objections

JOB, ROWS = "job-1", 6
EXPECTED = {"y": np.arange(ROWS, dtype=np.float32), "label": np.arange(ROWS)}
STATUS = JobView(JOB, "", "m", "done", ROWS, ROWS, 0, 0, 9_000, None, 0, 0, 0.9, 9, 21, 1)
# 3.6 s of computing earn 20 micro-units, and 4 mWh cost 1; what is left over of the first counts for the second.
LEASES = [
    LeaseFacts(JOB, 0, 0, 4, "car-1", 1_000, "done", 1, 250_000, 20_000, 4, 1_900_000, 2, 0, 10),
    LeaseFacts(JOB, 1, 4, 6, "car-1", 2_000, "done", 1, 250_000, 20_000, 2, 1_700_000, 2, 1, 10),
]
POLICY = OwnerPolicy(version=1, owner="ada", purposes=["general"])
REVOKED = OwnerPolicy(version=2, owner="ada", purposes=[], revoked=True)


def receipt(lease: LeaseFacts) -> ReceiptView:
    return ReceiptView(
        f"{lease.job}/{lease.chunk}",
        "ada",
        lease.vehicle,
        lease.job,
        lease.chunk,
        "2026-11",
        lease.granted_ms,
        lease.consent_version,
        lease.rows_done,
        lease.compute_us,
        lease.energy_mwh,
        lease.energy_micro_per_kwh,
        lease.pay_micro_per_h,
        lease.energy_pay_micro,
        lease.fee_pay_micro,
    )


def went_well() -> Facts:
    outputs = {name: array.copy() for name, array in EXPECTED.items()}
    sums = (ROWS, 3_600_000, 4, 1, 20)
    return Facts(
        expected={JOB: EXPECTED},
        collected={
            JOB: Collected(STATUS, outputs, [1] * ROWS, {name: array.copy() for name, array in outputs.items()})
        },
        kept={JOB: [0, 1, 2, 3, 5, 4]},
        last_accepted_ms={"car-1": 4_700},
        leases=list(LEASES),
        histories={"car-1": [PolicyView("car-1", REVOKED, "owner", 3_000), PolicyView("car-1", POLICY, "owner", 500)]},
        revoked=["car-1"],
        receipts=[receipt(lease) for lease in LEASES],
        statements={
            by: [StatementLine(of, *sums)]
            for by, of in (("vehicle", "car-1"), ("job", JOB), ("owner", "ada"), ("month", "2026-11"))
        },
        telemetry_acknowledged={("car-1", 1, 0)},
        telemetry_stored={("car-1", 1, 0), ("car-1", 1, 1)},
        rows_acknowledged={JOB: {0, 1}},
        files_before={77: 20},
        files_after={77: 25},
    )


def test_a_run_that_went_well_meets_no_objection() -> None:
    assert objections(went_well()) == []


def of_job(facts: Facts, **changed: object) -> None:
    facts.collected[JOB] = replace(facts.collected[JOB], **changed)


def of_status(facts: Facts, **changed: object) -> None:
    of_job(facts, status=msgspec.structs.replace(STATUS, **changed))


def of_lease(facts: Facts, **changed: int) -> None:
    """A lease and its receipt, so that only their meaning is wrong."""
    facts.leases[0] = replace(LEASES[0], **changed)
    facts.receipts[0] = receipt(facts.leases[0])


def changed_row(facts: Facts, outputs: dict[str, np.ndarray], name: str) -> None:
    outputs[name][3] += 1


DOCTORED: dict[str, tuple[Callable[[Facts], object], str]] = {
    "a job is not done": (lambda f: of_status(f, state="failed"), "is failed and not done"),
    "a job is not known": (lambda f: f.collected.clear(), "is unknown and not done"),
    "a row streamed twice": (lambda f: of_job(f, times=[1, 1, 2, 1, 1, 1]), "brought rows [2] not once"),
    "a row never streamed": (lambda f: of_job(f, times=[1, 0, 1, 1, 1, 1]), "brought rows [1] not once"),
    "a float differs": (lambda f: changed_row(f, f.collected[JOB].streamed, "y"), "rows [3] of y in the stream"),
    "a label differs": (lambda f: changed_row(f, f.collected[JOB].result, "label"), "rows [3] of label in the result"),
    "an output is missing": (lambda f: f.collected[JOB].result.pop("y"), "the result has outputs ['label']"),
    "a row is short": (lambda f: f.collected[JOB].result.update(y=EXPECTED["y"][:5]), "of y in the result differ"),
    "a row kept twice": (lambda f: f.kept[JOB].append(4), "keeps 7 of 6 rows; not once: [4]"),
    "a row not kept": (lambda f: f.kept[JOB].remove(5), "keeps 5 of 6 rows"),
    "rows counted wrong": (lambda f: of_status(f, rows_done=5), "counts 5 rows done"),
    "a lease left open": (lambda f: of_status(f, rows_leased=1), "and 1 leased"),
    "an acknowledged row lost": (lambda f: f.rows_acknowledged.update(j2={7}), "acknowledged rows [7] are not in"),
    "lost at a crash": (lambda f: f.lost_at_a_crash.append("rows lost"), "rows lost"),
    "telemetry lost": (lambda f: f.telemetry_acknowledged.add(("car-2", 1, 9)), "1 acknowledged telemetry documents"),
    "a consent made up": (lambda f: of_lease(f, consent_version=3), "relies on version 3, which is not on record"),
    "a consent revoked": (lambda f: of_lease(f, consent_version=2, granted_ms=4_000), "which does not agree to it"),
    "granted before it": (lambda f: of_lease(f, granted_ms=100), "was granted before version 1 was set"),
    "granted after it": (lambda f: of_lease(f, granted_ms=3_001), "was granted 1 ms after version 2 was set"),
    "another purpose": (
        lambda f: f.histories.update({"car-1": [PolicyView("car-1", OwnerPolicy(1, "ada", ["else"]), "owner", 0)]}),
        "relies on version 1, which does not agree to it",
    ),
    "a revocation lost": (lambda f: f.histories["car-1"].pop(0), "the consent of car-1 was revoked, and is not"),
    "a receipt lost": (lambda f: f.receipts.pop(), f"the receipt of lease {JOB}/1 is not what the ledger has: None"),
    "a receipt told twice": (lambda f: f.receipts.append(f.receipts[0]), "a receipt was told twice"),
    "a negative sum": (lambda f: of_lease(f, energy_mwh=-1), "sums that no receipt can have"),
    "a sum with a fraction": (lambda f: of_lease(f, compute_us=0.5), "sums that no receipt can have"),  # type: ignore[arg-type]
    "more rows than leased": (lambda f: of_lease(f, rows_done=5), "was paid for 5 of 4 rows"),
    "a statement off by one": (
        lambda f: f.statements.update(vehicle=[StatementLine("car-1", ROWS, 3_600_000, 4, 1, 21)]),
        "statements by vehicle say",
    ),
    "a job's pay off by one": (lambda f: of_status(f, pay_micro=22), f"job {JOB} says 22 for 6 rows, its leases 21"),
    "paid more than promised": (lambda f: of_lease(f, fee_pay_micro=11), "1 and 21 were paid where 1 and 20 are due"),
    "time believed twice": (lambda f: f.last_accepted_ms.update({"car-1": 3_599}), "3600000 µs of computing within"),
    "files stay open": (lambda f: f.files_after.update({77: 37}), "had 20 files open at first and has 37 in the end"),
    "a process left over": (lambda f: f.left_over.append("process left over: 5 sleep"), "process left over: 5 sleep"),
    "a process that gave up": (lambda f: f.ended.append("car-1 ended by itself with 1"), "car-1 ended by itself"),
}  # fmt: skip


@pytest.mark.parametrize(("doctor", "objection"), DOCTORED.values(), ids=DOCTORED)
def test_the_oracle_objects(doctor: Callable[[Facts], object], objection: str) -> None:
    facts = went_well()
    doctor(facts)
    found = objections(facts)
    assert any(objection in each for each in found), found


def test_a_clock_that_was_set_excuses_times_by_as_much_and_no_more() -> None:
    facts = went_well()
    facts.stepped_ms = 2_000
    of_lease(facts, granted_ms=5_000)
    assert objections(facts) == []
    of_lease(facts, granted_ms=5_001)
    assert len(objections(facts)) == 1
