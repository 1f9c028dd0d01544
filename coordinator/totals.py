"""Running totals of work since the coordinator started, and of work that did not count, by cause. Only counts."""

from collections import defaultdict
from dataclasses import dataclass, field

from coordinator.model import LeaseEnd

__all__ = ["Totals", "Waste"]


@dataclass(slots=True)
class Waste:
    """Rows that a lease gave back, and rows that were computed and not accepted, with what they took."""

    rows_released: int = 0
    rows: int = 0
    compute_ms: float = 0.0
    energy_mwh: int = 0


@dataclass(slots=True)
class Totals:
    """`waste` goes by the end of a lease, or by why rows were not accepted. `energy_capped_mwh` was not believed."""

    leases_granted: int = 0
    rows: int = 0
    compute_ms: float = 0.0
    energy_mwh: int = 0
    energy_cost_micro: int = 0
    pay_micro: int = 0
    energy_capped_mwh: int = 0
    waste: defaultdict[str, Waste] = field(default_factory=lambda: defaultdict(Waste))

    @property
    def wasted_energy_mwh(self) -> int:
        """Energy of all rows that were not accepted."""
        return sum(each.energy_mwh for each in self.waste.values())

    def released(self, end: LeaseEnd, rows: int) -> None:
        """Note rows that a lease gave back."""
        if rows:
            self.waste[end.value].rows_released += rows

    def accepted(self, rows: int, compute_us: int, energy_mwh: int, energy_cost_micro: int, pay_micro: int) -> None:
        """Add accepted rows."""
        self.rows += rows
        self.compute_ms += compute_us / 1000
        self.energy_mwh += energy_mwh
        self.energy_cost_micro += energy_cost_micro
        self.pay_micro += pay_micro

    def not_accepted(self, cause: str, rows: int, compute_us: int, energy_mwh: int) -> None:
        """Note rows that were for nothing, though they were leased to their sender.

        What comes without a lease is only refused: nobody asked for it, and what it claims can't be checked.
        """
        waste = self.waste[cause]
        waste.rows += rows
        waste.compute_ms += compute_us / 1000
        waste.energy_mwh += energy_mwh
