"""The ledger in one SQLite file that this process owns. Keeps what it is given; never decides about jobs or rows."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from coordinator.adapters.sql import migrations, named_queries
from coordinator.commands import (
    AddConsent,
    AddFailedRow,
    AddJob,
    AddModel,
    AddRows,
    EndJob,
    EndLease,
    GrantLease,
    KeepConduct,
    LedgerWrite,
)
from coordinator.errors import StoreUnavailable
from coordinator.model import (
    AcceptedRows,
    FailedRow,
    Job,
    JobState,
    LeaseRecord,
    Model,
    Piece,
    Rest,
    VehicleConduct,
)
from coordinator.ports import LedgerJob, LedgerSnapshot, ReceiptFilter, VehicleSums
from fleet_wire.api import JobTerms, JobView, PolicyView, ReceiptView, StatementLine, TensorSpec
from fleet_wire.policy import OwnerPolicy
from fleet_wire.trace import parse_trace

__all__ = ["SqliteLedger"]

# Exclusive: a second process that opens the same ledger is told so, instead of giving the same rows out again.
_PRAGMAS = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"

_encode_pieces = msgspec.msgpack.Encoder().encode
_decode_pieces = msgspec.msgpack.Decoder(tuple[Piece, ...]).decode
_decode_specs = msgspec.json.Decoder(tuple[TensorSpec, ...]).decode
_decode_terms = msgspec.json.Decoder(JobTerms).decode
_decode_policy = msgspec.json.Decoder(OwnerPolicy).decode


_MOST_ENDED = 100_000  # of a job: what a restart remembers, some tens of megabytes
_NOT_ENDED = (None, None)
_NOTHING = (0, 0, 0, 0, 0)


class SqliteLedger:
    """`open` and every other method are to be called in the same thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queries = named_queries()
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open and migrate. Raises StoreUnavailable."""
        try:
            with self._failures():
                self._database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
                self._database.row_factory = sqlite3.Row
                self._database.executescript(_PRAGMAS)
                self._migrate()
        except StoreUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Close; committed writes stay."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _migrate(self) -> None:
        steps = migrations()
        newest = steps[-1][0]
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > newest:
            raise StoreUnavailable(
                "ledger_too_new",
                f"the ledger {self._path} has version {version} and this program knows {newest}: "
                "start the newer program again, or give this one another folder",
            )
        for step, script in steps:
            if step > version:
                with self._transaction():
                    for statement in _statements(script):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {step}")

    def commit(self, writes: Sequence[LedgerWrite]) -> None:
        """Keep all writes in one transaction. Raises StoreUnavailable, and then none is kept."""
        groups: defaultdict[type[Any], list[Any]] = defaultdict(list)
        for write in writes:
            groups[type(write)].append(write)
        with self._failures(), self._transaction():
            # A job comes before its leases, and a lease before its end; else the order within a round is free.
            self._many("add_model", (_model_row(write.model) for write in groups[AddModel]))
            self._many("add_consent", (_consent_row(write) for write in groups[AddConsent]))
            self._many("add_job", (_job_row(write.job) for write in groups[AddJob]))
            self._many("add_lease", (_lease_row(write.lease) for write in groups[GrantLease]))
            self._change_leases(groups[EndLease], groups[AddRows])
            self._many("add_result", (_result_row(write.rows) for write in groups[AddRows]))
            self._add_receipts(groups[AddRows])
            self._many("add_failed_row", (_failed_row(write) for write in groups[AddFailedRow]))
            self._many("keep_conduct", (_conduct_row(write.conduct) for write in groups[KeepConduct]))
            self._many("end_job", (_end_row(write) for write in groups[EndJob]))

    def _change_leases(self, ends: Sequence[EndLease], added: Sequence[AddRows]) -> None:
        """Mostly a lease's last rows come with its end: then one statement does both."""
        left = {(end.job, end.chunk): (end.end.value, end.ended_ms) for end in ends}
        changes: list[tuple[Any, ...]] = []
        for part in chain.from_iterable(write.parts for write in added):
            lease = (part.lease.job, part.lease.chunk)
            ended = left.pop(lease, _NOT_ENDED)
            amounts = (part.rows, part.compute_us, part.energy_mwh, part.energy_pay_micro, part.fee_pay_micro)
            changes.append(ended + amounts + lease)
        changes += [ended + _NOTHING + lease for lease, ended in left.items()]
        self._many("change_lease", changes)
        released: defaultdict[str, int] = defaultdict(int)
        for end in ends:
            if end.rows_back:
                released[end.job] += end.rows_back
        self._many("count_rows_released", ((rows, job) for job, rows in released.items()))

    def _add_receipts(self, added: Sequence[AddRows]) -> None:
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
        self._many("add_receipts", ((*key, *values) for key, values in sums.items()))

    def load(self) -> LedgerSnapshot:
        """Read what a core needs to start."""
        with self._failures():
            (next_seq,) = self._one("next_seq")
            return LedgerSnapshot(
                models=tuple(_model(row) for row in self._all("all_models")),
                running=tuple(self._running(row) for row in self._all("running_jobs")),
                next_seq=next_seq,
                vehicles=tuple(VehicleSums(*sums) for sums in self._all("sums_of_vehicles")),
                conduct=tuple(VehicleConduct(*row) for row in self._all("all_conduct")),
                policies=tuple(
                    (row["vehicle"], _decode_policy(row["document"])) for row in self._all("newest_consents")
                ),
            )

    def _running(self, row: sqlite3.Row) -> LedgerJob:
        job = _job(row)
        (next_chunk,) = self._one("next_chunk", job.id)
        compute_us, energy_mwh, pay_micro = self._one("sums_of_job", job.id)
        (rows_copied,) = self._one("rows_copied", job.id)
        accepted = (_decode_pieces(pieces) for (pieces,) in self._run("pieces_of_job", job.id))
        return LedgerJob(
            job=job,
            done=_merged((piece.start, piece.stop) for pieces in accepted for piece in pieces),
            leases=tuple(LeaseRecord(*lease) for lease in self._all("open_leases", job.id)),
            next_chunk=next_chunk,
            rows_released_again=row["rows_released_again"],
            compute_us=compute_us,
            energy_mwh=energy_mwh,
            pay_micro=pay_micro,
            rests=tuple((vehicle, Rest(energy, fee)) for vehicle, energy, fee in self._all("rests_of_job", job.id)),
            failed=tuple(FailedRow(*failed) for failed in self._all("failed_rows", job.id)),
            rows_copied=rows_copied,
            seen=tuple((vehicle, rows) for vehicle, rows in self._all("seen_of_job", job.id)),
            worked=tuple((vehicle, since_ms, us) for vehicle, since_ms, us in self._all("worked_of_job", job.id)),
            ended=tuple(LeaseRecord(*lease) for lease in self._all("ended_leases", job.id, _MOST_ENDED)),
        )

    def rows_after(self, job: str, seq: int, limit: int) -> list[AcceptedRows]:
        """Accepted rows of a job with a greater seq, in its order."""
        with self._failures():
            found = self._all("rows_after", job, seq, limit)
        return [AcceptedRows(**{**row, "pieces": _decode_pieces(row["pieces"])}) for row in map(dict, found)]

    def failed_rows(self, job: str) -> list[FailedRow]:
        """Rows of a job that were given up, in their order."""
        with self._failures():
            return [FailedRow(*row) for row in self._all("failed_rows", job)]

    def ended_jobs(self, limit: int) -> list[JobView]:
        """Jobs that came to their end, the latest first."""
        with self._failures():
            return [_job_view(self._one("job_view", job)) for (job,) in self._all("ended_jobs", limit)]

    def job_view(self, job: str) -> JobView | None:
        """One job, running or ended; None when there is none of that id."""
        with self._failures():
            found = self._all("job_view", job)
        return _job_view(found[0]) if found else None

    def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first."""
        with self._failures():
            return [
                PolicyView(row["vehicle"], _decode_policy(row["document"]), row["set_by"], row["set_ms"])
                for row in self._all("consents_of", vehicle)
            ]

    def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Sums of receipts of each owner, vehicle, job or month, in their order."""
        with self._failures():
            found = self._connection.execute(self._queries["statement"], {"by": by, **asdict(only)}).fetchall()
        return [StatementLine(_month_text(of) if by == "month" else of, *sums) for of, *sums in found]

    def receipts(self, only: ReceiptFilter, after: tuple[str, int], limit: int) -> list[ReceiptView]:
        """Receipts of jobs and chunks behind `after`, in their order."""
        values = {"after_job": after[0], "after_chunk": after[1], "limit": limit, **asdict(only)}
        with self._failures():
            found = self._connection.execute(self._queries["receipts"], values).fetchall()
        return [_receipt_view(row) for row in found]

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreUnavailable("ledger_unavailable", f"the ledger {self._path} is not open")
        return self._database

    def _run(self, name: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(self._queries[name], values)

    def _all(self, name: str, *values: Any) -> list[Any]:
        return self._run(name, *values).fetchall()

    def _one(self, name: str, *values: Any) -> Any:
        return self._run(name, *values).fetchone()

    def _many(self, name: str, rows: Iterable[Any]) -> None:
        self._connection.executemany(self._queries[name], rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreUnavailable("ledger_unavailable", f"the ledger {self._path}: {error}") from error


def _statements(script: str) -> Iterator[str]:
    """Split a script, so that it can run inside a transaction of ours."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    whole: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(stop, whole[-1][1]))
        else:
            whole.append((start, stop))
    return tuple(whole)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _model_row(model: Model) -> dict[str, Any]:
    return {
        "digest": model.digest,
        "size": model.size,
        "inputs": _json(model.inputs),
        "outputs": _json(model.outputs),
        "batch_rows": model.batch_rows,
    }


def _model(row: sqlite3.Row) -> Model:
    return Model(
        digest=row["digest"],
        size=row["size"],
        inputs=_decode_specs(row["inputs"]),
        outputs=_decode_specs(row["outputs"]),
        batch_rows=row["batch_rows"],
    )


def _consent_row(consent: AddConsent) -> tuple[Any, ...]:
    policy = consent.policy
    return (consent.vehicle, policy.version, policy.owner, _json(policy), consent.by, consent.set_ms)


def _job_row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "model": job.model,
        "inputs": job.inputs,
        "row_count": job.rows,
        "row_bytes": job.row_bytes,
        "terms": _json(job.terms),
        "created_ms": job.created_ms,
        "traceparent": "" if job.trace is None else job.trace.traceparent,
        "tracestate": "" if job.trace is None else job.trace.state,
    }


def _job(row: sqlite3.Row) -> Job:
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


def _end_row(end: EndJob) -> dict[str, Any]:
    return {"job": end.job, "state": end.state.value, "ended_ms": end.ended_ms, "error": end.error}


def _lease_row(lease: LeaseRecord) -> tuple[Any, ...]:
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


def _failed_row(write: AddFailedRow) -> tuple[Any, ...]:
    return (write.job, write.row.row, write.row.attempts, write.row.error)


def _conduct_row(conduct: VehicleConduct) -> tuple[Any, ...]:
    return (
        conduct.vehicle,
        conduct.strikes,
        conduct.quarantined_until_ms,
        conduct.leases_kept,
        conduct.leases_ended,
    )


def _result_row(rows: AcceptedRows) -> tuple[Any, ...]:
    return (
        rows.seq,
        rows.job,
        rows.vehicle,
        rows.accepted_ms,
        rows.compute_ms,
        rows.energy_mwh,
        rows.pay_micro,
        _encode_pieces(rows.pieces),
        rows.payload_ref,
        rows.payload,
    )


def _month_text(month: int) -> str:
    return f"{month // 100}-{month % 100:02}" if month else ""


def _receipt_view(row: sqlite3.Row) -> ReceiptView:
    facts = {name: row[name] for name in row.keys() if name != "rows_done"}  # noqa: SIM118 - a Row yields values
    facts |= {"month": _month_text(row["month"]), "rows": row["rows_done"]}
    return ReceiptView(cursor=f"{row['job']}.{row['chunk']}", **facts)


def _job_view(row: sqlite3.Row) -> JobView:
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
    )
