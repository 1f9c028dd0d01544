"""How far each car can be relied on: leases kept, strikes, quarantine. Keeps columns of the fleet view."""

from dataclasses import dataclass

from coordinator.commands import Command, KeepConduct
from coordinator.fleet_view import FleetView
from coordinator.model import LeaseEnd, VehicleConduct
from coordinator.rules.quarantine import QuarantineLimits, quarantine_ms

__all__ = ["Conduct"]


@dataclass(slots=True)
class Conduct:
    """Strikes are kept in the ledger; how many leases were kept goes there with them, and is learned anew else."""

    limits: QuarantineLimits
    fleet: FleetView

    def restore(self, kept: VehicleConduct, now_ms: int) -> None:
        """Go on from what the ledger remembers. No quarantine is longer than the longest, if the clock was set back."""
        row = self.fleet.row(kept.vehicle)
        self.fleet.column["strikes"][row] = kept.strikes
        self.fleet.column["quarantined_until_ms"][row] = min(kept.quarantined_until_ms, now_ms + self.limits.longest_ms)
        self.fleet.column["leases_kept"][row] = kept.leases_kept
        self.fleet.column["leases_ended"][row] = kept.leases_ended

    def lease_ended(self, vehicle: str, end: LeaseEnd) -> None:
        """Count how a car ended work: leaving is no fault, but says how likely it stays to the end."""
        if end is LeaseEnd.CANCELLED:
            return
        row = self.fleet.row(vehicle)
        kept, ended = self.fleet.column["leases_kept"], self.fleet.column["leases_ended"]
        kept[row] = kept[row] * self.limits.memory + (end is LeaseEnd.DONE)
        ended[row] = ended[row] * self.limits.memory + 1

    def strike(self, vehicle: str, now_ms: int) -> list[Command]:
        """A car was at fault."""
        row = self.fleet.row(vehicle)
        strikes = self.fleet.column["strikes"][row] = int(self.fleet.column["strikes"][row]) + 1
        pause_ms = quarantine_ms(strikes, self.limits)
        if pause_ms:
            self.fleet.column["quarantined_until_ms"][row] = now_ms + pause_ms
        return self._keep(row)

    def good_work(self, vehicle: str) -> list[Command]:
        """A car brought good rows: that makes up for a strike."""
        row = self.fleet.row(vehicle)
        if not self.fleet.column["strikes"][row]:
            return []
        self.fleet.column["strikes"][row] -= 1
        return self._keep(row)

    def _keep(self, row: int) -> list[Command]:
        def value(name: str) -> float:
            return float(self.fleet.column[name][row])

        return [
            KeepConduct(
                VehicleConduct(
                    vehicle=self.fleet.ids[row],
                    strikes=int(value("strikes")),
                    quarantined_until_ms=int(value("quarantined_until_ms")),
                    leases_kept=value("leases_kept"),
                    leases_ended=value("leases_ended"),
                )
            )
        ]
