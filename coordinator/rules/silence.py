"""When a car that holds leases counts as gone although nobody said so. Pure; times are in milliseconds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SilenceLimits", "are_silent"]


@dataclass(frozen=True, slots=True)
class SilenceLimits:
    """A car is silent when it has missed so many of the signs of life that it promised, and not before `least_ms`.

    After we could not listen ourselves, nobody is judged for `grace_ms`: what was said meanwhile is still to come.
    """

    beats_missed: float = 2.0
    least_ms: int = 1_000
    grace_ms: int = 2_000


def are_silent(unheard_ms: NDArray[np.int64], beat_ms: NDArray[np.int32], limits: SilenceLimits) -> NDArray[np.bool_]:
    """Which cars are silent that have not been heard for so long while they held leases.

    One that promised nothing (0) never is.
    """
    silent: NDArray[np.bool_] = (beat_ms > 0) & (
        unheard_ms > np.maximum(limits.beats_missed * beat_ms, limits.least_ms)
    )
    return silent
