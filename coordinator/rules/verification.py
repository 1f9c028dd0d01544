"""Whether answers agree, and how often a car is checked. Pure.

After BOINC: equivalence classes and validation by agreement (D. P. Anderson, "BOINC: A System for Public-Resource
Computing and Storage", GRID 2004) and adaptive replication, where a host that keeps giving valid results is checked
ever less (D. P. Anderson, "BOINC: A Platform for Volunteer Computing", Journal of Grid Computing 18, 2020).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fleet_wire.api import Tolerance
from fleet_wire.tensors import Array

__all__ = [
    "VerificationLimits",
    "agreement",
    "check_share",
    "chosen",
    "conviction_ms",
    "is_trusted",
    "least_of",
    "worst_share",
]

Mask = NDArray[np.bool_]

_RELATIVE, _ABSOLUTE = 1e-4, 1e-6
_ACROSS = 2e-2
_ROUNDINGS = 64  # of the row's largest value: what is left when values of that size are summed up in another order
_PACKED_INTEGERS = (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))
_ROWS_PER_HASH = 8  # 64 bytes of BLAKE2b are numbers for eight rows


@dataclass(frozen=True, slots=True)
class VerificationLimits:
    """How far cars are trusted. `bad_share` is the share of cars that are believed to lie.

    Until enough of a car's rows were found right, the share `most` of them is checked, then `floor`. While it has
    passed fewer checks than `trusted_after`, its answers are held until theirs are decided. A job with the rule
    adaptive has up to `canaries` rows that the coordinator computes itself; an audit that no other car has taken for
    `audit_wait_ms` it computes too. A conviction costs `first_conviction_ms` without work, and each further one twice
    as long, up to `longest_conviction_ms`.
    """

    bad_share: float = 0.05
    floor: float = 0.02
    most: float = 0.5
    trusted_after: int = 16
    canaries: int = 64
    audit_wait_ms: int = 10_000
    first_conviction_ms: int = 24 * 3_600_000
    longest_conviction_ms: int = 64 * 24 * 3_600_000


def agreement(
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    tolerances: Mapping[str, Tolerance],
    *,
    same_class: bool,
) -> Mask:
    """Row by row, whether two answers for the same rows say the same in every output.

    Numbers a and b of floating point agree when |a - b| <= absolute + relative * max(|a|, |b|), with the tolerance that
    the job states for the output. Where it states none, within one equivalence class (execution provider,
    architecture, runtime version) relative is 1e-4 (or two roundings of the type, if that is more) and absolute 1e-6
    plus 64 roundings of the row's largest value in this output. Across classes a and b may differ by 1e-6 plus 0.02
    (or two roundings) of that largest value: models amplify what another batch size rounds otherwise, Magika to 0.01
    of a probability. The coordinator is in a class of its own, so nobody is convicted of less than that; a
    disagreement within a class only has it look.
    NaN agrees with NaN, an infinity with itself; integers, truth values and text agree when they are equal. Another
    set of outputs, type or shape is a disagreement in every row.
    """
    rows = max((len(array) for array in (*ours.values(), *theirs.values()) if array.ndim), default=0)
    if ours.keys() != theirs.keys():
        return np.zeros(rows, dtype=np.bool_)
    same = np.ones(rows, dtype=np.bool_)
    for name, our in ours.items():
        their = theirs[name]
        if our.dtype != their.dtype or our.shape != their.shape or our.shape[:1] != (rows,):
            return np.zeros(rows, dtype=np.bool_)
        same &= _close(our.reshape(rows, -1), their.reshape(rows, -1), tolerances.get(name), same_class).all(axis=1)
    return same


def _close(our: Array, their: Array, tolerance: Tolerance | None, same_class: bool) -> Mask:
    """Element by element, of two arrays of one type with one line a row."""
    equal: Mask = np.asarray(our == their, dtype=np.bool_)
    if our.dtype.kind in "biuOU" or equal.all() or our.dtype in _PACKED_INTEGERS:
        return equal
    wide = np.complex128 if our.dtype.kind == "c" else np.float64
    ours, theirs = our.astype(wide), their.astype(wide)
    with np.errstate(all="ignore"):  # of infinities, which are told apart below
        apart = np.abs(ours - theirs)
        size = np.maximum(np.abs(ours), np.abs(theirs))
        finite = np.isfinite(size)
        if tolerance is not None:
            allowed = tolerance.absolute + tolerance.relative * size
        else:
            largest = np.max(size, axis=1, initial=0.0, where=finite, keepdims=True)
            own_eps = float(ml_dtypes.finfo(our.dtype).eps)  # type: ignore[no-untyped-call]
            sum_eps = min(own_eps, float(np.finfo(np.float32).eps))  # narrow types are summed up in float32
            if same_class:
                allowed = _ABSOLUTE + _ROUNDINGS * sum_eps * largest + max(_RELATIVE, 2 * own_eps) * size
            else:
                allowed = _ABSOLUTE + max(_ACROSS, 2 * own_eps) * largest
        near: Mask = finite & (apart <= allowed)
    return equal | near | (np.isnan(ours) & np.isnan(theirs))


def worst_share(passed: int) -> float:
    """The largest expected share of wrong rows that a car gets through `passed` checks of rows drawn at random.

    A car that lies in the share q of its rows passes n checks with probability (1 - q)^n, so q (1 - q)^n of its rows
    are wrong and stand; that is largest at q = 1 / (n + 1), where it is about 1 / (e (n + 1)).
    """
    return (passed / (passed + 1)) ** passed / (passed + 1)


def check_share(passed: int, wrong_share: float, limits: VerificationLimits) -> float:
    """The share of a car's rows to check, after `passed` of its rows in a row were found right.

    `most` until bad_share * worst_share(passed) is no more than the job's `wrong_share`, then `floor`. Every check
    up to there is needed whenever it is made; made early it convicts sooner, and fewer rows must be taken back. A car
    that turns bad only then gets about 1 / (e * floor) wrong rows through before it is found out.
    """
    return limits.floor if limits.bad_share * worst_share(passed) <= wrong_share else limits.most


def is_trusted(passed: int, limits: VerificationLimits) -> bool:
    """Whether a car's rows are accepted before they are checked."""
    return passed >= limits.trusted_after


