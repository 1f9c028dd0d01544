"""What must hold after every run, whatever happened meanwhile. Pure: facts in, objections out; no objection is well."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from fleet_wire.api import JobView, PolicyView, ReceiptView, StatementLine
from fleet_wire.tensors import Array

__all__ = ["CHECKS", "Collected", "Facts", "LeaseFacts", "lost_rows", "objections"]

_ENERGY_UNIT: Final = 1_000_000
_FEE_UNIT: Final = 3_600_000_000
_CLOCK_MS: Final = 1_000  # that the coordinator allows a car more
_MORE_FILES: Final = 16  # that a process may have open after its work: a worker, a model, connections

Rows = Mapping[str, set[int]]


@dataclass(frozen=True, slots=True)
class Collected:
    """A job as its client got it: every row of the stream with how often it came, and the result in the end."""

    status: JobView | None
    streamed: Mapping[str, Array]
    times: Sequence[int]
    result: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A lease as the ledger has it in the end."""

    job: str
    chunk: int
    start: int
    stop: int
    vehicle: str
    granted_ms: int
    ended: str | None
    consent_version: int
    energy_micro_per_kwh: int
    pay_micro_per_h: int
    rows_done: int
    compute_us: int
    energy_mwh: int
    energy_pay_micro: int
    fee_pay_micro: int


@dataclass(slots=True)
class Facts:
    """All that the oracle looks at. `kept` has rows of each job in the order in which the ledger kept them."""

    expected: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    collected: dict[str, Collected] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    last_accepted_ms: dict[str, int] = field(default_factory=dict)
    leases: list[LeaseFacts] = field(default_factory=list)
    histories: dict[str, list[PolicyView]] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    receipts: list[ReceiptView] = field(default_factory=list)
    statements: dict[str, list[StatementLine]] = field(default_factory=dict)
    telemetry_acknowledged: set[tuple[str, int, int]] = field(default_factory=set)
    telemetry_stored: set[tuple[str, int, int]] = field(default_factory=set)
    rows_acknowledged: dict[str, set[int]] = field(default_factory=dict)
    lost_at_a_crash: list[str] = field(default_factory=list)
    stepped_ms: int = 0
    files_before: dict[int, int] = field(default_factory=dict)
    files_after: dict[int, int] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


def objections(facts: Facts) -> list[str]:
    """Everything that is wrong, in words."""
    return [objection for check in CHECKS for objection in check(facts)]


def every_row_once_and_equal(facts: Facts) -> Iterable[str]:
    """Against the direct run, in the stream, the result and the ledger."""
    for job, expected in facts.expected.items():
        rows = len(next(iter(expected.values())))
        collected = facts.collected.get(job)
        if collected is None or collected.status is None or collected.status.state != "done":
            state = "unknown" if collected is None or collected.status is None else collected.status.state
            yield f"job {job} is {state} and not done"
            continue
        wrong = {row: count for row, count in enumerate(collected.times) if count != 1}
        if wrong or len(collected.times) != rows:
            yield f"job {job}: the stream brought rows {_some(wrong)} not once"
        for where, outputs in (("stream", collected.streamed), ("result", collected.result)):
            if outputs.keys() != expected.keys():
                yield f"job {job}: the {where} has outputs {sorted(outputs)} and not {sorted(expected)}"
                continue
            for name, array in expected.items():
                differ = _differing(outputs[name], array)
                if differ:
                    yield f"job {job}: rows {_some(differ)} of {name} in the {where} differ from the direct run"
        often = {row: count for row, count in Counter(facts.kept.get(job, ())).items() if count != 1}
        if often or len(facts.kept.get(job, ())) != rows:
            yield f"job {job}: the ledger keeps {len(facts.kept.get(job, ()))} of {rows} rows; not once: {_some(often)}"
        if collected.status.rows_done != rows or collected.status.rows_leased:
            yield f"job {job} counts {collected.status.rows_done} rows done and {collected.status.rows_leased} leased"


def nothing_acknowledged_is_lost(facts: Facts) -> Iterable[str]:
    """Results in the ledger, at every crash and in the end; telemetry in the store."""
    yield from facts.lost_at_a_crash
    yield from lost_rows(facts.rows_acknowledged, {job: set(rows) for job, rows in facts.kept.items()}, "in the end")
    missing = facts.telemetry_acknowledged - facts.telemetry_stored
    if missing:
        yield f"{len(missing)} acknowledged telemetry documents are not in the store: {sorted(missing)[:5]}"


def lost_rows(acknowledged: Rows, kept: Rows, when: str) -> Iterable[str]:
    """Rows whose messages were acknowledged and that the ledger does not have."""
    for job, rows in acknowledged.items():
        missing = rows - kept.get(job, set())
        if missing:
            yield f"job {job}: acknowledged rows {_some(missing)} are not in the ledger {when}"


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
    for job, collected in facts.collected.items():
        if collected.status is None:
            continue
        mine = [each for each in facts.leases if each.job == job]
        pay = sum(each.energy_pay_micro + each.fee_pay_micro for each in mine)
        if (pay, sum(each.rows_done for each in mine)) != (collected.status.pay_micro, collected.status.rows_done):
            yield f"job {job} says {collected.status.pay_micro} for {collected.status.rows_done} rows, its leases {pay}"
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


def _differing(found: Array, expected: Array) -> list[int]:
    """Rows that differ: exact, but for floats, whose sums depend on how many rows are computed at once."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return list(range(len(expected)))
    if expected.dtype.kind == "f":
        same = np.isclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=False)
    else:
        same = found == expected
    return [int(row) for row in np.flatnonzero(~same.reshape(len(expected), -1).all(axis=1))]


def _some(rows: Iterable[int]) -> str:
    listed = sorted(rows)
    return f"{listed[:5]}{f' and {len(listed) - 5} more' if len(listed) > 5 else ''}"


CHECKS: Final[tuple[Callable[[Facts], Iterable[str]], ...]] = (
    every_row_once_and_equal,
    nothing_acknowledged_is_lost,
    no_work_without_consent,
    receipts_are_leases,
    money_adds_up,
    no_time_believed_twice,
    nothing_leaks,
)
