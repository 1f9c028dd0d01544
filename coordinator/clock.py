"""The time by which the coordinator decides: it never goes back, so that no rest or deadline lasts longer for it."""

import logging
from collections.abc import Callable

__all__ = ["SteadyClock"]

_log = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_WORTH_TELLING_NS = _NS_PER_S


class SteadyClock:
    """The machine's clock while that goes forward; when it is set back, half its speed until it has caught up.

    To follow a clock back would stop every rest, deadline and cool-down for as long, and cut the time that cars have
    computed; to stand still would too. `wall_ns` may be set at any time, `passed_ns` counts only.
    """

    def __init__(self, wall_ns: Callable[[], int], passed_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self._passed_ns = passed_ns
        self._told_ns = wall_ns()
        self._told_at_ns = passed_ns()
        self._has_told_operator = False

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        wall_ns, at_ns = self._wall_ns(), self._passed_ns()
        least_ns = self._told_ns + (at_ns - self._told_at_ns) // 2
        ahead_ns = least_ns - wall_ns
        if ahead_ns > _WORTH_TELLING_NS and not self._has_told_operator:
            self._has_told_operator = True
            _log.warning(
                "this machine's clock was set back by %.0f s; until it has caught up the coordinator's goes at half "
                "speed, and cars whose clocks are right count as wrong: restart it to have the new time at once",
                ahead_ns / _NS_PER_S,
            )
        elif ahead_ns <= 0:
            self._has_told_operator = False
        self._told_ns, self._told_at_ns = max(wall_ns, least_ns), at_ns
        return self._told_ns // 1_000_000
