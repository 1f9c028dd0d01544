"""What the tables of a ledger hold of the coordinator's nouns, both ways, and in which order a round is written.

The same for every engine. Pure: runs no statement and knows no engine.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import add
from typing import Any

import msgspec

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
from coordinator.model import AcceptedRows, Answer, Job, JobState, LeaseRecord, Model, Piece, VehicleConduct
from fleet_wire.api import JobTerms, JobView, PolicyView, ReceiptView, TensorSpec
from fleet_wire.policy import OwnerPolicy
from fleet_wire.trace import parse_trace

__all__ = [
    "accepted_rows",
    "answer_of",
    "decode_pieces",
    "decode_policy",
    "job_of",
    "job_view",
    "merged",
    "model_of",
    "month_text",
    "policy_view",
    "receipt_view",
    "statements",
]

_encode_pieces = msgspec.msgpack.Encoder().encode
decode_pieces = msgspec.msgpack.Decoder(tuple[Piece, ...]).decode
decode_policy = msgspec.json.Decoder(OwnerPolicy).decode
_decode_specs = msgspec.json.Decoder(tuple[TensorSpec, ...]).decode
_decode_terms = msgspec.json.Decoder(JobTerms).decode

_NOT_ENDED = (None, None)
_NOTHING = (0, 0, 0, 0, 0)
Row = tuple[Any, ...]


def statements(writes: Sequence[LedgerWrite]) -> Iterator[tuple[str, list[Row]]]:
    """The named statements that keep these writes, in the order in which they must run, each with its rows.

    No two rows of a statement change the same thing, so that an engine may run it once for all of them.
    """
    groups: defaultdict[type[Any], list[Any]] = defaultdict(list)
    for write in writes:
        groups[type(write)].append(write)
    # A job comes before its leases, and a lease before its end; else the order within a round is free.
    parts: tuple[tuple[str, Iterable[Row]], ...] = (
        ("add_model", (_model_row(write.model) for write in groups[AddModel])),
        ("add_consent", map(_consent_row, groups[AddConsent])),
        ("add_job", (_job_row(write.job) for write in groups[AddJob])),
        ("add_lease", (_lease_row(write.lease) for write in groups[GrantLease])),
        ("change_lease", _lease_changes(groups[EndLease], [*groups[AddRows], *groups[AddAnswer]])),
        ("count_rows_released", _rows_released(groups[EndLease])),
        ("add_result", (_result_row(write.rows) for write in groups[AddRows])),
        ("add_answer", (_answer_row(write.answer) for write in groups[AddAnswer])),
        ("void_answers", ((write.job, write.vehicle) for write in groups[VoidAnswers])),
        ("keep_check", _check_rows(groups[KeepChecks])),
        ("add_receipts", _receipt_sums([*groups[AddRows], *groups[AddAnswer]])),
        ("add_failed_row", map(_failed_row, groups[AddFailedRow])),
        (
            "keep_conduct",
            {write.conduct.vehicle: _conduct_row(write.conduct) for write in groups[KeepConduct]}.values(),
        ),
        ("end_job", {end.job: _end_row(end) for end in reversed(groups[EndJob])}.values()),  # a job ends once
    )
    for name, rows in parts:
        if listed := list(rows):
            yield name, listed


def _lease_changes(ends: Sequence[EndLease], added: Sequence[AddRows | AddAnswer]) -> Iterator[Row]:
    """Mostly a lease's last rows come with its end: then one row says both."""
    ended = {(end.job, end.chunk): (end.end.value, end.ended_ms) for end in ends}
    sums: dict[tuple[str, int], tuple[int, ...]] = dict.fromkeys(ended, _NOTHING)
    for part in chain.from_iterable(write.parts for write in added):
        lease = (part.lease.job, part.lease.chunk)
        figures = (part.rows, part.compute_us, part.energy_mwh, part.energy_pay_micro, part.fee_pay_micro)
        before = sums.get(lease, _NOTHING)
        sums[lease] = figures if before is _NOTHING else tuple(map(add, before, figures))
    return ((*ended.get(lease, _NOT_ENDED), *figures, *lease) for lease, figures in sums.items())


def _rows_released(ends: Sequence[EndLease]) -> Iterator[Row]:
    released: defaultdict[str, int] = defaultdict(int)
    for end in ends:
        if end.rows_back:
            released[end.job] += end.rows_back
    return ((rows, job) for job, rows in released.items())


