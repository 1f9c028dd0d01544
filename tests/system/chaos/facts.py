"""All that the oracle looks at, and how values are compared. Judges nothing, and reads no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fleet_wire.api import JobView, PolicyView, ReceiptView, StatementLine
from fleet_wire.tensors import Array

__all__ = ["AnswerFacts", "Collected", "Conviction", "Facts", "Held", "LeaseFacts", "differing"]


@dataclass(frozen=True, slots=True)
class Collected:
    """A job as its client got it, and the result in the end.

    `stream` has its rows as they came, and `~row` for one that was taken back; `streamed` what they said last, and
    `shown_wrong` those that were ever wrong.
    """

    status: JobView | None
    streamed: Mapping[str, Array]
    stream: Sequence[int]
    shown_wrong: Sequence[int]
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


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """An answer in the ledger to slots of a verified job; `vehicle` is empty where the coordinator computed it.

    A slot is a row in one of the layers that several cars compute. `wrong` are rows that differ from the direct run;
    None of a job whose client never heard of it.
    """

    job: str
    vehicle: str
    is_void: bool
    received_ms: int
    slots: frozenset[int]
    wrong: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Held:
    """What a ledger has of a job of so many rows: slots that cars have answered, and rows that wait for no more."""

    rows: int
    answered: set[int]
    settled: set[int]


@dataclass(frozen=True, slots=True)
class Conviction:
    """How often a car was convicted, and when the last time."""

    times: int
    last_ms: int


@dataclass(slots=True)
class Facts:
    """All that the oracle looks at.

    `kept` has rows of each job in the order in which the ledger kept them, and `~row` where it took one back.
    `checks_open` are rows that wait to be checked, `trust` is how many rows of a car were found right, and
    `told_convicted` what operators are told. Of `liars`, those who are `never_honest` have every row wrong.
    """

    expected: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    collected: dict[str, Collected] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    kept_of: dict[str, set[str]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    answers: list[AnswerFacts] = field(default_factory=list)
    checks_open: dict[str, set[int]] = field(default_factory=dict)
    convictions: dict[str, Conviction] = field(default_factory=dict)
    trust: dict[str, int] = field(default_factory=dict)
    told_convicted: dict[str, int] = field(default_factory=dict)
    liars: frozenset[str] = frozenset()
    never_honest: frozenset[str] = frozenset()
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


def differing(found: Array, expected: Array) -> list[int]:
    """Rows that differ: exact, but for floats, whose sums depend on how many rows are computed at once."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return list(range(len(expected)))
    if expected.dtype.kind == "f":
        same = np.isclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=False)
    else:
        same = found == expected
    return [int(row) for row in np.flatnonzero(~same.reshape(len(expected), -1).all(axis=1))]
