"""Rows of verified jobs, from a car's answer to where they count: held, checked, judged, and taken back if need be.

Decides by `rules.verification`. A disagreement is never settled by cars: the coordinator computes the row itself, and
whoever contradicts that is convicted. It runs no model: it asks by `FindOut`, and `RowsKnown` is the answer.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from coordinator.checks import ALONE, AUDIT, DECIDED, JobChecks, Mask, Rows, distinct
from coordinator.commands import (
    AddAnswer,
    AddFailedRow,
    AddRows,
    Command,
    FindOut,
    LookBack,
    SendControl,
    VoidAnswers,
)
from coordinator.conduct import Conduct
from coordinator.events import RowsKnown
from coordinator.fleet_view import FleetView
from coordinator.leases import Leases
from coordinator.model import REFEREE, AcceptedRows, Answer, Check, FailedRow, LeaseEnd, Piece, ReceiptPart
from coordinator.ports import LedgerJob
from coordinator.progress import JobProgress, OpenLease
from coordinator.rules.verification import VerificationLimits, check_share, chosen, is_trusted, least_of
from fleet_wire.messages import Cancel

__all__ = ["Verifying"]

_MOST_ASKED = 512  # rows of a job that the coordinator is to compute itself, at once
_ASK_AGAIN_MS = 30_000
_ERROR_CHARACTERS = 1000


@dataclass(slots=True)
class Verifying:
    """The checks of all verified jobs that run. `secret` keeps cars from knowing which rows will be checked.

    `take_seq` gives the next number of a result stream's entry; `close` ends leases of which no row is left.
    """

    limits: VerificationLimits
    secret: bytes
    fleet: FleetView
    leases: Leases
    conduct: Conduct
    counters: Counter[str]
    take_seq: Callable[[], int]
    close: Callable[[str, JobProgress, Iterable[OpenLease], int], list[Command]]
    jobs: dict[str, JobChecks] = field(default_factory=dict)

    def begin(self, progress: JobProgress, now_ms: int) -> list[Command]:
        """A job was submitted: some of its rows are drawn that the coordinator computes itself."""
        job, terms = progress.job, progress.job.terms.verification
        if not progress.is_verified:
            return []
        checks = self.jobs[job.id] = JobChecks.fresh(progress)
        share = {"canaries": terms.canary_share, "adaptive": min(terms.canary_share, self.limits.canaries / job.rows)}
        rows = np.arange(job.rows, dtype=np.int64)
        drawn = chosen(self.secret, job.id, REFEREE, rows, share.get(terms.rule, 0.0))
        return [*checks.set_checks(rows[drawn], Check.REFEREE, now_ms), *self._ask(checks, now_ms)]

    def restore(self, kept: LedgerJob, now_ms: int) -> JobChecks:
        """Go on from what the ledger remembers."""
        checks = self.jobs[kept.job.id] = JobChecks.restored(
            kept.job, kept.accepted, kept.failed, kept.checks, kept.answers, kept.leases, now_ms
        )
        checks.next_number = kept.next_answer
        return checks

    def answered(
        self,
        progress: JobProgress,
        vehicle: str,
        pieces: tuple[Piece, ...],
        payload: bytes,
        parts: tuple[ReceiptPart, ...],
        now_ms: int,
    ) -> list[Command]:
        """A car has computed these slots, which nobody had answered."""
        checks = self.jobs[progress.job.id]
        passed = self.conduct.checks_passed(vehicle)
        rule = progress.job.terms.verification.rule
        held = rule != "quorum" and not is_trusted(passed, self.limits)
        engine = self.fleet.engines[self.fleet.row(vehicle)]
        answer = Answer(checks.next_number, progress.job.id, vehicle, engine, pieces, payload, held, now_ms)
        checks.add(answer)
        commands: list[Command] = [AddAnswer(answer, parts)]
        rows, own = checks.answers[answer.number].slots % progress.job.rows, checks.rows_of(answer.number)
        layers = checks.answers[answer.number].slots // progress.job.rows

        known = checks.known[rows] >= 0
        wrong = rows[known][~self._right(checks, rows[known], layers[known])]
        if len(wrong):
            commands += self._accept_known(checks, wrong, now_ms)
            return [*commands, *self._convict(vehicle, now_ms)]

        contested, agreed = self._compare(checks, answer.number, rows[~known])
        commands += checks.set_checks(contested, Check.REFEREE_ALONE, now_ms)
        passes: Counter[str] = Counter()
        if rule == "quorum":
            commands += self._accept(checks, agreed, now_ms)
        else:
            audited = agreed[checks.check[agreed] == AUDIT]
            self._credit(checks, audited, passes)
            commands += checks.set_checks(audited, Check.DECIDED, now_ms)
            right = rows[known & (layers == 0)]
            passes[vehicle] += len(right)
            commands += self._accept(checks, right, now_ms)
            commands += self._choose(checks, vehicle, own, passed, held=held, now_ms=now_ms)
            if not held:
                commands += self._accept(checks, own[checks.check[own] != ALONE], now_ms)
            commands += self._release(checks, [answer.number, *checks.answer[0, audited].tolist()], now_ms)
        commands += self._passed(passes)
        checks.forget({answer.number, *distinct(checks.answer[:, rows])})
        return [*commands, *self._sync(checks, rows, now_ms), *self._ask(checks, now_ms)]

    def known(self, event: RowsKnown, now_ms: int) -> list[Command]:
        """The coordinator has computed rows itself, or can't."""
        checks = self.jobs.get(event.job)
        if checks is None:
            return []
        rows = np.array(event.rows, dtype=np.int64)
        fresh = (checks.known[rows] < 0) & ~checks.given_up[rows] & (checks.check[rows] > 0)
        if event.payload is None:
            return self._unknowable(checks, rows[fresh], event.error or "", now_ms)
        if not fresh.any():
            return []
        self.counters["row_refereed"] += int(np.count_nonzero(fresh))
        pieces = _pieces(rows[fresh], np.flatnonzero(fresh))
        rows = rows[fresh]
        answer = Answer(checks.next_number, event.job, REFEREE, REFEREE, pieces, event.payload, False, now_ms)
        was_alone = checks.check[rows] == ALONE
        checks.add(answer)
        commands: list[Command] = [AddAnswer(answer)]
        guilty: set[str] = set()
        passes: Counter[str] = Counter()
        counted = np.zeros(len(rows), dtype=np.bool_)  # though it is wrong
        for layer in range(len(checks.answer)):
            there = checks.answer[layer, rows] >= 0
            right = self._right(checks, rows[there], np.full(np.count_nonzero(there), layer))
            numbers = checks.answer[layer, rows[there]]
            counted[there] |= ~right & (checks.source[rows[there]] == numbers)
            guilty |= {checks.answers[number].vehicle for number in distinct(numbers[~right])}
            if layer == 0 and checks.job.terms.verification.rule != "quorum":
                self._credit(checks, rows[there][right], passes)
        commands += checks.set_checks(rows, Check.DECIDED, now_ms)
        commands += self._retract(checks, rows[counted], now_ms)
        answered = (checks.answer[:, rows] >= 0).any(axis=0)
        commands += self._accept_known(checks, rows[answered | was_alone], now_ms)
        touched = distinct(checks.answer[:, rows])
        for vehicle in sorted(guilty):
            commands += self._convict(vehicle, now_ms)
            del passes[vehicle]
        commands += self._release(checks, touched, now_ms)
        commands += self._passed(passes)
        checks.forget(touched)
        return [*commands, *self._sync(checks, rows, now_ms), *self._ask(checks, now_ms)]

    def beyond_hope(self, progress: JobProgress, slot: int, now_ms: int) -> list[Command]:
        """Cars say that the model fails on this row: it is given up when the coordinator finds so, too."""
        checks = self.jobs[progress.job.id]
        rows = np.array([slot % progress.job.rows], dtype=np.int64)
        if checks.known[rows[0]] >= 0:
            commands = self._accept_known(checks, rows, now_ms)
        else:
            commands = [*checks.set_checks(rows, Check.REFEREE_ALONE, now_ms)]
        return [*commands, *self._sync(checks, rows, now_ms), *self._ask(checks, now_ms)]

    def tick(self, now_ms: int) -> list[Command]:
        """Ask again for what was not answered, and for audits that no other car takes."""
        commands: list[Command] = []
        for checks in self.jobs.values():
            for row, asked_ms in list(checks.asked.items()):
                if asked_ms > now_ms - _ASK_AGAIN_MS:
                    break
                del checks.asked[row]
                checks.to_ask[row] = None
            stale: list[int] = []
            for row, opened_ms in list(islice(checks.audits.items(), _MOST_ASKED)):
                if opened_ms > now_ms - self.limits.audit_wait_ms:
                    break
                if checks.progress.covered[checks.job.rows + row]:  # somebody is at it
                    del checks.audits[row]
                    checks.audits[row] = now_ms
                else:
                    stale.append(row)
            rows = np.array(stale, dtype=np.int64)
            commands += checks.set_checks(rows, Check.REFEREE_ALONE, now_ms)
            commands += self._sync(checks, rows, now_ms) if stale else []
            commands += self._ask(checks, now_ms)
        return commands

    # Judging --------------------------------------------------------------------------------------------------------

    def _right(self, checks: JobChecks, rows: Rows, layers: NDArray[np.int64]) -> Mask:
        """Whether the answers to these known rows, each in its layer, are right."""
        right = np.ones(len(rows), dtype=np.bool_)
        for layer in distinct(layers):
            which = layers == layer
            right[which] = checks.agree(checks.places(layer, rows[which]), checks.known_places(rows[which]))
        return right

    def _compare(self, checks: JobChecks, number: int, rows: Rows) -> tuple[Rows, Rows]:
        """Of these rows, to which another answer contradicts this one, and which have all answers, and they agree."""
        rows = rows[checks.check[rows] != ALONE]
        answers = checks.answer[:, rows]
        if len(answers) > 1 and np.count_nonzero(answers >= 0) == len(rows):  # nobody else has answered any
            return rows[:0], rows[:0]
        agree = np.ones(len(rows), dtype=np.bool_)
        for layer in range(1, len(answers)):
            for other in range(layer):
                one = (answers[layer] == number) | (answers[other] == number)
                both = one & (answers[layer] >= 0) & (answers[other] >= 0) & agree
                if both.any():
                    agree[both] = checks.agree(checks.places(layer, rows[both]), checks.places(other, rows[both]))
        return rows[~agree], rows[agree & (answers >= 0).all(axis=0)]

    def _choose(
        self, checks: JobChecks, vehicle: str, own: Rows, passed: int, *, held: bool, now_ms: int
    ) -> list[Command]:
        """Draw rows of a car's answer that are to be checked; one at least of an answer that is held."""
        terms = checks.job.terms.verification
        adaptive = terms.rule == "adaptive"
        fresh = own[(checks.check[own] == DECIDED) & (checks.known[own] < 0)]
        if adaptive:
            fresh = fresh[checks.answer[1, fresh] < 0]
        if not len(fresh):
            return []
        share = check_share(passed, terms.wrong_share, self.limits) if adaptive else 0.0
        picked = fresh[chosen(self.secret, checks.job.id, vehicle, fresh, share)] if share else fresh[:0]
        if held and not len(picked) and not np.any((checks.check[own] > 0) | (checks.known[own] >= 0)):
            least = least_of(self.secret, checks.job.id, vehicle, fresh)
            picked = fresh[least : least + 1]
        return [*checks.set_checks(picked, Check.AUDIT if adaptive else Check.REFEREE, now_ms)]

    def _credit(self, checks: JobChecks, rows: Rows, passes: Counter[str]) -> None:
        """Rows of the first layer were found right. An auditor gets no credit: it could know that it audits."""
        for number, count in Counter(checks.answer[0, rows].tolist()).items():
            passes[checks.answers[number].vehicle] += count

    def _passed(self, passes: Counter[str]) -> list[Command]:
        commands: list[Command] = []
        for vehicle, count in passes.items():
            if count:
                self.counters["check_passed"] += count
                commands += self.conduct.passed(vehicle, count)
        return commands

    # Accepting and taking back ----------------------------------------------------------------------------------------

    def _accept(self, checks: JobChecks, rows: Rows, now_ms: int) -> list[Command]:
        """Rows count from now on, as the first car answered them that did."""
        rows = rows[(checks.source[rows] < 0) & ~checks.given_up[rows]]
        if not len(rows):
            return []
        layer = np.argmax(checks.answer[:, rows] >= 0, axis=0)
        return self._count_rows(checks, rows, checks.answer[layer, rows], checks.offset[layer, rows], now_ms)

    def _accept_known(self, checks: JobChecks, rows: Rows, now_ms: int) -> list[Command]:
        """Rows count from now on, as the coordinator computed them, where they did not before."""
        rows = rows[(checks.source[rows] < 0) & ~checks.given_up[rows]]
        return self._count_rows(checks, rows, checks.known[rows], checks.known_offset[rows], now_ms)

    def _count_rows(
        self,
        checks: JobChecks,
        rows: Rows,
        numbers: NDArray[np.int32],
        offsets: NDArray[np.int32],
        now_ms: int,
    ) -> list[Command]:
        checks.source[rows] = numbers
        checks.progress.rows_done += len(rows)
        commands: list[Command] = []
        for number in distinct(numbers):
            which = numbers == number
            pieces = _pieces(rows[which], offsets[which])
            commands.append(self._entry(checks, checks.answers[number].vehicle, pieces, number, now_ms))
        return commands

    def _entry(
        self, checks: JobChecks, vehicle: str, pieces: tuple[Piece, ...], number: int | None, now_ms: int
    ) -> AddRows:
        return AddRows(
            AcceptedRows(
                seq=self.take_seq(),
                job=checks.job.id,
                vehicle=vehicle,
                pieces=pieces,
                payload=None,
                payload_ref=None,
                accepted_ms=now_ms,
                compute_ms=0.0,  # what it took, the answer's receipts say
                energy_mwh=0,
                pay_micro=0,
                answer=number,
                retracted=number is None,
            )
        )

    def _release(self, checks: JobChecks, numbers: Iterable[int], now_ms: int) -> list[Command]:
        """Let held answers count of which every check is decided."""
        commands: list[Command] = []
        for number in dict.fromkeys(numbers):
            kept = checks.answers.get(number)
            if kept is None or not kept.held:
                continue
            rows = checks.rows_of(number)
            if not np.any(checks.check[rows] > 0):
                kept.held = False
                commands += self._accept(checks, rows, now_ms)
                checks.forget(distinct(checks.answer[:, rows]))
        return commands

    def _retract(self, checks: JobChecks, rows: Rows, now_ms: int) -> list[Command]:
        if not len(rows):
            return []
        checks.source[rows] = -1
        checks.progress.rows_done -= len(rows)
        checks.rows_retracted += len(rows)
        self.counters["rows_retracted"] += len(rows)
        return [self._entry(checks, REFEREE, _pieces(rows), None, now_ms)]

    def _convict(self, vehicle: str, now_ms: int) -> list[Command]:
        """A car answered wrongly: it gets no work, and nothing counts any more for which there is only its word."""
        self.counters["vehicle_convicted"] += 1
        commands: list[Command] = [LookBack(vehicle, self.conduct.convicted.get(vehicle, 0))]
        granted = (lease for progress in self.leases.jobs.values() for lease in progress.granted.values())
        latest_ms = max((lease.granted_ms for lease in granted if lease.vehicle == vehicle), default=now_ms)
        commands += self.conduct.convict(vehicle, latest_ms, now_ms)
        held = self.fleet.held.get(self.fleet.row(vehicle), {})
        for job, chunks in [(job, sorted(chunks)) for job, chunks in held.items()]:
            commands += self.leases.release(job, chunks, LeaseEnd.CANCELLED, now_ms)
            commands.append(SendControl(vehicle, Cancel(job, chunks)))
        for checks in self.jobs.values():
            rows = checks.void(vehicle)
            if not len(rows):
                continue
            commands.append(VoidAnswers(checks.job.id, vehicle))
            others = (checks.answer[:, rows] >= 0).any(axis=0)
            own = ~np.isin(checks.source[rows], list(checks.answers))  # rows that count by an answer that is void
            contested = own & (checks.check[rows] == ALONE)  # the other car said something else
            stands = (others & ~contested) | (checks.known[rows] >= 0)
            commands += self._retract(checks, rows[(checks.source[rows] >= 0) & ~stands], now_ms)
            if checks.job.terms.verification.rule == "adaptive":  # whoever audited can't answer the row besides
                lone = rows[others & (checks.source[rows] < 0) & ~checks.given_up[rows]]
                commands += checks.set_checks(lone, Check.REFEREE_ALONE, now_ms)
            commands += self._sync(checks, rows, now_ms)
            commands += self._ask(checks, now_ms)
        return commands

    def _unknowable(self, checks: JobChecks, rows: Rows, error: str, now_ms: int) -> list[Command]:
        """The model fails on rows at the coordinator, too: they are given up, unless they count already."""
        commands: list[Command] = [*checks.set_checks(rows, Check.DECIDED, now_ms)]
        for row in rows[checks.source[rows] < 0].tolist():
            failed = FailedRow(row, 1, error[:_ERROR_CHARACTERS])
            checks.progress.failed[row] = failed
            checks.given_up[row] = True
            self.counters["row_given_up"] += 1
            commands.append(AddFailedRow(checks.job.id, failed))
        numbers = distinct(checks.answer[:, rows])
        commands += self._release(checks, numbers, now_ms)
        checks.forget(numbers)
        return [*commands, *self._sync(checks, rows, now_ms), *self._ask(checks, now_ms)]

    # Slots and the coordinator's own answers --------------------------------------------------------------------------

    def _sync(self, checks: JobChecks, rows: Rows, now_ms: int) -> list[Command]:
        if not checks.sync(rows):
            return []
        return self.close(REFEREE, checks.progress, checks.progress.completed(), now_ms)

    def _ask(self, checks: JobChecks, now_ms: int) -> list[Command]:
        rows = tuple(islice(checks.to_ask, max(0, _MOST_ASKED - len(checks.asked))))
        for row in rows:
            del checks.to_ask[row]
            checks.asked[row] = now_ms
        return [FindOut(checks.job.id, rows)] if rows else []


def _pieces(rows: Rows, offsets: NDArray[np.int_] | NDArray[np.int32] | None = None) -> tuple[Piece, ...]:
    """Runs of rows that lie one after another in a payload, too; without offsets they lie in none."""
    ends = np.diff(rows) != 1
    if offsets is not None:
        ends |= np.diff(offsets) != 1
    cuts = np.flatnonzero(ends).tolist()
    firsts, lasts = [0, *(cut + 1 for cut in cuts)], [*cuts, len(rows) - 1]
    return tuple(
        Piece(int(rows[first]), int(rows[last]) + 1, 0 if offsets is None else int(offsets[first]))
        for first, last in zip(firsts, lasts, strict=True)
    )
