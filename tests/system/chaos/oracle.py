"""What must hold after every run, whatever happened meanwhile. Pure: facts in, objections out; no objection is well."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from tests.system.chaos.facts import Collected, Facts, Held, LeaseFacts, differing
from tests.system.chaos.verdicts import VERDICTS, not_once, some, unseen_lies

__all__ = ["CHECKS", "lost_rows", "objections"]

_ENERGY_UNIT: Final = 1_000_000
_FEE_UNIT: Final = 3_600_000_000
_CLOCK_MS: Final = 1_000  # that the coordinator allows a car more
_MORE_FILES: Final = 24  # that a process may have open after its work: a worker, a model, connections of four cars


def objections(facts: Facts) -> list[str]:
    """Everything that is wrong, in words."""
    return [objection for check in CHECKS for objection in check(facts)]


def every_job_is_done(facts: Facts) -> Iterable[str]:
    """With every row counted."""
    for job, expected in facts.expected.items():
        rows = len(next(iter(expected.values())))
        collected = facts.collected.get(job)
        if collected is None or collected.status is None or collected.status.state != "done":
            state = "unknown" if collected is None or collected.status is None else collected.status.state
            yield f"job {job} is {state} and not done"
        elif collected.status.rows_done != rows or collected.status.rows_leased:
            yield f"job {job} counts {collected.status.rows_done} rows done and {collected.status.rows_leased} leased"


def every_row_once(facts: Facts) -> Iterable[str]:
    """In the ledger, and in the stream, which is what the ledger kept."""
    for job, collected in _done(facts).items():
        rows = len(next(iter(facts.expected[job].values())))
        kept = facts.kept.get(job, [])
        for what, entries in (("the stream brought", collected.stream), ("the ledger keeps", kept)):
            if wrong := not_once(entries, rows):
                yield f"job {job}: {what} rows {some(wrong)} not once"
        if kept != list(collected.stream):
            yield f"job {job}: the stream did not bring what the ledger kept, in that order"


def every_row_equal(facts: Facts) -> Iterable[str]:
    """To the direct run, in the stream and in the result; what is wrong and could not be seen is the same in both."""
    unseen = unseen_lies(facts)
    for job, collected in _done(facts).items():
        expected = facts.expected[job]
        for where, outputs in (("stream", collected.streamed), ("result", collected.result)):
            if outputs.keys() != expected.keys():
                yield f"job {job}: the {where} has outputs {sorted(outputs)} and not {sorted(expected)}"
                continue
            for name, array in expected.items():
                differ = set(differing(outputs[name], array)) - unseen.get(job, set())
                if differ:
                    yield f"job {job}: rows {some(differ)} of {name} in the {where} differ from the direct run"
        for name in collected.result.keys() & collected.streamed.keys():
            if not np.array_equal(collected.streamed[name], collected.result[name]):
                yield f"job {job}: the result has another {name} than the stream"


def _done(facts: Facts) -> dict[str, Collected]:
    done = facts.collected.items()
    return {job: each for job, each in done if each.status is not None and each.status.state == "done"}


def nothing_acknowledged_is_lost(facts: Facts) -> Iterable[str]:
    """Results in the ledger, at every crash and in the end; telemetry in the store."""
    yield from facts.lost_at_a_crash
    yield from lost_rows(facts.rows_acknowledged, facts.held, "in the end")
    missing = facts.telemetry_acknowledged - facts.telemetry_stored
    if missing:
        yield f"{len(missing)} acknowledged telemetry documents are not in the store: {sorted(missing)[:5]}"


def lost_rows(acknowledged: Mapping[str, set[int]], held: Mapping[str, Held], when: str) -> Iterable[str]:
    """Slots whose messages were acknowledged, which the ledger does not have, and which still waited for an answer."""
    for job, slots in acknowledged.items():
        there = held.get(job, Held(1, set(), set()))
        missing = {slot for slot in slots - there.answered if slot % there.rows not in there.settled}
        if missing:
            yield f"job {job}: acknowledged rows {some(missing)} are not in the ledger {when}"


def no_work_without_consent(facts: Facts) -> Iterable[str]:
    """Every lease relies on a version that stood when it was granted, and covers its purpose."""
    for lease in facts.leases:
        versions = {view.policy.version: view for view in facts.histories.get(lease.vehicle, ())}
        view = versions.get(lease.consent_version)
        name = f"lease {lease.job}/{lease.chunk} of {lease.vehicle}"
        if view is None:
            yield f"{name} relies on version {lease.consent_version}, which is not on record"
            continue
        if view.policy.revoked or "general" not in view.policy.purposes:
            yield f"{name} relies on version {lease.consent_version}, which does not agree to it"
        if lease.granted_ms < view.set_ms - facts.stepped_ms:
            yield f"{name} was granted before version {lease.consent_version} was set"
        after = versions.get(lease.consent_version + 1)
        if after is not None and lease.granted_ms > after.set_ms + facts.stepped_ms:
            late_ms = lease.granted_ms - after.set_ms
            yield f"{name} was granted {late_ms} ms after version {after.policy.version} was set"
    for vehicle in facts.revoked:
        newest = max(facts.histories.get(vehicle, ()), key=lambda view: view.policy.version, default=None)
        if newest is None or not newest.policy.revoked:
            yield f"the consent of {vehicle} was revoked, and is not"


def receipts_are_leases(facts: Facts) -> Iterable[str]:
    """Each lease whose rows counted has its receipt, once, with sums that can be."""
    receipts = {(each.job, each.chunk): each for each in facts.receipts}
    if len(receipts) != len(facts.receipts):
        yield "a receipt was told twice"
    for lease in facts.leases:
        receipt = receipts.get((lease.job, lease.chunk))
        name = f"lease {lease.job}/{lease.chunk}"
        if lease.rows_done and (receipt is None or _sums_of(receipt) != _sums_of(lease)):
            yield f"the receipt of {name} is not what the ledger has: {receipt}"
        if min(_sums_of(lease)) < 0 or not all(isinstance(value, int) for value in _sums_of(lease)):
            yield f"{name} has sums that no receipt can have: {_sums_of(lease)}"
        if lease.rows_done > lease.stop - lease.start:
            yield f"{name} was paid for {lease.rows_done} of {lease.stop - lease.start} rows"


def money_adds_up(facts: Facts) -> Iterable[str]:
    """Receipts add up to statements, and leases to jobs and to what they promised."""
    for by in ("vehicle", "job", "owner", "month"):
        told = {line.of: _sums_of(line) for line in facts.statements.get(by, ())}
        own = _added((str(getattr(each, by)), _sums_of(each)) for each in facts.receipts)
        if told != own:
            yield f"statements by {by} say {told}, receipts {own}"
    answered = Counter[str]()
    for answer in facts.answers:
        answered[answer.job] += len(answer.slots) if answer.vehicle else 0
    for job, collected in facts.collected.items():
        if collected.status is None:
            continue
        mine = [each for each in facts.leases if each.job == job]
        pay = sum(each.energy_pay_micro + each.fee_pay_micro for each in mine)
        if pay != collected.status.pay_micro:
            yield f"job {job} says {collected.status.pay_micro} for {collected.status.rows_done} rows, its leases {pay}"
        computed = collected.status.rows_done if facts.rules.get(job, "none") == "none" else answered[job]
        if (paid := sum(each.rows_done for each in mine)) != computed:
            yield f"job {job}: {paid} rows were paid for, and cars have answered {computed}"
    yield from _rounding(facts.leases)


def no_time_believed_twice(facts: Facts) -> Iterable[str]:
    """A car computes one thing at a time: all that it is paid for fits between its first lease and its last result."""
    vehicles: dict[str, list[LeaseFacts]] = defaultdict(list)
    for lease in facts.leases:
        if lease.compute_us:
            vehicles[lease.vehicle].append(lease)
    for vehicle, leases in vehicles.items():
        since_ms = min(lease.granted_ms for lease in leases)
        passed_ms = facts.last_accepted_ms.get(vehicle, since_ms) - since_ms + _CLOCK_MS + facts.stepped_ms
        believed_us = sum(lease.compute_us for lease in leases)
        if believed_us > passed_ms * 1_000:
            yield f"{vehicle} is paid for {believed_us} µs of computing within {passed_ms} ms"


def nothing_leaks(facts: Facts) -> Iterable[str]:
    """No process, port or file is left, and nobody ended who was not made to."""
    yield from facts.left_over
    yield from facts.ended
    for pid, before in facts.files_before.items():
        after = facts.files_after.get(pid)
        if after is not None and after > before + _MORE_FILES:
            yield f"process {pid} had {before} files open at first and has {after} in the end"


def _rounding(leases: Iterable[LeaseFacts]) -> Iterable[str]:
    """What is below a whole micro-unit counts towards the next receipt of the same car and job, and is never lost."""
    due: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for lease in leases:
        sums = due[lease.job, lease.vehicle]
        sums[0] += lease.energy_mwh * lease.energy_micro_per_kwh
        sums[1] += lease.compute_us * lease.pay_micro_per_h
        sums[2] += lease.energy_pay_micro
        sums[3] += lease.fee_pay_micro
    for (job, vehicle), (energy, fee, energy_pay, fee_pay) in due.items():
        if (energy // _ENERGY_UNIT, fee // _FEE_UNIT) != (energy_pay, fee_pay):
            yield (
                f"job {job}, {vehicle}: {energy_pay} and {fee_pay} were paid where {energy // _ENERGY_UNIT} and "
                f"{fee // _FEE_UNIT} are due"
            )


def _sums_of(line: Any) -> tuple[int, ...]:
    rows = line.rows_done if isinstance(line, LeaseFacts) else line.rows
    return (rows, line.compute_us, line.energy_mwh, line.energy_pay_micro, line.fee_pay_micro)


def _added(parts: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    total: dict[str, tuple[int, ...]] = {}
    for of, sums in parts:
        before = total.get(of, (0,) * len(sums))
        total[of] = tuple(one + other for one, other in zip(before, sums, strict=True))
    return total


CHECKS: Final[tuple[Callable[[Facts], Iterable[str]], ...]] = (
    every_job_is_done,
    every_row_once,
    every_row_equal,
    nothing_acknowledged_is_lost,
    no_work_without_consent,
    receipts_are_leases,
    money_adds_up,
    no_time_believed_twice,
    nothing_leaks,
    *VERDICTS,
)
