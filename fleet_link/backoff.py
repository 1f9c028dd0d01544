"""How long to wait before the next attempt to connect. Pure: the caller brings chance and sleeps."""

from random import Random

__all__ = ["backoff_s"]

_FIRST_S = 1.0
_LONGEST_S = 120.0
_DOUBLINGS = 7  # 2**7 s is past the longest wait already


def backoff_s(attempt: int, random: Random, first_s: float = _FIRST_S) -> float:
    """Seconds before attempt `attempt` (0 is the first): at most `first_s`, doubling to 120 s, with full jitter.

    Full jitter (anywhere between nothing and the ceiling) is what keeps a fleet that lost its broker in one
    moment from coming back in one moment.
    """
    ceiling_s = min(_LONGEST_S, first_s * 2 ** min(attempt, _DOUBLINGS))
    return random.uniform(0.0, ceiling_s)
