"""How far each car can be relied on: leases kept, strikes, checks, quarantine. Keeps columns of the fleet view."""

from dataclasses import dataclass, field

from coordinator.commands import Command, KeepConduct
from coordinator.fleet_view import FleetView
from coordinator.model import LeaseEnd, VehicleConduct
from coordinator.rules.quarantine import QuarantineLimits, quarantine_ms
from coordinator.rules.verification import VerificationLimits, conviction_ms

__all__ = ["Conduct"]


@dataclass(slots=True)
class Conduct:
    """Strikes are kept in the ledger; how many leases were kept goes there with them, and is learned anew else."""

    limits: QuarantineLimits
    verification: VerificationLimits
    fleet: FleetView
    convicted: dict[str, int] = field(default_factory=dict)
    """When each car was last convicted of wrong rows; all that it was granted until then is void."""

    def restore(self, kept: VehicleConduct, now_ms: int) -> None:
        """Go on from what the ledger remembers. No quarantine is longer than the longest, if the clock was set back."""
        row = self.fleet.row(kept.vehicle)
        longest_ms = max(self.limits.longest_ms, conviction_ms(kept.convictions, self.verification))
        self.fleet.column["strikes"][row] = kept.strikes
        self.fleet.column["quarantined_until_ms"][row] = min(kept.quarantined_until_ms, now_ms + longest_ms)
        self.fleet.column["checks_passed"][row] = kept.checks_passed
        self.fleet.column["convictions"][row] = kept.convictions
        if kept.convictions:
            self.convicted[kept.vehicle] = kept.convicted_ms
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
            self._quarantine(row, now_ms + pause_ms)
        return self._keep(row)

    def passed(self, vehicle: str, checks: int) -> list[Command]:
        """So many rows of a car were found right."""
        row = self.fleet.row(vehicle)
        self.fleet.column["checks_passed"][row] += checks
        return self._keep(row)

    def checks_passed(self, vehicle: str) -> int:
        """How many rows of a car were found right since it was last convicted."""
        return int(self.fleet.column["checks_passed"][self.fleet.row(vehicle)])

    def convict(self, vehicle: str, granted_ms: int, now_ms: int) -> list[Command]:
        """A car answered wrongly, whose latest lease was granted then: later than now if the clock was set back."""
        row = self.fleet.row(vehicle)
        self.fleet.column["checks_passed"][row] = 0
        convictions = self.fleet.column["convictions"][row] = int(self.fleet.column["convictions"][row]) + 1
        self.convicted[vehicle] = max(now_ms, granted_ms)
        self._quarantine(row, now_ms + conviction_ms(convictions, self.verification))
        return self._keep(row)

    def _quarantine(self, row: int, until_ms: int) -> None:
        """Neither of two causes shortens what the other one has cost."""
        column = self.fleet.column["quarantined_until_ms"]
        column[row] = max(int(column[row]), until_ms)

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
                    checks_passed=int(value("checks_passed")),
                    convictions=int(value("convictions")),
                    convicted_ms=self.convicted.get(self.fleet.ids[row], 0),
                )
            )
        ]
