"""What a ledger on any SQL database answers. Knows no engine: each has a file of its own, which runs the statements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.adapters.ledger_rows import (
    accepted_rows,
    answer_of,
    decode_pieces,
    decode_policy,
    job_of,
    job_view,
    merged,
    model_of,
    month_text,
    policy_view,
    receipt_view,
)
from coordinator.model import AcceptedRows, Check, FailedRow, LeaseRecord, Rest, VehicleConduct
from coordinator.ports import LedgerJob, LedgerSnapshot, ReceiptFilter, VehicleSums
from fleet_wire.api import JobView, PolicyView, ReceiptView, StatementLine

__all__ = ["SqlLedger"]

_MOST_ENDED: Final = 100_000  # of a job: what a restart remembers, some tens of megabytes


class SqlLedger(ABC):
    """The reading half of `ports.Ledger`, by the named queries of `sql/queries.sql`."""

    @abstractmethod
    def _read(self, name: str, values: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
        """Run a query; its columns' names and its rows. Raises StoreUnavailable."""

    def load(self) -> LedgerSnapshot:
        """Read what a core needs to start."""
        ((next_seq,),) = self._all("next_seq")
        return LedgerSnapshot(
            models=tuple(model_of(row) for row in self._records("all_models")),
            running=tuple(self._running(row) for row in self._records("running_jobs")),
            next_seq=next_seq,
            vehicles=tuple(VehicleSums(*sums) for sums in self._all("sums_of_vehicles")),
            conduct=tuple(VehicleConduct(*row) for row in self._all("all_conduct")),
            policies=tuple((vehicle, decode_policy(text)) for vehicle, text in self._all("newest_consents")),
        )

    def _running(self, row: Mapping[str, Any]) -> LedgerJob:
        job = job_of(row)
        ((next_chunk,),) = self._all("next_chunk", job.id)
        ((compute_us, energy_mwh, pay_micro),) = self._all("sums_of_job", job.id)
        ((rows_copied,),) = self._all("rows_copied", job.id)
        ((next_answer,),) = self._all("next_answer", job.id)
        accepted = [
            (piece.start, piece.stop, answer)
            for pieces, answer in self._all("pieces_of_job", job.id)
            for piece in decode_pieces(pieces)
        ]
        is_verified = job.terms.is_verified
        return LedgerJob(
            job=job,
            done=() if is_verified else merged((start, stop) for start, stop, _ in accepted),
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
            accepted=tuple(accepted) if is_verified else (),
            answers=tuple(answer_of(answer) for answer in self._records("answers_of_job", (job.id,))),
            next_answer=next_answer,
            checks=tuple((row, Check(state)) for row, state in self._all("checks_of_job", job.id)),
        )

    def rows_after(self, job: str, seq: int, limit: int) -> list[AcceptedRows]:
        """Accepted rows of a job with a greater seq, in its order."""
        return [accepted_rows(row) for row in self._records("rows_after", (job, seq, limit))]

    def failed_rows(self, job: str) -> list[FailedRow]:
        """Rows of a job that were given up, in their order."""
        return [FailedRow(*row) for row in self._all("failed_rows", job)]

    def ended_jobs(self, limit: int) -> list[JobView]:
        """Jobs that came to their end, the latest first."""
        return [job_view(row) for (job,) in self._all("ended_jobs", limit) for row in self._records("job_view", (job,))]

    def job_view(self, job: str) -> JobView | None:
        """One job, running or ended; None when there is none of that id."""
        found = self._records("job_view", (job,))
        return job_view(found[0]) if found else None

    def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first."""
        return [policy_view(row) for row in self._records("consents_of", (vehicle,))]

    def ended_jobs_answered(self, vehicle: str, since_ms: int) -> list[str]:
        """Verified jobs that ended since then, the first first, and of which a vehicle was paid for rows."""
        return [job for (job,) in self._all("ended_jobs_answered", since_ms, vehicle)]

    def rows_unconfirmed(self, job: str, vehicle: str) -> int:
        """How many rows count by a vehicle's answers that nobody else has answered who was not convicted since."""
        ((rows,),) = self._all("rows_of_job", job)
        counts = np.full(rows, -1)
        for pieces, answer in self._all("pieces_of_job", job):
            counts[_rows(pieces, rows)] = -1 if answer is None else answer
        own: list[int] = []
        for number, witness, pieces, convicted in self._all("witnesses_of_job", job):
            if witness == vehicle:
                own.append(number)
            elif not convicted:
                counts[_rows(pieces, rows)] = -1
        return int(np.count_nonzero(np.isin(counts, own)))

    def statement(self, by: str, only: ReceiptFilter) -> list[StatementLine]:
        """Sums of receipts of each owner, vehicle, job or month, in their order."""
        _, found = self._read("statement", {"by": by, **asdict(only)})
        return [StatementLine(month_text(int(of)) if by == "month" else of, *sums) for of, *sums in found]

    def receipts(self, only: ReceiptFilter, after: tuple[str, int], limit: int) -> list[ReceiptView]:
        """Receipts of jobs and chunks behind `after`, in their order."""
        values = {"after_job": after[0], "after_chunk": after[1], "limit": limit, **asdict(only)}
        return [receipt_view(row) for row in self._records("receipts", values)]

    def _all(self, name: str, *values: Any) -> list[Any]:
        return self._read(name, values)[1]

    def _records(self, name: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        columns, rows = self._read(name, values)
        return [dict(zip(columns, row, strict=True)) for row in rows]


def _rows(pieces: bytes, rows: int) -> NDArray[np.int64]:
    """The rows of a job with so many that pieces, in rows or in slots, speak of."""
    return np.concatenate([np.arange(piece.start, piece.stop) for piece in decode_pieces(pieces)]) % rows
