"""What the coordinator needs of any ledger."""

import multiprocessing
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.adapters.postgres_ledger import PostgresLedger
from coordinator.adapters.sql import migrations
from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.commands import (
    AddAnswer,
    AddConsent,
    AddFailedRow,
    AddJob,
    AddModel,
    AddRows,
    EndJob,
    EndLease,
    GrantLease,
    KeepChecks,
    KeepConduct,
    LedgerWrite,
    VoidAnswers,
)
from coordinator.errors import LedgerHeld, StoreUnavailable
from coordinator.model import (
    REFEREE,
    AcceptedRows,
    Answer,
    Check,
    FailedRow,
    Job,
    JobState,
    LeaseEnd,
    LeaseRecord,
    Model,
    Piece,
    ReceiptPart,
    Rest,
    VehicleConduct,
)
from coordinator.ports import Ledger, LedgerJob, LedgerSnapshot, ReceiptFilter, VehicleSums
from fleet_wire.api import JobTerms, JobView, PolicyView, ReceiptView, StatementLine, TensorSpec, Verification
from fleet_wire.policy import Hours, OwnerPolicy
from fleet_wire.trace import TraceContext
from tests.postgres import PostgresProcess

LEDGERS = ["sqlite", "postgres"]
LEASE_S = 0.5

MODEL = Model(
    digest="ab" * 32,
    size=39_000,
    inputs=(TensorSpec("x", "float", [None, 64]), TensorSpec("name", "string", [None])),
    outputs=(TensorSpec("label", "int64", [None]),),
    batch_rows=None,
)
TERMS = JobTerms(priority=-3, chunk_rows=7, deadline_s=12.5, max_attempts=5)
JOB = Job("job-1", "naïve ☃", MODEL.digest, "cd" * 32, 100, 260, TERMS, created_ms=1_700_000_000_000)


PROMISE = {"consent_version": 2, "energy_micro_per_kwh": 300_001, "pay_micro_per_h": 20_000, "month": 202611}


def lease(chunk: int, start: int, stop: int, vehicle: str = "v1", job: str = JOB.id) -> LeaseRecord:
    times = {"granted_ms": 10 + chunk, "deadline_ms": 1000 + chunk}
    return LeaseRecord(job, chunk, start, stop, vehicle, 3, **times, **PROMISE)


def accepted(seq: int, *pieces: tuple[int, int, int], vehicle: str = "v1", job: str = JOB.id) -> AcceptedRows:
    return AcceptedRows(
        seq=seq,
        job=job,
        vehicle=vehicle,
        pieces=tuple(Piece(*piece) for piece in pieces),
        payload=b"payload \x00 %d" % seq,
        payload_ref=None,
        accepted_ms=2000 + seq,
        compute_ms=1.5,
        energy_mwh=7,
        pay_micro=11,
    )


def added(rows: AcceptedRows, under: LeaseRecord) -> AddRows:
    """These rows with what they add to the receipt of one lease."""
    count = sum(piece.stop - piece.start for piece in rows.pieces)
    return AddRows(rows, (ReceiptPart(under, count, 1_500, 7, 4, 7),))


def make_ledger(place: str) -> Ledger:
    """A ledger of the kind whose place it is: each call gives another process's view of the same."""
    if place.startswith("postgresql:"):
        return PostgresLedger(place, "test", f"process {os.getpid()}", LEASE_S)
    return SqliteLedger(Path(place))


