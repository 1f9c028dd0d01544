"""How long something took, summed and at its worst, as it is measured where it happens. Reads no clock."""

from dataclasses import dataclass

__all__ = ["Delay"]


@dataclass(slots=True)
class Delay:
    """`count` and `total_ms` only grow; the worst since it was last asked for is kept apart."""

    count: int = 0
    total_ms: float = 0.0
    _worst_ms: float = 0.0

    def add(self, count: int, each_ms: float) -> None:
        """Note `count` things that took `each_ms` each."""
        self.count += count
        self.total_ms += count * each_ms
        self._worst_ms = max(self._worst_ms, each_ms)

    def take_worst_ms(self) -> float:
        """The longest since this was last called; 0 when there was nothing."""
        worst_ms, self._worst_ms = self._worst_ms, 0.0
        return worst_ms
