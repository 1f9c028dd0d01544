"""When a car that failed gets work again, whether a row or the cars are at fault, and how reliable a car is. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["QuarantineLimits", "is_beyond_hope", "quarantine_ms", "reliability"]


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """The first `free_strikes` cost nothing; from then on each doubles the time without work, up to `longest_ms`.

    Of lease ends each counts for `memory` of the one after it. A car of which nothing is known is taken for one that
    kept `prior_kept` of `prior_ended` leases.
    """

    free_strikes: int = 2
    first_ms: int = 60_000
    longest_ms: int = 6 * 3_600_000
    memory: float = 0.98
    prior_kept: float = 4.5
    prior_ended: float = 5.0


def quarantine_ms(strikes: int, limits: QuarantineLimits) -> int:
    """How long a car with so many strikes gets no work."""
    beyond = strikes - limits.free_strikes
    return 0 if beyond <= 0 else min(limits.longest_ms, limits.first_ms << min(beyond - 1, 30))


def reliability(kept: NDArray[np.float64], ended: NDArray[np.float64], limits: QuarantineLimits) -> NDArray[np.float64]:
    """The share of leases that cars keep to the end, shrunk to what is usual; between 0 and 1."""
    return (kept + limits.prior_kept) / (ended + limits.prior_ended)


def is_beyond_hope(alone: Sequence[str], most: int, *, others_left: Callable[[], bool]) -> bool:
    """Whether a row that failed by itself at these cars, in this order, is to be given up.

    It is after `most` different cars, or after as many attempts when no car is left that has not tried it. To find that
    out the whole fleet must be looked at, so it is asked last.
    """
    return len(set(alone)) >= most or (len(alone) >= most and not others_left())