def chosen(secret: bytes, job: str, vehicle: str, rows: NDArray[np.int64], share: float) -> Mask:
    """Which of a vehicle's rows of a job to check: each with probability `share`, always the same ones.

    Without the secret (16 to 64 bytes) nobody can tell them from the others. Whatever is chosen with one share is with
    every larger one.
    """
    picked: Mask = _numbers(secret, job, vehicle, rows) < (share if share < 1 else inf)
    return picked


def least_of(secret: bytes, job: str, vehicle: str, rows: NDArray[np.int64]) -> int:
    """The place among these rows of the one to check when one must be: the first that a rising share would choose."""
    return int(np.argmin(_numbers(secret, job, vehicle, rows)))


def _numbers(secret: bytes, job: str, vehicle: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number from 0 to 1 for each row, that nobody can tell without the secret."""
    blocks, place = np.unique(rows // _ROWS_PER_HASH, return_inverse=True)
    who = f"{job}\0{vehicle}\0".encode()
    digests = [hashlib.blake2b(who + block, key=secret).digest() for block in map(_eight_bytes, blocks.tolist())]
    numbers = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, _ROWS_PER_HASH)
    drawn: NDArray[np.float64] = numbers[place, rows % _ROWS_PER_HASH].astype(np.float64) / 2.0**64
    return drawn


def _eight_bytes(number: int) -> bytes:
    return number.to_bytes(8, "little")


def conviction_ms(convictions: int, limits: VerificationLimits) -> int:
    """How long a car that was convicted so many times gets no work."""
    if convictions <= 0:
        return 0
    return min(limits.longest_conviction_ms, limits.first_conviction_ms << min(convictions - 1, 30))
