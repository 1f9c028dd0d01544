"""What owners agreed to, version after version, and that their cars hear of it. Pure but for the fleet's columns."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from coordinator.commands import AddConsent, Command, SendControl, SendPolicy
from coordinator.events import PolicySet
from coordinator.fleet_view import FleetView
from coordinator.leases import Leases
from coordinator.model import LeaseEnd
from fleet_wire.messages import Cancel
from fleet_wire.policy import OwnerPolicy

__all__ = ["Consents"]

_EVERYBODY = "fleet policy"
_ON_ITS_WAY_MS = 1_000


@dataclass(slots=True)
class Consents:
    """The newest policy of every vehicle.

    `fleet_policy` is what every vehicle's owner agreed to that has no record of its own, where one operator owns the
    fleet. What a car does not hold yet is published again every `repeat_ms`.
    """

    fleet_policy: OwnerPolicy | None
    repeat_ms: int
    fleet: FleetView
    leases: Leases
    refusals: Counter[str]

    def appeared(self, vehicle: str, now_ms: int) -> list[Command]:
        """A vehicle said what it can do, and which version of its policy it holds."""
        row = self.fleet.row(vehicle)
        policy = self.fleet.policy(vehicle)
        held = self.fleet.column["consent_version"][row]
        stands = policy or self.fleet_policy
        if held > (0 if stands is None else stands.version):
            self.refusals["policy_behind_vehicle"] += 1
        if policy is None and self.fleet_policy is not None:
            return self.take(PolicySet(vehicle, self.fleet_policy, _EVERYBODY), now_ms)
        if policy is None or policy.version <= held:  # it takes none that is not above its own
            return []
        if now_ms - self.fleet.column["policy_sent_ms"][row] < _ON_ITS_WAY_MS:
            return []
        self.fleet.column["policy_sent_ms"][row] = now_ms
        return [SendPolicy(vehicle, policy)]

    def take(self, event: PolicySet, now_ms: int) -> list[Command]:
        """Take the next version of a policy. What the car holds relies on the one before, and ends with it."""
        vehicle, policy = event.vehicle, event.policy
        row = self.fleet.row(vehicle)
        if policy == self.fleet.policy(vehicle):
            return []
        after = self.fleet.column["policy_version"][row] + 1
        if policy.version not in {after, self.fleet.next_policy_version(vehicle)}:
            self.refusals["policy_version_conflict"] += 1
            return []
        self.fleet.set_policy(vehicle, policy)
        self.fleet.column["policy_sent_ms"][row] = now_ms
        commands: list[Command] = [AddConsent(vehicle, policy, event.by, now_ms), SendPolicy(vehicle, policy)]
        for job, chunks in list(self.fleet.held.get(row, {}).items()):
            # The car did not ask for it, so that it does not speak against the car.
            commands += self.leases.release(job, sorted(chunks), LeaseEnd.CANCELLED, now_ms)
            commands.append(SendControl(vehicle, Cancel(job)))
        return commands

    def repeat(self, now_ms: int) -> list[Command]:
        """Publish once more what cars that are there do not hold yet: the last message may have been lost."""
        version, sent_ms = self.fleet.live("policy_version"), self.fleet.live("policy_sent_ms")
        unheld = self.fleet.live("online") & (self.fleet.live("consent_version") < version)
        rows = np.flatnonzero(unheld & (sent_ms <= now_ms - self.repeat_ms))
        sent_ms[rows] = now_ms
        vehicles = [self.fleet.ids[row] for row in rows.tolist()]
        return [SendPolicy(each, policy) for each in vehicles if (policy := self.fleet.policy(each)) is not None]