def new_place(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return str(folder / "ledger.db")
    server: PostgresProcess = request.getfixturevalue("postgres_server")
    return server.make_ledger()


@pytest.fixture(params=LEDGERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return new_place(kind, tmp_path, request)


@pytest.fixture
def ledger(place: str) -> Iterator[Ledger]:
    opened = make_ledger(place)
    opened.open()
    yield opened
    opened.close()


def fresh(job: Job = JOB) -> LedgerJob:
    return LedgerJob(job, (), (), 0, 0, 0, 0, 0)


def view(state: JobState = JobState.RUNNING, **changes: object) -> JobView:
    fields = {
        "id": JOB.id,
        "name": JOB.name,
        "model": JOB.model,
        "state": state.value,
        "rows": JOB.rows,
        "rows_done": 0,
        "rows_leased": 0,
        "created_ms": JOB.created_ms,
        "ended_ms": None,
        "error": None,
        "rows_duplicate": 0,
        "rows_released_again": 0,
        "compute_ms": 0.0,
        "energy_mwh": 0,
        "pay_micro": 0,
        "vehicles": 0,
    }
    return JobView(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_empty_ledger_starts_at_one(ledger: Ledger) -> None:
    ledger.commit([])
    assert ledger.load() == LedgerSnapshot((), (), next_seq=1)
    assert (ledger.ended_jobs(10), ledger.job_view("job-1"), ledger.rows_after("job-1", 0, 10)) == ([], None, [])


def test_models_and_jobs_come_back_as_they_were(ledger: Ledger) -> None:
    fixed = replace(MODEL, digest="ef" * 32, batch_rows=4)
    plain = Job("job-2", "", fixed.digest, "cd" * 32, 1, 1, JobTerms(), created_ms=1)
    ledger.commit([AddModel(fixed), AddModel(MODEL), AddJob(JOB), AddJob(plain)])
    assert ledger.load() == LedgerSnapshot((MODEL, fixed), (fresh(plain), fresh()), next_seq=1)


def test_a_model_may_be_added_again(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.commit([AddModel(MODEL), AddModel(MODEL)])
    assert ledger.load().models == (MODEL,)


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("state", ["", "vendor=1,other=x y"])
def test_a_job_keeps_the_trace_that_it_was_submitted_in(ledger: Ledger, state: str, *, sampled: bool) -> None:
    traced = replace(JOB, trace=TraceContext("a" * 32, "b" * 16, sampled, state))
    ledger.commit([AddModel(MODEL), AddJob(traced)])
    assert [each.job for each in ledger.load().running] == [traced]


def test_a_running_job_comes_back_with_all_that_happened(ledger: Ledger) -> None:
    ledger.commit([AddModel(MODEL), AddJob(JOB)])
    first, second, again = lease(0, 0, 10), lease(1, 10, 20, "v2"), lease(3, 4, 10, "v2")
    ledger.commit([GrantLease(first), GrantLease(second), GrantLease(lease(2, 20, 30))])
    ledger.commit([added(accepted(1, (0, 4, 0)), first), added(accepted(2, (10, 20, 0), vehicle="v2"), second)])
    ledger.commit([EndLease(JOB.id, 1, LeaseEnd.DONE, 0, 50), EndLease(JOB.id, 0, LeaseEnd.LOST, 6, 51)])
    ledger.commit([GrantLease(again), added(accepted(3, (4, 6, 0), (8, 10, 4), vehicle="v2"), again)])
    assert ledger.load() == LedgerSnapshot(
        models=(MODEL,),
        running=(
            LedgerJob(
                job=JOB,
                done=((0, 6), (8, 20)),
                leases=(lease(2, 20, 30), again),
                next_chunk=4,
                rows_released_again=6,
                compute_us=4_500,
                energy_mwh=21,
                pay_micro=33,
                # 7 and 14 mWh at 300,001 and 1.5 and 3 ms at 20,000: nothing of the fee makes a whole micro-unit yet
                rests=(("v1", Rest(100_007, 30_000_000)), ("v2", Rest(200_014, 60_000_000))),
                seen=(("v1", 20), ("v2", 16)),
                worked=(("v1", 10, 1_500), ("v2", 11, 3_000)),
                ended=(second, first),
            ),
        ),
        next_seq=4,
        vehicles=(VehicleSums("v1", 4, 7, 11), VehicleSums("v2", 14, 14, 22)),
    )
    assert ledger.job_view(JOB.id) == view(
        rows_done=18, rows_leased=16, rows_released_again=6, compute_ms=4.5, energy_mwh=21, pay_micro=33, vehicles=2
    )


def busy_round(many: int) -> list[LedgerWrite]:
    """Each kind of write `many` times, of which some change the same thing again."""
    job = JOB.id
    leases = [lease(n, 2 * n, 2 * n + 2, f"v{n % 7}") for n in range(many)]
    copies = [msgspec.structs.replace(each, chunk=many + each.chunk, copy_of=each.chunk) for each in leases[::2]]
    writes: list[LedgerWrite] = [AddJob(VERIFIED), *map(GrantLease, [*leases, *copies])]
    for n, under in enumerate(leases):
        rows = replace(accepted(n, (2 * n, 2 * n + 1, 0)), vehicle=under.vehicle, compute_ms=n % 2)
        by_reference = replace(rows, seq=many + n, payload=None, payload_ref="ff" * 32, answer=n)
        writes += [added(rows, under), added(by_reference, under), EndLease(job, n, LeaseEnd.LOST, 1, n)]
        writes += [EndLease(job, many + n, LeaseEnd.DONE, 0, n), KeepChecks(job, (n % 20, 7), Check.AUDIT)]
        writes += [AddAnswer(answer(n, under.vehicle, (n, n + 1, 0))), KeepChecks(job, (7, n), Check.DECIDED)]
        writes += [
            AddFailedRow(job, FailedRow(2 * n, 3, "'{\"☃\\ NULL")),
            AddFailedRow(job, FailedRow(2 * n + 1, 3, "")),
        ]
        writes += [KeepConduct(VehicleConduct(f"v{n % 9}", n, 0, n / 2, n, convictions=n))]
        writes += [AddConsent(f"v{n}", OwnerPolicy(1, "ada", ["general"]), "test", n)]
        writes += [AddModel(replace(MODEL, digest=f"{n % 5:064}", batch_rows=n % 5 or None))]
        writes += [AddJob(replace(JOB, id=f"job-{n + 10}")), EndLease(f"job-{n + 10}", 0, LeaseEnd.LOST, 1, n)]
        writes += [EndJob(f"job-{n // 2 + 10}", JobState.DONE, n, "x" * n)]
    return [*writes, *(VoidAnswers(job, f"v{n % 3}") for n in range(many))]


def everything(ledger: Ledger) -> list[object]:
    only = ReceiptFilter()
    return [
        ledger.load(),
        ledger.rows_after(JOB.id, 0, 1_000),
        ledger.ended_jobs(1_000),
        ledger.job_view(JOB.id),
        ledger.statement("owner", only),
        ledger.receipts(only, ("", 0), 1_000),
        ledger.policy_history("v1"),
    ]


@pytest.mark.parametrize("many", [3, 50], ids="{} of each".format)
def test_a_round_of_many_writes_is_kept_like_a_round_for_each(
    ledger: Ledger, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.adapters.postgres_writing._MOST_ROWS", 20)
    ledger.commit(busy_round(many))
    one_by_one = SqliteLedger(Path(":memory:"))
    one_by_one.open()
    for write in busy_round(many):
        one_by_one.commit([write])
    assert everything(ledger) == everything(one_by_one)
    one_by_one.close()


def test_a_lease_may_be_granted_and_ended_in_one_round(ledger: Ledger) -> None:
    ended = lease(0, 0, 10)
    ledger.commit([AddJob(JOB), EndLease(JOB.id, 0, LeaseEnd.RELEASED, 10, 5), GrantLease(ended)])
    assert ledger.load().running == (
        replace(fresh(), next_chunk=1, rows_released_again=10, seen=(("v1", 10),), ended=(ended,)),
    )


VERIFIED = replace(JOB, terms=JobTerms(verification=Verification("adaptive")))


def answer(number: int, vehicle: str, *pieces: tuple[int, int, int], held: bool = False) -> Answer:
    payload = b"answer \x00 %d" % number
    return Answer(number, JOB.id, vehicle, "CPU x", tuple(Piece(*piece) for piece in pieces), payload, held, 7 + number)


def verified(seq: int, number: int | None, *pieces: tuple[int, int, int]) -> AcceptedRows:
    """What counts of an answer, or what does not any more."""
    bare = replace(accepted(seq, *pieces), payload=None, compute_ms=0.0, energy_mwh=0, pay_micro=0)
    return replace(bare, answer=number, retracted=number is None)


def test_answers_and_checks_of_a_verified_job_come_back(ledger: Ledger) -> None:
    first, second, own = (
        answer(0, "v1", (0, 10, 0)),
        answer(1, "v2", (104, 106, 1), held=True),
        answer(2, REFEREE, (4, 5, 0)),
    )
    lie, honest = lease(0, 0, 10), lease(1, 104, 106, "v2")
    part, other = ReceiptPart(lie, 10, 1_500, 7, 4, 7), ReceiptPart(honest, 2, 1_500, 7, 4, 7)
    ledger.commit([AddJob(VERIFIED), GrantLease(lie), GrantLease(honest)])
    ledger.commit([AddAnswer(first, (part,)), KeepChecks(JOB.id, (4, 5), Check.AUDIT)])
    ledger.commit([AddRows(verified(1, 0, (0, 4, 0), (6, 10, 6))), EndLease(JOB.id, 0, LeaseEnd.DONE, 0, 50)])
    ledger.commit([AddAnswer(second, (other,)), KeepChecks(JOB.id, (4,), Check.REFEREE_ALONE)])
    before = fresh(VERIFIED)
    facts = {"next_chunk": 2, "leases": (honest,), "ended": (lie,), "seen": (("v1", 10), ("v2", 2))}
    sums = {"compute_us": 3_000, "energy_mwh": 14, "pay_micro": 22, "worked": (("v1", 10, 1_500), ("v2", 11, 1_500))}
    rests = (("v1", Rest(100_007, 30_000_000)), ("v2", Rest(100_007, 30_000_000)))
    before = replace(
        before, **facts, **sums, rests=rests, next_answer=2, checks=((4, Check.REFEREE_ALONE), (5, Check.AUDIT))
    )
    assert ledger.load().running == (replace(before, accepted=((0, 4, 0), (6, 10, 0)), answers=(first, second)),)
    round_ = [
        AddAnswer(own),
        KeepChecks(JOB.id, (4, 5), Check.DECIDED),
        VoidAnswers(JOB.id, "v1"),
        AddRows(verified(2, None, (0, 4, 0), (6, 10, 0))),
        AddRows(verified(3, 2, (4, 5, 0))),
    ]
    ledger.commit(round_)
    (loaded,) = ledger.load().running
    assert loaded.answers == (second, own)
    assert loaded.accepted == ((0, 4, 0), (6, 10, 0), (0, 4, None), (6, 10, None), (4, 5, 2))
    assert (loaded.checks, loaded.next_answer) == (((4, Check.DECIDED), (5, Check.DECIDED)), 3)
    assert ledger.rows_after(JOB.id, 0, 10) == [
        replace(verified(1, 0, (0, 4, 0), (6, 10, 6)), payload=first.payload),
        verified(2, None, (0, 4, 0), (6, 10, 0)),
        replace(verified(3, 2, (4, 5, 0)), payload=own.payload),
    ]
    ended = ledger.job_view(JOB.id)
    assert ended is not None
    assert (ended.rows_done, ended.pay_micro, ended.vehicles) == (1, 22, 2)
    assert (ended.verification, ended.rows_checked, ended.rows_retracted) == ("adaptive", 2, 8)


def test_rows_of_an_ended_job_that_stand_by_the_word_of_convicted_cars_are_counted(ledger: Ledger) -> None:
    convicted = [VehicleConduct(car, 0, 0, 0.0, 0.0, convictions=1, convicted_ms=at) for car, at in CONVICTIONS]
    given = (0, 0, 20, "v1"), (1, 110, 114, "v2"), (2, 114, 116, "v3"), (3, 20, 25, "v1")
    leases = [lease(*each) for each in given]
    parts = [(ReceiptPart(each, each.stop - each.start, 1_500, 7, 4, 7),) for each in leases]
    answers = [
        answer(0, "v1", (0, 20, 0)),
        answer(1, "v2", (110, 114, 0)),
        answer(2, "v3", (114, 116, 0)),
        answer(3, REFEREE, (1, 3, 0), (19, 20, 2)),
        answer(4, "v1", (20, 25, 0)),
    ]
    ledger.commit([AddJob(VERIFIED), *map(GrantLease, leases)])
    ledger.commit([AddAnswer(each, part) for each, part in zip(answers, [*parts[:3], (), parts[3]], strict=True)])
    ledger.commit([AddRows(verified(1, 0, (0, 20, 0))), AddRows(verified(2, 4, (20, 22, 0)))])
    ledger.commit([AddRows(verified(3, None, (19, 20, 0))), AddRows(verified(4, 3, (19, 20, 2)))])
    ledger.commit([KeepConduct(each) for each in convicted])
    assert ledger.ended_jobs_answered("v1", 0) == []
    ledger.commit([EndJob(JOB.id, JobState.CANCELLED, 50)])
    # Of 19 and 2 rows the coordinator has answered two, and v3 two; v2 was convicted after it had answered.
    assert ledger.rows_unconfirmed(JOB.id, "v1") == 17
    assert ledger.rows_unconfirmed(JOB.id, "v2") == 0
    assert [ledger.ended_jobs_answered("v1", since_ms) for since_ms in (0, 50, 51)] == [[JOB.id], [JOB.id], []]
    assert ledger.ended_jobs_answered("v9", 0) == []


CONVICTIONS = (("v1", 60), ("v2", 55), ("v3", 8))


def test_an_answer_is_kept_once(ledger: Ledger) -> None:
    ledger.commit([AddJob(VERIFIED), AddAnswer(answer(0, "v1", (0, 1, 0)))])
    with pytest.raises(StoreUnavailable):
        ledger.commit([AddAnswer(answer(0, "v2", (1, 2, 0)))])


def test_copies_and_rows_that_were_given_up_are_remembered(ledger: Ledger) -> None:
    copy = msgspec.structs.replace(lease(1, 5, 10, "v2"), copy_of=0)
    bad = FailedRow(12, 3, "division by zero")
    ledger.commit([AddJob(JOB), GrantLease(lease(0, 0, 10)), GrantLease(copy), AddFailedRow(JOB.id, bad)])
    assert ledger.load().running == (
        replace(
            fresh(),
            leases=(lease(0, 0, 10), copy),
            next_chunk=2,
            failed=(bad,),
            rows_copied=5,
            seen=(("v1", 10), ("v2", 5)),
        ),
    )
    ledger.commit([EndJob(JOB.id, JobState.FAILED, 9, "row 12 failed")])
    assert ledger.failed_rows(JOB.id) == [bad]
    assert ledger.job_view(JOB.id) == view(JobState.FAILED, ended_ms=9, error="row 12 failed", rows_failed=1)


def test_the_conduct_of_a_vehicle_replaces_what_was_kept_before(ledger: Ledger) -> None:
    first, other = VehicleConduct("v1", 1, 0, 7.5, 8.0), VehicleConduct("v2", 3, 90, 0.0, 3.0)
    ledger.commit([KeepConduct(first), KeepConduct(other)])
    convicted = replace(first, strikes=3, checks_passed=5, convictions=2, convicted_ms=77)
    ledger.commit([KeepConduct(replace(first, strikes=2)), KeepConduct(convicted)])
    assert ledger.load().conduct == (convicted, other)


@pytest.mark.parametrize(
    ("state", "error"), [(JobState.DONE, None), (JobState.FAILED, "row 3 failed"), (JobState.CANCELLED, None)]
)
def test_an_ended_job_is_no_longer_running_and_keeps_its_sums(
    ledger: Ledger, state: JobState, error: str | None
) -> None:
    ledger.commit([AddJob(JOB), GrantLease(lease(0, 0, 60)), added(accepted(1, (0, 60, 0)), lease(0, 0, 60))])
    ledger.commit([EndLease(JOB.id, 0, LeaseEnd.CANCELLED, 0, 8), EndJob(JOB.id, state, 9, error)])
    assert ledger.load() == LedgerSnapshot((), (), next_seq=2, vehicles=(VehicleSums("v1", 60, 7, 11),))
    ended = view(state, ended_ms=9, error=error, rows_done=60, compute_ms=1.5, energy_mwh=7, pay_micro=11, vehicles=1)
    assert ledger.job_view(JOB.id) == ended
    assert ledger.ended_jobs(10) == [ended]
    assert ledger.rows_after(JOB.id, 0, 10) == [accepted(1, (0, 60, 0))]


@pytest.mark.parametrize("jobs", [1, 20])
def test_text_may_hold_any_character(ledger: Ledger, kind: str, jobs: int) -> None:
    for number in range(jobs):
        ledger.commit([AddJob(replace(JOB, id=f"job-{number}"))])
    ledger.commit([EndJob(f"job-{n}", JobState.FAILED, 9, "row 3: \0 ☃ 'x' %s ?") for n in range(jobs)])
    nul = "\N{REPLACEMENT CHARACTER}" if kind == "postgres" else "\0"  # which PostgreSQL's text has no room for
    assert [ended.error for ended in ledger.ended_jobs(100)] == [f"row 3: {nul} ☃ 'x' %s ?"] * jobs


def test_names_are_in_the_order_of_their_bytes(ledger: Ledger) -> None:
    names = ["A", "B", "_", "a", "a-b", "aa", "b"]
    ledger.commit([KeepConduct(VehicleConduct(name, 1, 0, 1.0, 1.0)) for name in reversed(names)])
    assert [conduct.vehicle for conduct in ledger.load().conduct] == names


def test_a_job_ends_once(ledger: Ledger) -> None:
    ledger.commit([AddJob(JOB), EndJob(JOB.id, JobState.DONE, 9)])
    ledger.commit([EndJob(JOB.id, JobState.CANCELLED, 10, "too late")])
    assert ledger.job_view(JOB.id) == view(JobState.DONE, ended_ms=9)


def test_ended_jobs_come_latest_first(ledger: Ledger) -> None:
    ledger.commit([AddJob(replace(JOB, id=f"job-{n}")) for n in range(5)])
    ledger.commit([EndJob(f"job-{n}", JobState.DONE, ended_ms) for n, ended_ms in enumerate([30, 10, 50, 20])])
    assert [found.id for found in ledger.ended_jobs(3)] == ["job-2", "job-0", "job-3"]


def test_results_of_one_job_follow_its_cursor(ledger: Ledger) -> None:
    other = replace(JOB, id="job-2")
    by_reference = replace(accepted(5, (9, 10, 0)), payload=None, payload_ref="ff" * 32)
    mine = [accepted(1, (0, 3, 0)), accepted(3, (3, 5, 0), (7, 9, 2)), by_reference]
    ledger.commit([AddJob(JOB), AddJob(other), AddRows(accepted(2, (0, 9, 0), job="job-2")), *map(AddRows, mine)])
    assert ledger.rows_after(JOB.id, 0, 10) == mine
    assert ledger.rows_after(JOB.id, 0, 2) == mine[:2]
    assert ledger.rows_after(JOB.id, 1, 10) == mine[1:]
    assert ledger.rows_after(JOB.id, 5, 10) == []
    assert ledger.load().next_seq == 6


@pytest.mark.parametrize(
    "twice", [AddRows(accepted(1, (5, 6, 0))), AddJob(JOB), GrantLease(lease(0, 0, 10))], ids=["result", "job", "lease"]
)
def test_a_round_that_cannot_be_kept_is_dropped_as_a_whole(ledger: Ledger, twice: LedgerWrite) -> None:
    ledger.commit([AddJob(JOB), GrantLease(lease(0, 0, 10)), AddRows(accepted(1, (0, 1, 0)))])
    before = ledger.load()
    good = [
        AddModel(MODEL),
        GrantLease(lease(1, 10, 20)),
        AddRows(accepted(2, (1, 2, 0))),
        EndJob(JOB.id, JobState.DONE, 9),
    ]
    with pytest.raises(StoreUnavailable):
        ledger.commit([*good, twice])
    assert ledger.load() == before
    ledger.commit(good)
    assert ledger.load().running == ()


def agreed(vehicle: str, version: int, owner: str) -> AddConsent:
    return AddConsent(vehicle, OwnerPolicy(version, owner, ["general"]), "test", 5)


def settled(ledger: Ledger) -> list[LeaseRecord]:
    """Two cars, of which v1 was sold from ada to bob, two jobs and two months; v3's consent is not on record."""
    old, new = lease(0, 0, 10), msgspec.structs.replace(lease(1, 10, 20), consent_version=3, month=202612)
    other, unknown = lease(0, 0, 10, "v2", "job-2"), lease(1, 10, 20, "v3", "job-2")
    ledger.commit([agreed("v1", 2, "ada"), agreed("v1", 3, "bob"), agreed("v2", 2, "ada")])
    ledger.commit([AddJob(JOB), AddJob(replace(JOB, id="job-2")), GrantLease(lease(2, 20, 30))])
    leases = [old, new, other, unknown]
    for seq, under in enumerate(leases, 1):
        rows = accepted(seq, (under.start, under.start + seq, 0), vehicle=under.vehicle, job=under.job)
        ledger.commit([GrantLease(under), added(rows, under)])
    return leases


def line(of: str, rows: int, receipts: int) -> StatementLine:
    return StatementLine(of, rows, 1_500 * receipts, 7 * receipts, 4 * receipts, 7 * receipts)


def test_statements_sum_up_receipts_by_what_is_asked(ledger: Ledger) -> None:
    settled(ledger)
    everything = ReceiptFilter()
    assert ledger.statement("owner", everything) == [line("", 4, 1), line("ada", 4, 2), line("bob", 2, 1)]
    assert ledger.statement("vehicle", everything) == [line("v1", 3, 2), line("v2", 3, 1), line("v3", 4, 1)]
    assert ledger.statement("job", everything) == [line("job-1", 3, 2), line("job-2", 7, 2)]
    assert ledger.statement("month", everything) == [line("2026-11", 8, 3), line("2026-12", 2, 1)]
    assert ledger.statement("vehicle", ReceiptFilter(owner="ada", month=202611)) == [line("v1", 1, 1), line("v2", 3, 1)]
    assert ledger.statement("owner", ReceiptFilter(job="job-1", vehicle="v1")) == [line("ada", 1, 1), line("bob", 2, 1)]
    assert ledger.statement("owner", ReceiptFilter(owner="nobody")) == []


def test_receipts_come_in_pages_with_what_they_promised(ledger: Ledger) -> None:
    old, new, other, unknown = settled(ledger)

    def receipt(under: LeaseRecord, owner: str, month: str, rows: int) -> ReceiptView:
        return ReceiptView(
            cursor=f"{under.job}.{under.chunk}",
            owner=owner,
            vehicle=under.vehicle,
            job=under.job,
            chunk=under.chunk,
            month=month,
            granted_ms=under.granted_ms,
            consent_version=under.consent_version,
            rows=rows,
            compute_us=1_500,
            energy_mwh=7,
            energy_micro_per_kwh=300_001,
            pay_micro_per_h=20_000,
            energy_pay_micro=4,
            fee_pay_micro=7,
        )

    every = [
        receipt(old, "ada", "2026-11", 1),
        receipt(new, "bob", "2026-12", 2),
        receipt(other, "ada", "2026-11", 3),
        receipt(unknown, "", "2026-11", 4),
    ]
    assert ledger.receipts(ReceiptFilter(), ("", 0), 10) == every
    assert ledger.receipts(ReceiptFilter(), ("", 0), 3) == every[:3]
    assert ledger.receipts(ReceiptFilter(), ("job-1", 1), 3) == every[2:]
    assert ledger.receipts(ReceiptFilter(owner="ada"), ("", 0), 10) == [every[0], every[2]]
    assert ledger.receipts(ReceiptFilter(vehicle="v1", month=202612), ("", 0), 10) == [every[1]]
    assert ledger.receipts(ReceiptFilter(job="job-2"), ("", 0), 10) == every[2:]


def test_a_ledger_from_before_receipts_keeps_what_was_paid(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    old = sqlite3.connect(path)
    old.executescript(dict(migrations())[1])
    old.executescript(
        "INSERT INTO jobs (id, name, model, inputs, row_count, row_bytes, terms, created_ms)"
        " VALUES ('job-1', '', 'm', 'i', 100, 4, '{}', 1);"
        "INSERT INTO leases VALUES ('job-1', 0, 0, 10, 'v1', 3, 10, 1000, NULL, NULL);"
        "INSERT INTO shares VALUES ('job-1', 'v1', 4, 2.5004, 7, 11);"
        "PRAGMA user_version = 1"
    )
    old.close()
    ledger = SqliteLedger(path)
    ledger.open()
    (job,) = ledger.load().running
    assert (job.compute_us, job.energy_mwh, job.pay_micro) == (2_500, 7, 11)
    assert job.leases == (LeaseRecord("job-1", 0, 0, 10, "v1", 3, 10, 1000),)
    assert ledger.statement("month", ReceiptFilter()) == [StatementLine("", 4, 2_500, 7, 0, 11)]
    ledger.close()


def test_a_ledger_belongs_to_one_at_a_time(ledger: Ledger, place: str) -> None:
    second = make_ledger(place)
    with pytest.raises(StoreUnavailable, match=r"end that one|is served by process"):
        second.open()
    ledger.commit([AddJob(JOB)])
    second.close()
    ledger.commit([AddModel(MODEL)])
    assert len(ledger.load().running) == 1


def test_a_ledger_that_is_not_open_says_so(place: str) -> None:
    ledger = make_ledger(place)
    with pytest.raises(StoreUnavailable):
        ledger.load()
    ledger.close()


RANGES = st.tuples(st.integers(0, 99), st.integers(1, 20)).map(lambda pair: (pair[0], min(100, sum(pair))))
CHUNKS = st.integers(0, 30)
STEPS = st.one_of(
    st.tuples(st.just("lease"), RANGES, st.sampled_from(["v1", "v2", "v3"])),
    st.tuples(st.just("end"), st.sampled_from(LeaseEnd), CHUNKS),
    st.tuples(st.just("rows"), RANGES, st.sampled_from(["v1", "v2", "v3"])),
)


@settings(max_examples=25)
@given(rounds=st.lists(st.lists(STEPS, max_size=8), max_size=6), ends=st.booleans())
@pytest.mark.parametrize("kind", LEDGERS)
def test_whatever_is_written_is_loaded_by_the_next_process(
    request: pytest.FixtureRequest,
    kind: str,
    rounds: list[list[tuple]],  # type: ignore[type-arg]
    ends: bool,
) -> None:
    done: set[int] = set()
    open_leases: dict[int, LeaseRecord] = {}
    results: list[AcceptedRows] = []
    chunk = released = 0
    with tempfile.TemporaryDirectory() as folder:
        place = new_place(kind, Path(folder), request)
        ledger = make_ledger(place)
        ledger.open()
        ledger.commit([AddModel(MODEL), AddJob(JOB)])
        for steps in rounds:
            writes: list[LedgerWrite] = []
            for what, *facts in steps:
                if what == "lease":
                    open_leases[chunk] = lease(chunk, *facts[0], facts[1])
                    writes.append(GrantLease(open_leases[chunk]))
                    chunk += 1
                elif what == "end" and facts[1] in open_leases:
                    ended = open_leases.pop(facts[1])
                    back = 0 if facts[0] is LeaseEnd.DONE else ended.stop - ended.start
                    released += back
                    writes.append(EndLease(JOB.id, ended.chunk, facts[0], back, 77))
                elif what == "rows" and (new := set(range(*facts[0])) - done):
                    done |= new
                    pieces = [(row, row + 1, row - facts[0][0]) for row in sorted(new)]
                    results.append(accepted(len(results) + 1, *pieces, vehicle=facts[1]))
                    writes.append(added(results[-1], lease(10_000, *facts[0], facts[1])))
            ledger.commit(writes)
        if ends:
            ledger.commit([EndJob(JOB.id, JobState.CANCELLED, 99)])
        before = ledger.load()
        ledger.close()
        ledger = make_ledger(place)
        ledger.open()
        after = ledger.load()
        rows = ledger.rows_after(JOB.id, 0, 1000)
        shown = ledger.job_view(JOB.id)
        ledger.close()
    assert after == before
    assert rows == results
    assert shown is not None
    assert (shown.rows_done, shown.rows_released_again) == (len(done), released)
    assert (shown.energy_mwh, shown.vehicles) == (7 * len(results), len({result.vehicle for result in results}))
    if ends:
        assert (after.running, shown.rows_leased) == ((), 0)
    else:
        (running,) = after.running
        assert {row for start, stop in running.done for row in range(start, stop)} == done
        assert all(first[1] < second[0] for first, second in zip(running.done, running.done[1:], strict=False))
        assert running.leases == tuple(open_leases.values())
        assert (running.next_chunk, running.rows_released_again) == (chunk, released)


def commit_until_killed(place: str, report: Connection) -> None:
    ledger = make_ledger(place)
    ledger.open()
    ledger.commit([AddJob(replace(JOB, rows=10_000_000))])
    for seq in range(1, 1_000_000):
        ledger.commit([GrantLease(lease(seq, seq, seq + 1)), AddRows(accepted(seq, (seq, seq + 1, 0)))])
        report.send(seq)


def open_when_free(ledger: Ledger) -> None:
    """A process that was killed has let nothing go: its lease ends by itself."""
    ends = time.monotonic() + 30
    while True:
        try:
            return ledger.open()
        except LedgerHeld:
            assert time.monotonic() < ends
            time.sleep(0.05)


def test_what_was_committed_survives_a_kill(place: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=commit_until_killed, args=(place, theirs))
    child.start()
    theirs.close()
    assert child.pid is not None
    while (last := ours.recv()) < 100:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    try:
        while True:
            last = ours.recv()
    except EOFError:
        pass
    ledger = make_ledger(place)
    open_when_free(ledger)
    (job,) = ledger.load().running
    ledger.close()
    kept = job.next_chunk
    assert kept in (last + 1, last + 2)  # the one under way may have been kept as well
    assert (job.done, len(job.leases)) == (((1, kept),), kept - 1)


def test_a_ledger_of_a_newer_program_is_refused_untouched_by_postgres_too(postgres_server: PostgresProcess) -> None:
    place = postgres_server.make_ledger()
    with psycopg.connect(place, autocommit=True) as newer:
        newer.execute("CREATE TABLE ledger_version (version BIGINT NOT NULL)")
        newer.execute("INSERT INTO ledger_version VALUES (999)")
        with pytest.raises(StoreUnavailable, match="version 999") as refusal:
            make_ledger(place).open()
        assert refusal.value.code == "ledger_too_new"
        found = newer.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema").fetchall()
        assert found == [("ledger_version",)]
        assert newer.execute("SELECT version FROM ledger_version").fetchall() == [(999,)]


def test_a_ledger_of_a_newer_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    newer = sqlite3.connect(path)
    newer.executescript("CREATE TABLE leases (something TEXT); PRAGMA user_version = 999")
    newer.close()
    with pytest.raises(StoreUnavailable, match="version 999") as refusal:
        SqliteLedger(path).open()
    assert refusal.value.code == "ledger_too_new"
    newer = sqlite3.connect(path)
    assert newer.execute("PRAGMA user_version").fetchone() == (999,)
    assert newer.execute("SELECT name FROM sqlite_schema").fetchall() == [("leases",)]
    newer.close()


def damaged_file(folder: Path, flipped: int) -> Path:
    """A ledger of many pages, in one of which bytes were flipped: page 0 has the file's head, and a tree's top."""
    path = folder / "ledger.db"
    ledger = SqliteLedger(path)
    ledger.open()
    ledger.commit([AddJob(JOB), *(GrantLease(lease(chunk, chunk, chunk + 1)) for chunk in range(4_000))])
    ledger.close()
    data = bytearray(path.read_bytes())
    page = 4096
    assert len(data) > 40 * page
    for byte in range(flipped * page, flipped * page + 64):
        data[byte] ^= 0xFF
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("flipped", [0, 20, 30])
def test_a_damaged_page_is_found_when_the_ledger_is_opened(tmp_path: Path, flipped: int) -> None:
    path = damaged_file(tmp_path, flipped)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="restore it from a backup") as refusal:
        SqliteLedger(path).open()
    assert refusal.value.code == "ledger_damaged"
    assert path.read_bytes() == before


def test_a_damaged_page_of_a_large_ledger_is_found_when_it_is_read_and_nothing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.adapters.sqlite_ledger._MOST_CHECKED_BYTES", 0)
    ledger = SqliteLedger(damaged_file(tmp_path, 30))
    ledger.open()
    ledger.expect_usable()
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        ledger.load()
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        ledger.expect_usable()
    ledger.close()


def test_a_file_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    path = damaged_file(tmp_path, 30)
    path.write_bytes(path.read_bytes()[: 4096 * 25])
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        SqliteLedger(path).open()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is a text and no database" * 100)
    with pytest.raises(StoreUnavailable, match="ledger"):
        SqliteLedger(path).open()
    with pytest.raises(StoreUnavailable):
        SqliteLedger(tmp_path / "nowhere" / "ledger.db").open()


def test_consents_are_kept_version_by_version(ledger: Ledger) -> None:
    first = OwnerPolicy(
        1, "ada", ["general"], hours=[Hours([0, 6], 1320, 360)], power_cap_w=50.0, threads=2, memory_bytes=10**9
    )
    second = OwnerPolicy(2, "ada", [], revoked=True)
    other = OwnerPolicy(1, "bob", ["maps"])
    ledger.commit([AddConsent("v1", first, "cli", 10), AddConsent("v2", other, "http", 11)])
    ledger.commit([AddConsent("v1", second, "owner", 12)])
    assert ledger.load().policies == (("v1", second), ("v2", other))
    assert ledger.policy_history("v1") == [PolicyView("v1", second, "owner", 12), PolicyView("v1", first, "cli", 10)]
    assert ledger.policy_history("v3") == []


def test_a_version_of_a_consent_is_never_replaced(ledger: Ledger) -> None:
    policy = OwnerPolicy(1, "ada", ["general"])
    ledger.commit([AddConsent("v1", policy, "cli", 10)])
    with pytest.raises(StoreUnavailable):
        ledger.commit([AddConsent("v1", OwnerPolicy(1, "eve", ["general"]), "cli", 11)])
    assert ledger.policy_history("v1") == [PolicyView("v1", policy, "cli", 10)]
