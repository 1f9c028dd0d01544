"""What must hold of verified jobs, and of cars that lie. Pure: facts in, objections out.

What docs/verification.md promises for certain: no rule shows a wrong row of a car that was never honest, and a quorum
none at all. A car that is trusted and turns bad may have wrong rows stand in an adaptive job, if nobody looked at them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tests.system.chaos.facts import AnswerFacts, Facts

__all__ = ["VERDICTS", "not_once", "some", "unseen_lies"]

_LESS_CHECKED_AFTER: Final = 184  # right rows; before, half of an adaptive job's rows are checked, then a fiftieth
_NEVER: Final = 1e-9
_UNSEEN: Final = {share: math.ceil(math.log(_NEVER) / math.log(1 - share)) for share in (0.5, 0.02)}


def not_once(entries: Sequence[int], rows: int) -> list[int]:
    """Rows that came when they were there, were taken back when they were not, or are not there in the end."""
    there = Counter[int]()
    wrong = set[int]()
    for entry in entries:
        row, change = (entry, 1) if entry >= 0 else (~entry, -1)
        there[row] += change
        if there[row] not in {0, 1}:
            wrong.add(row)
    return sorted(wrong | {row for row in there.keys() | set(range(rows)) if there[row] != (0 <= row < rows)})


def unseen_lies(facts: Facts) -> dict[str, set[int]]:
    """Rows by job that may be wrong in the end: of adaptive jobs, by trusted cars, and computed by nobody else."""
    found: dict[str, set[int]] = {}
    for job, answers in _standing(facts).items():
        if facts.rules.get(job) == "adaptive":
            times = _times(facts, job, answers)
            lies = (answer.wrong or () for answer in answers if answer.vehicle in facts.liars - facts.never_honest)
            found[job] = {row for wrong in lies for row in wrong if times[row] == 1}
    return found


def only_liars_are_convicted(facts: Facts) -> Iterable[str]:
    """And only for a row that they answered wrongly."""
    for vehicle, conviction in facts.convictions.items():
        answers = [answer for answer in facts.answers if answer.vehicle == vehicle]
        if vehicle not in facts.liars:
            yield f"{vehicle} is honest and was convicted"
        elif not any(answer.wrong or answer.wrong is None for answer in answers):
            yield f"{vehicle} was convicted, and has answered no row wrongly"
        if conviction.times != 1:
            yield f"{vehicle} was convicted {conviction.times} times, though it may have no work after the first"
    in_ledger = {vehicle: conviction.times for vehicle, conviction in facts.convictions.items()}
    if facts.told_convicted != in_ledger:
        yield f"convictions are told as {facts.told_convicted}, and the ledger has {in_ledger}"


def only_liars_are_wrong(facts: Facts) -> Iterable[str]:
    """And nothing is taken back but what somebody said who was convicted."""
    for answer in facts.answers:
        if answer.wrong and answer.vehicle not in facts.liars:
            yield f"job {answer.job}: {answer.vehicle or 'the coordinator'} answered rows {some(answer.wrong)} wrongly"
        if answer.is_void and answer.vehicle not in facts.convictions:
            yield f"job {answer.job}: answers of {answer.vehicle} are void, and it was not convicted"
    for job, collected in facts.collected.items():
        taken_back = sum(entry < 0 for entry in facts.kept.get(job, ()))
        if taken_back and not facts.convictions:
            yield f"job {job}: {taken_back} rows were taken back, and nobody was convicted"
        if collected.status is not None and collected.status.rows_retracted != taken_back:
            yield f"job {job} counts {collected.status.rows_retracted} rows taken back, the ledger {taken_back}"


def every_check_is_decided(facts: Facts) -> Iterable[str]:
    """When a job is done. Whoever said something else of a row than the coordinator or another car did is convicted."""
    for job, rows in facts.checks_open.items():
        if rows and _is_done(facts, job):
            yield f"job {job} is done, and rows {some(rows)} wait to be checked"
    for job, answers in _standing(facts).items():
        times = _times(facts, job, answers)
        for answer in answers if _is_done(facts, job) else ():
            wrong = set(answer.wrong or ())
            seen = {row for row in wrong if times[row] > 1}
            if facts.rules[job] != "adaptive" or answer.vehicle in facts.never_honest:
                seen = wrong
            if seen:
                yield f"job {job}: wrong rows {some(seen)} of {answer.vehicle} stand, which somebody looked at"


def few_lies_are_unseen(facts: Facts) -> Iterable[str]:
    """No more than a car gets through, checked as often as it must be, in one of a thousand million runs."""
    unseen = Counter[str]()
    for answer in facts.answers:
        if not answer.is_void and facts.rules.get(answer.job) == "adaptive":
            unseen[answer.vehicle] += len(answer.wrong or ())
    for vehicle, count in unseen.items():
        trust = facts.trust.get(vehicle, 0)
        most = _UNSEEN[0.5 if trust < _LESS_CHECKED_AFTER and vehicle not in facts.convictions else 0.02]
        if count > most:
            yield f"{count} wrong rows of {vehicle} stand; unseen it could have given {most}, with {trust} right ones"


def lies_are_not_shown(facts: Facts) -> Iterable[str]:
    """Of a car that was never honest, or where a quorum decides; elsewhere only what a trusted car said."""
    for job, vehicles in facts.kept_of.items():
        for vehicle in sorted(vehicles & facts.never_honest):
            yield f"job {job}: rows of {vehicle} counted, which was never honest"
    for job, collected in facts.collected.items():
        trusted = facts.liars - facts.never_honest if facts.rules.get(job) == "adaptive" else frozenset()
        lies = {
            row for each in facts.answers if each.job == job and each.vehicle in trusted for row in each.wrong or ()
        }
        shown = set(collected.shown_wrong) - lies
        if shown:
            yield f"job {job}: the stream showed wrong rows {some(shown)}, which no trusted car had answered so"


def conviction_ends_work(facts: Facts) -> Iterable[str]:
    """Its leases end, it gets no others, it is trusted no more, and what it said in jobs that went on is void."""
    for vehicle, conviction in facts.convictions.items():
        latest_ms = conviction.last_ms + facts.stepped_ms
        if facts.trust.get(vehicle):
            yield f"{vehicle} was convicted, and is trusted for {facts.trust[vehicle]} rows"
        for lease in facts.leases:
            if lease.vehicle == vehicle and lease.granted_ms > latest_ms:
                yield f"lease {lease.job}/{lease.chunk} of {vehicle} was granted after it had been convicted"
            if lease.vehicle == vehicle and lease.ended is None:
                yield f"lease {lease.job}/{lease.chunk} of {vehicle} is open, though it was convicted"
        for answer in facts.answers:
            status = facts.collected[answer.job].status if answer.job in facts.collected else None
            ended_ms = None if status is None else status.ended_ms
            if answer.vehicle == vehicle and not answer.is_void and ended_ms is not None and ended_ms > latest_ms:
                yield f"job {answer.job}: an answer of {vehicle} stands, which was convicted while the job ran"


def _standing(facts: Facts) -> Mapping[str, list[AnswerFacts]]:
    standing: dict[str, list[AnswerFacts]] = defaultdict(list)
    for answer in facts.answers:
        if not answer.is_void and answer.job in facts.rules:
            standing[answer.job].append(answer)
    return standing


def _times(facts: Facts, job: str, answers: Iterable[AnswerFacts]) -> Counter[int]:
    """How many have computed each row, the coordinator included."""
    rows = facts.held[job].rows
    return Counter(slot % rows for answer in answers for slot in answer.slots)


def _is_done(facts: Facts, job: str) -> bool:
    collected = facts.collected.get(job)
    return collected is not None and collected.status is not None and collected.status.state == "done"


def some(rows: Iterable[int]) -> str:
    """The first of some rows."""
    listed = sorted(rows)
    return f"{listed[:5]}{f' and {len(listed) - 5} more' if len(listed) > 5 else ''}"


VERDICTS: Final = (
    only_liars_are_convicted,
    only_liars_are_wrong,
    every_check_is_decided,
    few_lies_are_unseen,
    lies_are_not_shown,
    conviction_ends_work,
)
