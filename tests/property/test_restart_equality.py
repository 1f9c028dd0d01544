"""What a core that comes back from its ledger has in common with the one that ran. Every field is in one list or other.

A new field of the core, of a job or of the fleet view fails the comparison until somebody says where it belongs.
"""

from dataclasses import fields
from typing import Any

import numpy as np

from coordinator.checks import JobChecks
from coordinator.core import Core
from coordinator.fleet_view import FleetView
from coordinator.progress import JobProgress

# Why each field that is not compared may differ.
CORE_MAY_DIFFER = {
    "refusals": "counts since the start of the process",
    "counters": "counts since the start of the process",
    "totals": "counts since the start of the process",
    "speeds": "measured again with the next results",
    "prices": "looked up again",
    "foresight": "learned from the telemetry store, not from the ledger",
    "_warm": "cars say again in their retained caps what they hold",
    "scheduler": "who had its turn counts from the start of the process",
    "_settlement": "what cars worked is kept by job, and that of ended jobs is forgotten: see `worked` in LedgerJob",
    "_reasons": "computed anew",
    "_reasons_ms": "computed anew",
    "_hearing": "who was heard when, and who promised to be: told again by the next beats",
    "_restored": "says what came from the ledger",
    "policy": "is given",
    "secret": "is given, a new one for each process",
    "_consents": "has no state but the fleet view's",
    "_leases": "open leases are compared where jobs and the fleet view have them; their deadlines may become earlier",
    "_faults": "has no state of its own",
}
CORE_COMPARED = {"fleet", "models", "jobs", "next_seq", "verifying", "_conduct"}
JOB_MAY_DIFFER = {
    "rows_free": "counts rows that came late and are settled while they lie in `free`",
    "has_settled_free": "whether there are such rows",
    "free": "compared as a set of rows: how they are cut, and their order, is nobody's",
    "rows_lost": "which of the free rows are in a hurry",
    "rows_duplicate": "counts since the start of the process",
    "suspects": "which rows failed where is tried again",
    "alone": "which rows failed where is tried again",
    "charges": "a car is blamed by the process that saw it fail",
    "_chunks": "which chunks each car was granted: those of `granted`",
}
JOB_COMPARED = {
    "job", "settled", "rows_done", "rows_leased", "rows_released_again", "rows_copied", "next_chunk", "leases", "seen",
    "granted", "layers", "left", "failed", "compute_us", "energy_mwh", "pay_micro", "rests", "answered", "cars",
    "paused", "covered",
}  # fmt: skip
CHECKS_MAY_DIFFER = {
    "job": "compared with the job",
    "progress": "compared as a job",
    "asked": "compared together with `to_ask`: a new process asks again",
    "_names": "numbers by order of appearance",
    "_open_of": "by those numbers; whoever has too many is in `paused`",
}
CHECKS_COMPARED = {
    "source", "given_up", "check", "answer", "offset", "known", "known_offset", "answers", "next_number", "audits",
    "to_ask", "checks_open", "checked", "rows_retracted",
}  # fmt: skip
FLEET_MAY_DIFFER = {
    "refusal": "telemetry",
    "models": "caps, retained by the broker",
    "engines": "caps, retained by the broker",
    "regions": "caps",
    "prices": "looked up again",
    "purpose_bits": "numbers by order of appearance",
    "timezones": "numbers by order of appearance",
    "utc_offsets_ms": "told with each tick",
    "unwilling": "telemetry",
    "quarters": "follows from the policy",
    "ids": "by order of appearance",
    "index": "by order of appearance",
    "_policies": "compared as policies",
    "_packed_last": "a cache",
    "column": "compared where the ledger has it: see `_columns`",
}
FLEET_COMPARED = {"held"}
_COLUMNS = (
    "leases", "rows_done", "energy_mwh", "pay_micro", "policy_version", "strikes", "checks_passed", "convictions",
)  # fmt: skip