def _receipt_sums(added: Sequence[AddRows | AddAnswer]) -> Iterator[Row]:
    sums: defaultdict[tuple[str, str, int, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for write in added:
        before: tuple[int, int] | None = None
        for part in write.parts:  # of one job and one vehicle, and mostly of one month and one consent
            lease = part.lease
            if before != (now := (lease.month, lease.consent_version)):
                before, total = now, sums[lease.job, lease.vehicle, *now]
            total[0] += part.rows
            total[1] += part.compute_us
            total[2] += part.energy_mwh
            total[3] += part.energy_pay_micro
            total[4] += part.fee_pay_micro
    return ((*key, *values) for key, values in sums.items())


def merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges without gaps and overlaps between neighbours, in order."""
    whole: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(stop, whole[-1][1]))
        else:
            whole.append((start, stop))
    return tuple(whole)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _model_row(model: Model) -> Row:
    return (model.digest, model.size, _json(model.inputs), _json(model.outputs), model.batch_rows)


def model_of(row: Mapping[str, Any]) -> Model:
    """A model from its row."""
    return Model(
        digest=row["digest"],
        size=row["size"],
        inputs=_decode_specs(row["inputs"]),
        outputs=_decode_specs(row["outputs"]),
        batch_rows=row["batch_rows"],
    )


def _consent_row(consent: AddConsent) -> Row:
    policy = consent.policy
    return (consent.vehicle, policy.version, policy.owner, _json(policy), consent.by, consent.set_ms)


def _job_row(job: Job) -> Row:
    return (
        job.id,
        job.name,
        job.model,
        job.inputs,
        job.rows,
        job.row_bytes,
        _json(job.terms),
        job.created_ms,
        "" if job.trace is None else job.trace.traceparent,
        "" if job.trace is None else job.trace.state,
        int(job.terms.is_verified),
    )


def job_of(row: Mapping[str, Any]) -> Job:
    """A job from its row."""
    return Job(
        id=row["id"],
        name=row["name"],
        model=row["model"],
        inputs=row["inputs"],
        rows=row["row_count"],
        row_bytes=row["row_bytes"],
        terms=_decode_terms(row["terms"]),
        created_ms=row["created_ms"],
        trace=parse_trace(row["traceparent"], row["tracestate"]) if row["traceparent"] else None,
    )


def _end_row(end: EndJob) -> Row:
    return (end.state.value, end.ended_ms, end.error, end.job)


def _lease_row(lease: LeaseRecord) -> Row:
    return (
        lease.job,
        lease.chunk,
        lease.start,
        lease.stop,
        lease.vehicle,
        lease.epoch,
        lease.granted_ms,
        lease.deadline_ms,
        lease.consent_version,
        lease.energy_micro_per_kwh,
        lease.pay_micro_per_h,
        lease.month,
        lease.copy_of,
    )


def _check_rows(writes: Sequence[KeepChecks]) -> Iterator[Row]:
    checks = {(write.job, row): int(write.check) for write in writes for row in write.rows}
    return ((*key, check) for key, check in checks.items())


def _failed_row(write: AddFailedRow) -> Row:
    return (write.job, write.row.row, write.row.attempts, write.row.error)


def _conduct_row(conduct: VehicleConduct) -> Row:
    return (
        conduct.vehicle,
        conduct.strikes,
        conduct.quarantined_until_ms,
        conduct.leases_kept,
        conduct.leases_ended,
        conduct.checks_passed,
        conduct.convictions,
        conduct.convicted_ms,
    )


def _result_row(rows: AcceptedRows) -> Row:
    return (
        rows.seq,
        rows.job,
        rows.vehicle,
        rows.accepted_ms,
        rows.compute_ms,
        rows.energy_mwh,
        rows.pay_micro,
        _encode_pieces(rows.pieces),
        rows.answer,
        int(rows.retracted),
        _verified_rows(rows),
        rows.payload_ref,
        rows.payload,
    )


def _verified_rows(rows: AcceptedRows) -> int:
    """How many rows more count because of this; those of jobs that are not verified are counted by their receipts."""
    count = sum(piece.stop - piece.start for piece in rows.pieces)
    return -count if rows.retracted else 0 if rows.answer is None else count


def _answer_row(answer: Answer) -> Row:
    return (
        answer.job,
        answer.number,
        answer.vehicle,
        answer.engine,
        int(answer.held),
        answer.received_ms,
        _encode_pieces(answer.pieces),
        answer.payload,
    )


def answer_of(row: Mapping[str, Any]) -> Answer:
    """An answer from its row."""
    return Answer(**{**row, "pieces": decode_pieces(row["pieces"]), "held": bool(row["held"])})


def month_text(month: int) -> str:
    """202611 as 2026-11; empty when there is no month."""
    return f"{month // 100}-{month % 100:02}" if month else ""


def receipt_view(row: Mapping[str, Any]) -> ReceiptView:
    """A receipt from the row of its lease."""
    facts = {name: value for name, value in row.items() if name != "rows_done"}
    facts |= {"month": month_text(row["month"]), "rows": row["rows_done"]}
    return ReceiptView(cursor=f"{row['job']}.{row['chunk']}", **facts)


def job_view(row: Mapping[str, Any]) -> JobView:
    """A job as clients see it."""
    running = row["state"] == JobState.RUNNING.value
    return JobView(
        id=row["id"],
        name=row["name"],
        model=row["model"],
        state=row["state"],
        rows=row["row_count"],
        rows_done=row["rows_done"],
        rows_leased=row["rows_leased"] if running else 0,
        created_ms=row["created_ms"],
        ended_ms=row["ended_ms"],
        error=row["error"],
        rows_duplicate=0,  # duplicates change nothing, so the ledger does not know of them
        rows_released_again=row["rows_released_again"],
        compute_ms=row["compute_us"] / 1000,
        energy_mwh=row["energy_mwh"],
        pay_micro=row["pay_micro"],
        vehicles=row["vehicles"],
        rows_failed=row["rows_failed"],
        verification=_decode_terms(row["terms"]).verification.label,
        rows_checked=row["rows_checked"],
        rows_retracted=row["rows_retracted"],
    )


def policy_view(row: Mapping[str, Any]) -> PolicyView:
    """A version of an owner's policy from its row."""
    return PolicyView(row["vehicle"], decode_policy(row["document"]), row["set_by"], row["set_ms"])


def accepted_rows(row: Mapping[str, Any]) -> AcceptedRows:
    """Accepted rows from the row of their result."""
    return AcceptedRows(**{**row, "pieces": decode_pieces(row["pieces"]), "retracted": bool(row["retracted"])})
