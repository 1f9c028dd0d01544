"""Which cars can be heard. Keeps columns of the fleet view; what becomes of a silent car's leases, the core says.

A broker notices a lost or stopped car only when its keep-alive runs out: 45 s, with ours. So a car that holds leases
gives a sign of life every second. Its silence is no fault, for the road to it may be blocked as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.fleet_view import FleetView
from coordinator.rules.silence import SilenceLimits, are_silent
from fleet_wire.messages import Beat

__all__ = ["Hearing"]


@dataclass(slots=True)
class Hearing:
    """When each car was last heard, and since when this process hears what cars say."""

    limits: SilenceLimits
    fleet: FleetView
    _since_ms: int = -(1 << 62)

    def heard(self, vehicles: Iterable[str], beats: Sequence[tuple[str, Beat]], now_ms: int) -> bool:
        """Cars spoke; return whether one of them had been silent."""
        fleet, index = self.fleet, self.fleet.index
        rows = [index[vehicle] for vehicle in vehicles if vehicle in index]
        fleet.column["heard_ms"][rows] = now_ms
        for vehicle, beat in beats:
            row = index.get(vehicle)
            if row is not None and beat.epoch == fleet.column["epoch"][row]:
                fleet.column["beat_ms"][row] = beat.every_ms
        if not fleet.column["silent"][rows].any():
            return False
        fleet.column["silent"][rows] = False
        return True

    def could_not_listen(self, now_ms: int) -> None:
        """Until now cars may have spoken without being heard."""
        self._since_ms = now_ms

    def may_judge(self, now_ms: int) -> bool:
        """Whether all that cars have said by now was heard, as far as one can know."""
        return now_ms - self._since_ms >= self.limits.grace_ms

    def newly_silent(self, now_ms: int) -> list[int]:
        """Rows of cars with leases that can't be heard any more; each is named once."""
        column = self.fleet.column
        rows = np.fromiter(self.fleet.held, dtype=np.intp, count=len(self.fleet.held))
        rows = rows[column["online"][rows] & ~column["silent"][rows]]
        since_ms = np.maximum(column["heard_ms"][rows], column["busy_since_ms"][rows])
        found = rows[are_silent(now_ms - since_ms, column["beat_ms"][rows], self.limits)]
        column["silent"][found] = True
        silent: list[int] = found.tolist()
        return silent