def test_every_field_is_compared_or_has_a_reason_why_not() -> None:
    for kind, compared, may_differ in (
        (Core, CORE_COMPARED, CORE_MAY_DIFFER),
        (JobProgress, JOB_COMPARED, JOB_MAY_DIFFER),
        (JobChecks, CHECKS_COMPARED, CHECKS_MAY_DIFFER),
        (FleetView, FLEET_COMPARED, FLEET_MAY_DIFFER),
    ):
        assert {each.name for each in fields(kind)} == compared | may_differ.keys()


def assert_equal_as_promised(running: Core, restored: Core, now_ms: int) -> None:
    """Two cores agree in everything that the ledger promises."""
    assert restored.next_seq == running.next_seq
    assert restored.models == running.models
    assert restored.jobs.keys() == running.jobs.keys()
    for name, progress in running.jobs.items():
        assert _job(restored.jobs[name]) == _job(progress)
    assert restored.verifying.jobs.keys() == running.verifying.jobs.keys()
    for name, checks in running.verifying.jobs.items():
        assert _checks(restored.verifying.jobs[name]) == _checks(checks)
    assert restored._conduct.convicted == running._conduct.convicted
    for vehicle in running.fleet.ids:
        assert _vehicle(restored, vehicle) == _vehicle(running, vehicle)
        # A restart after the clock was set back bounds a quarantine in memory only, by the clock of that moment.
        assert _quarantined_until_ms(restored, vehicle) >= _quarantined_until_ms(running, vehicle, now_ms)
    assert set(restored.fleet.ids) <= set(running.fleet.ids)


def _job(progress: JobProgress) -> dict[str, Any]:
    arrays = {"settled", "answered", "covered"}
    compared = {name: getattr(progress, name) for name in JOB_COMPARED - {*arrays, "cars", "leases"}}
    names = {number: car for car, number in progress.cars.items()}
    return compared | {
        "settled": progress.settled.tolist(),
        "answered": [names.get(car) for car in progress.answered.tolist()],
        "covered": progress.covered.tolist(),
        "free": {row for start, stop in progress.free for row in range(start, stop) if not progress.settled[row]},
        # How long its work takes is not known again before the next result.
        "leases": {chunk: (each.record, each.copy, each.original) for chunk, each in progress.leases.items()},
    }


def _checks(checks: JobChecks) -> dict[str, Any]:
    """What is known of a verified job's rows, beside its progress."""
    return {
        "source": checks.source.tolist(),
        "given_up": checks.given_up.tolist(),
        "check": checks.check.tolist(),
        "checked": checks.checked.tolist(),
        "answer": checks.answer.tolist(),
        "offset": np.where(checks.answer >= 0, checks.offset, 0).tolist(),
        "known": checks.known.tolist(),
        "known_offset": np.where(checks.known >= 0, checks.known_offset, 0).tolist(),
        "sums": (checks.checks_open, checks.next_number, checks.rows_retracted),
        "waiting": sorted({*checks.to_ask, *checks.asked}),
        "audits": sorted(checks.audits),
        "answers": {n: (kept.held, kept.outputs is None) for n, kept in checks.answers.items()},
    }


def _vehicle(core: Core, vehicle: str) -> dict[str, Any]:
    row = core.fleet.row(vehicle)
    return {name: core.fleet.column[name][row] for name in _COLUMNS} | {
        "policy": core.fleet.policy(vehicle),
        "held": core.fleet.held.get(row, {}),
    }


def _quarantined_until_ms(core: Core, vehicle: str, now_ms: int | None = None) -> int:
    """At most the longest from now, when that is given."""
    until_ms = int(core.fleet.column["quarantined_until_ms"][core.fleet.row(vehicle)])
    limits = core.policy.quarantine.longest_ms, core.policy.verification.longest_conviction_ms
    return until_ms if now_ms is None else min(until_ms, now_ms + max(limits))
