"""The demo's stage: broker, coordinator, and the agents of a chosen fleet in a few processes, one to be killed.

It starts and ends them; what happens on it is for `player`.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from idlewheel.agent_host import HostedCar
from idlewheel.brokers import BrokerChoice
from idlewheel.local_fleet import LocalFleet, run_agents, run_local_fleet
from idlewheel.processes import Child
from simulator.car import Replay
from simulator.fleet import CarChoice, FleetChoice
from simulator.traces import plug_in_at

__all__ = ["Stage", "build_stage", "choose_victim"]

# Processes for the agents, besides that of the agent to be killed, which is alone in its own.
_HOSTS = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs. The cars' time stands still until `begin`."""

    local: LocalFleet
    fleet: FleetChoice
    speed_up: float
    victim: str
    victim_host: Child
    hosts: tuple[Child, ...]

    async def begin(self) -> None:
        """Let the cars come and go from now on."""
        replay = Replay(self.fleet.start_ms, time.time_ns() // 1_000_000, self.speed_up)
        for host in (*self.hosts, self.victim_host):
            await host.tell(msgspec.to_builtins(replay))

    def clock(self, elapsed_s: float) -> str:
        """The cars' day and time."""
        moment = datetime.fromtimestamp(self.fleet.start_ms / 1000 + elapsed_s * self.speed_up, UTC)
        return f"{moment:%a %H:%M} ({self.speed_up:g}x)"


@contextlib.asynccontextmanager
async def build_stage(
    directory: Path, fleet: FleetChoice, speed_up: float, broker: BrokerChoice, store: str = ""
) -> AsyncIterator[Stage]:
    """Start everything, and end it on leaving. Raises BrokerFailed, ChildFailed."""
    victim = choose_victim(fleet)
    others = [car for car in fleet.cars if car != victim]
    async with contextlib.AsyncExitStack() as stack:
        local = await stack.enter_async_context(
            run_local_fleet(directory, broker=broker, store=store, time_scale=speed_up)
        )
        hosts = [
            await stack.enter_async_context(run_agents(local, f"host-{number}", _standing(fleet, cars)))
            for number, cars in enumerate([[victim], *(others[number::_HOSTS] for number in range(_HOSTS))])
        ]
        yield Stage(local, fleet, speed_up, victim.vehicle, hosts[0], tuple(hosts[1:]))


def choose_victim(fleet: FleetChoice) -> CarChoice:
    """The car that stays plugged in longest: it will hold work when it is killed."""
    return max(fleet.cars, key=lambda car: _unplugged_ms(car, fleet.start_ms))


def _unplugged_ms(car: CarChoice, now_ms: int) -> int:
    plug_in = plug_in_at(car.trace, now_ms)
    return now_ms if plug_in is None else plug_in.stop_ms


def _standing(fleet: FleetChoice, cars: Sequence[CarChoice]) -> list[HostedCar]:
    replay = Replay(fleet.start_ms, time.time_ns() // 1_000_000, speed_up=0)
    return [HostedCar(car.vehicle, car.trace, replay) for car in cars]
