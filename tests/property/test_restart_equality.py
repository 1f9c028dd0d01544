"""What a core that comes back from its ledger has in common with the one that ran. Every field is in one list or other.

A new field of the core, of a job or of the fleet view fails the comparison until somebody says where it belongs.
"""

from dataclasses import fields
from typing import Any

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
    "verifying": "of verified jobs only, which the machine does not submit: see test_verification_machine",
    "_consents": "has no state but the fleet view's",
    "_conduct": "has no state but the fleet view's",
    "_leases": "open leases are compared where jobs and the fleet view have them; their deadlines may become earlier",
    "_faults": "has no state of its own",
}
CORE_COMPARED = {"fleet", "models", "jobs", "next_seq"}
JOB_MAY_DIFFER = {
    "rows_free": "counts rows that came late and are settled while they lie in `free`",
    "_settled_in_free": "whether there are such rows",
    "free": "compared as a set of rows: how they are cut, and their order, is nobody's",
    "rows_lost": "which of the free rows are in a hurry",
    "rows_duplicate": "counts since the start of the process",
    "suspects": "which rows failed where is tried again",
    "alone": "which rows failed where is tried again",
    "charges": "a car is blamed by the process that saw it fail",
    "_chunks": "which chunks each car was granted: those of `granted`",
    "answered": "of verified jobs only",
    "cars": "of verified jobs only",
    "paused": "of verified jobs only",
    "covered": "of verified jobs only",
}
JOB_COMPARED = {
    "job", "settled", "rows_done", "rows_leased", "rows_released_again", "rows_copied", "next_chunk", "leases", "seen",
    "granted", "layers", "left", "failed", "compute_us", "energy_mwh", "pay_micro", "rests",
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
_COLUMNS = ("leases", "rows_done", "energy_mwh", "pay_micro", "policy_version", "strikes")


def test_every_field_is_compared_or_has_a_reason_why_not() -> None:
    for kind, compared, may_differ in (
        (Core, CORE_COMPARED, CORE_MAY_DIFFER),
        (JobProgress, JOB_COMPARED, JOB_MAY_DIFFER),
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
    for vehicle in running.fleet.ids:
        assert _vehicle(restored, vehicle) == _vehicle(running, vehicle)
        # A restart after the clock was set back bounds a quarantine in memory only, by the clock of that moment.
        assert _quarantined_until_ms(restored, vehicle) >= _quarantined_until_ms(running, vehicle, now_ms)
    assert set(restored.fleet.ids) <= set(running.fleet.ids)


def _job(progress: JobProgress) -> dict[str, Any]:
    compared = {name: getattr(progress, name) for name in JOB_COMPARED - {"settled", "leases"}}
    return compared | {
        "settled": progress.settled.tolist(),
        "free": {row for start, stop in progress.free for row in range(start, stop) if not progress.settled[row]},
        # How long its work takes is not known again before the next result.
        "leases": {chunk: (each.record, each.copy, each.original) for chunk, each in progress.leases.items()},
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
    return until_ms if now_ms is None else min(until_ms, now_ms + core.policy.quarantine.longest_ms)
