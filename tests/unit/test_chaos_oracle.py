"""The oracle of the fault harness sees each kind of wrong: a run that went well is doctored, one thing at a time."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from fleet_wire.api import JobView, PolicyView, ReceiptView, StatementLine
from fleet_wire.policy import OwnerPolicy
from tests.system.chaos.facts import AnswerFacts, Collected, Conviction, Facts, Held, LeaseFacts
from tests.system.chaos.oracle import objections

JOB, ROWS = "job-1", 6
KEPT = [0, 1, 2, 3, 5, 4]
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
        rules={JOB: "none"},
        collected={
            JOB: Collected(STATUS, outputs, list(KEPT), [], {name: array.copy() for name, array in outputs.items()})
        },
        kept={JOB: list(KEPT)},
        held={JOB: Held(ROWS, set(KEPT), set())},
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
    "a row streamed twice": (lambda f: of_job(f, stream=[*KEPT, 2]), "the stream brought rows [2] not once"),
    "a row never streamed": (lambda f: of_job(f, stream=KEPT[1:]), "the stream brought rows [0] not once"),
    "a row made up": (lambda f: of_job(f, stream=[*KEPT, 6]), "the stream brought rows [6] not once"),
    "another order": (lambda f: of_job(f, stream=sorted(KEPT)), "the stream did not bring what the ledger kept"),
    "a row differs within what is allowed": (
        lambda f: f.collected[JOB].result["y"].__iadd__(np.float32(1e-4)),
        "the result has another y than the stream",
    ),
    "a float differs": (lambda f: changed_row(f, f.collected[JOB].streamed, "y"), "rows [3] of y in the stream"),
    "a label differs": (lambda f: changed_row(f, f.collected[JOB].result, "label"), "rows [3] of label in the result"),
    "an output is missing": (lambda f: f.collected[JOB].result.pop("y"), "the result has outputs ['label']"),
    "a row is short": (lambda f: f.collected[JOB].result.update(y=EXPECTED["y"][:5]), "of y in the result differ"),
    "a row kept twice": (lambda f: f.kept[JOB].append(4), "the ledger keeps rows [4] not once"),
    "a row not kept": (lambda f: f.kept[JOB].remove(5), "the ledger keeps rows [5] not once"),
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
    "a row not paid for": (lambda f: of_lease(f, rows_done=3), "5 rows were paid for, and cars have answered 6"),
    "an honest car convicted": (
        lambda f: f.convictions.update({"car-1": Conviction(1, 5_000)}),
        "car-1 is honest and was convicted",
    ),
    "paid more than promised": (lambda f: of_lease(f, fee_pay_micro=11), "1 and 21 were paid where 1 and 20 are due"),
    "time believed twice": (lambda f: f.last_accepted_ms.update({"car-1": 3_599}), "3600000 µs of computing within"),
    "files stay open": (lambda f: f.files_after.update({77: 45}), "had 20 files open at first and has 45 in the end"),
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


# Of a verified job's four rows car-1 computed two, and found row 2 right that car-2 had said. Car-2 was trusted when it
# turned bad: its row 3 was shown. Car-4 always lies; it audited that row, and the coordinator found both wrong.
VERIFIED, VERIFIED_KEPT = "job-2", [0, 1, 2, 3, ~3, 3]
RIGHT = {"y": np.arange(4, dtype=np.float32)}


def lied_to(rule: str = "adaptive") -> Facts:
    facts = Facts(expected={VERIFIED: RIGHT}, rules={VERIFIED: rule})
    status = msgspec.structs.replace(STATUS, id=VERIFIED, rows=4, rows_done=4, pay_micro=0, rows_retracted=1)
    status = msgspec.structs.replace(status, ended_ms=6_000)
    outputs = {"y": RIGHT["y"].copy()}, {"y": RIGHT["y"].copy()}
    facts.collected[VERIFIED] = Collected(status, outputs[0], list(VERIFIED_KEPT), [3], outputs[1])
    facts.kept, facts.kept_of = {VERIFIED: list(VERIFIED_KEPT)}, {VERIFIED: {"car-1", "car-2", ""}}
    facts.held = {VERIFIED: Held(4, {0, 1, 2, 3, 6, 7}, {0, 1, 2, 3})}
    facts.rows_acknowledged = {VERIFIED: {0, 1, 6, 5}}
    facts.answers = [
        AnswerFacts(VERIFIED, "car-1", False, 4_000, frozenset({0, 1}), frozenset()),
        AnswerFacts(VERIFIED, "car-2", True, 4_100, frozenset({2, 3}), frozenset({3})),
        AnswerFacts(VERIFIED, "car-1", False, 4_200, frozenset({6}), frozenset()),
        AnswerFacts(VERIFIED, "car-4", True, 4_300, frozenset({7}), frozenset({3})),
        AnswerFacts(VERIFIED, "", False, 5_000, frozenset({3}), frozenset()),
    ]
    facts.liars, facts.never_honest = frozenset({"car-2", "car-4"}), frozenset({"car-4"})
    facts.convictions = {"car-2": Conviction(1, 5_000), "car-4": Conviction(1, 5_000)}
    facts.told_convicted = {"car-2": 1, "car-4": 1}
    facts.trust = {"car-1": 3, "car-2": 0}
    slots = {"car-1": 3, "car-2": 2, "car-4": 1}
    for chunk, (car, rows) in enumerate(slots.items()):
        facts.histories[car] = [PolicyView(car, POLICY, "owner", 500)]
        facts.leases.append(LeaseFacts(VERIFIED, chunk, 0, 4, car, 1_000, "done", 1, 0, 0, rows, 0, 0, 0, 0))
    facts.receipts = [receipt(lease) for lease in facts.leases]
    facts.statements["vehicle"] = [StatementLine(car, rows, 0, 0, 0, 0) for car, rows in slots.items()]
    sums = {"job": VERIFIED, "owner": "ada", "month": "2026-11"}
    facts.statements |= {by: [StatementLine(of, 6, 0, 0, 0, 0)] for by, of in sums.items()}
    return facts


@pytest.mark.parametrize("rule", ["adaptive", "canaries"])
def test_a_run_in_which_cars_lied_may_go_well(rule: str) -> None:
    facts = lied_to(rule)
    if rule != "adaptive":
        facts.collected[VERIFIED] = replace(facts.collected[VERIFIED], shown_wrong=[])
    assert objections(facts) == []


def seen_by_nobody(facts: Facts) -> None:
    """Car-2 was never found out, and its lie stands."""
    facts.liars, facts.never_honest = frozenset({"car-2"}), frozenset()
    facts.convictions, facts.told_convicted = {}, {}
    facts.answers = [facts.answers[0], replace(facts.answers[1], is_void=False), facts.answers[2]]
    facts.leases[2] = replace(facts.leases[2], rows_done=0)
    facts.receipts.pop()
    facts.statements["vehicle"].pop()
    for by in ("job", "owner", "month"):
        facts.statements[by] = [msgspec.structs.replace(facts.statements[by][0], rows=5)]
    before = facts.collected[VERIFIED]
    status = msgspec.structs.replace(before.status, rows_retracted=0)
    facts.kept[VERIFIED] = [0, 1, 2, 3]
    facts.collected[VERIFIED] = replace(before, status=status, stream=[0, 1, 2, 3])
    for outputs in (before.streamed, before.result):
        outputs["y"][3] = 9


def test_a_lie_of_a_trusted_car_may_stand_that_nobody_could_see() -> None:
    facts = lied_to()
    seen_by_nobody(facts)
    assert objections(facts) == []
    facts.rules[VERIFIED] = "quorum:2"
    assert len(objections(facts)) == 4  # it is shown, in the stream, in the result, and stands


def of_verified(facts: Facts, **changed: object) -> None:
    facts.collected[VERIFIED] = replace(facts.collected[VERIFIED], **changed)


def of_answer(facts: Facts, number: int, **changed: object) -> None:
    facts.answers[number] = replace(facts.answers[number], **changed)


def unseen(facts: Facts, count: int, trust: int) -> None:
    """A trusted car's rows, wrong, without anybody's notice."""
    seen_by_nobody(facts)
    of_answer(facts, 1, wrong=frozenset(range(10, 10 + count)))
    facts.trust["car-2"] = trust


LIED_TO: dict[str, tuple[Callable[[Facts], object], str]] = {
    "a car convicted that lied nowhere": (lambda f: of_answer(f, 1, wrong=frozenset()), "answered no row wrongly"),
    "convicted again": (lambda f: f.convictions.update({"car-2": Conviction(2, 5_000)}), "was convicted 2 times"),
    "a conviction not told": (lambda f: f.told_convicted.pop("car-2"), "convictions are told as {'car-4': 1}"),
    "an honest car's row changed": (lambda f: of_answer(f, 0, wrong=frozenset({1})), "car-1 answered rows [1] wrongly"),
    "a wrong referee": (lambda f: of_answer(f, 4, wrong=frozenset({3})), "the coordinator answered rows [3] wrongly"),
    "void for no reason": (lambda f: of_answer(f, 0, is_void=True), "answers of car-1 are void, and it was not"),
    "rows taken back for no reason": (lambda f: f.convictions.clear(), "1 rows were taken back, and nobody was"),
    "another count of what was taken back": (
        lambda f: of_verified(f, status=msgspec.structs.replace(f.collected[VERIFIED].status, rows_retracted=0)),
        "counts 0 rows taken back, the ledger 1",
    ),
    "a row not shown again": (lambda f: of_verified(f, stream=VERIFIED_KEPT[:-1]), "brought rows [3] not once"),
    "shown again before it was taken back": (
        lambda f: of_verified(f, stream=[0, 1, 2, 3, 3, ~3]),
        "the stream brought rows [3] not once",
    ),
    "a check left open": (lambda f: f.checks_open.update({VERIFIED: {1}}), "is done, and rows [1] wait to be checked"),
    "a lie stands that was audited": (
        lambda f: (seen_by_nobody(f), of_answer(f, 2, slots=frozenset({7}))),
        "wrong rows [3] of car-2 stand, which somebody looked at",
    ),
    "a lie stands of a car that was never honest": (
        lambda f: of_answer(f, 3, is_void=False),
        "wrong rows [3] of car-4 stand, which somebody looked at",
    ),
    "too many lies of a car that was trusted little": (lambda f: unseen(f, 31, 183), "31 wrong rows of car-2 stand"),
    "too many lies of a car that was trusted much": (lambda f: unseen(f, 1_027, 184), "1027 wrong rows of car-2"),
    "a row shown of a car that was never honest": (
        lambda f: f.kept_of[VERIFIED].add("car-4"),
        "rows of car-4 counted, which was never honest",
    ),
    "a wrong row shown that nobody answered so": (
        lambda f: of_verified(f, shown_wrong=[2, 3]),
        "showed wrong rows [2], which no trusted car",
    ),
    "a wrong row shown of a quorum": (
        lambda f: f.rules.update({VERIFIED: "quorum:2"}),
        "showed wrong rows [3], which no trusted car",
    ),
    "trust kept": (lambda f: f.trust.update({"car-2": 17}), "car-2 was convicted, and is trusted for 17 rows"),
    "a lease granted to a convicted car": (
        lambda f: f.leases.__setitem__(1, replace(f.leases[1], granted_ms=5_001)),
        f"lease {VERIFIED}/1 of car-2 was granted after it had been convicted",
    ),
    "a lease left to a convicted car": (
        lambda f: f.leases.__setitem__(1, replace(f.leases[1], ended=None)),
        f"lease {VERIFIED}/1 of car-2 is open, though it was convicted",
    ),
    "an answer left to a convicted car": (
        lambda f: of_answer(f, 1, is_void=False),
        "an answer of car-2 stands, which was convicted while the job ran",
    ),
    "an acknowledged answer lost": (
        lambda f: f.held.update({VERIFIED: Held(4, {0, 2, 3, 6, 7}, {0, 2, 3})}),
        "acknowledged rows [1, 5] are not in the ledger",
    ),
    "an answer not paid for": (lambda f: f.answers.pop(2), "6 rows were paid for, and cars have answered 5"),
}  # fmt: skip


@pytest.mark.parametrize(("doctor", "objection"), LIED_TO.values(), ids=LIED_TO)
def test_the_oracle_objects_where_cars_lie(doctor: Callable[[Facts], object], objection: str) -> None:
    facts = lied_to()
    doctor(facts)
    found = objections(facts)
    assert any(objection in each for each in found), found
