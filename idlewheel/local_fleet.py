"""A broker, a coordinator and agents as child processes of ours, on loopback: what `up` and `demo` are made of."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from idlewheel.agent_host import HostedCar, HostSpec
from idlewheel.brokers import Broker, BrokerChoice, start_broker
from idlewheel.processes import Child, ChildFailed, run_child

__all__ = ["LocalFleet", "run_agents", "run_local_fleet"]

_LEDGER_FREE_S = 10.0
_OWN_CARS = {"owner": "operator", "purposes": ["general"]}


@dataclass(frozen=True, slots=True)
class LocalFleet:
    """A running broker and coordinator; `url` is where the coordinator serves."""

    broker: Broker
    coordinator: Child
    url: str
    fleet: str
    directory: Path


@contextlib.asynccontextmanager
async def run_local_fleet(
    directory: Path,
    *,
    broker: BrokerChoice = "auto",
    fleet: str = "demo",
    http_host: str = "127.0.0.1",
    http_port: int = 0,
    fleet_policy: Path | None = None,
    store: str = "",
    ledger: str = "",
    time_scale: float = 1.0,
    observe_every_s: float | None = None,
) -> AsyncIterator[LocalFleet]:
    """Run a broker and a coordinator with all their files in `directory`. Raises BrokerFailed, ChildFailed.

    Its cars belong to whoever runs it, who agrees to all general work unless `fleet_policy` says something else.
    Telemetry goes to `store` and jobs to `ledger`, if given. `time_scale` is how much faster than the clock the cars
    live. It is observed, for `/metrics` and the store, every `observe_every_s`, if that is given.
    """
    if fleet_policy is None:
        fleet_policy = directory / "fleet-policy.json"
        fleet_policy.write_bytes(msgspec.json.encode(_OWN_CARS))
    async with start_broker(broker, _folder(directory / "broker")) as running:
        environment = {
            "BROKER_HOST": running.host,
            "BROKER_PORT": str(running.port),
            "HTTP_HOST": http_host,
            "HTTP_PORT": str(http_port),
            "DATA": str(_folder(directory / "coordinator")),
            "FLEET": fleet,
            "FLEET_POLICY": str(fleet_policy),
            "STORE": store,
            "LEDGER": ledger,
            "TIME_SCALE": str(time_scale),
        }
        if observe_every_s is not None:
            environment["OBSERVE_EVERY_S"] = str(observe_every_s)
        async with run_child(
            "the coordinator",
            ["-m", "coordinator.daemon"],
            directory / "coordinator.log",
            environment={f"IDLEWHEEL_COORDINATOR_{name}": value for name, value in environment.items()},
        ) as coordinator:
            yield LocalFleet(running, coordinator, await _address(coordinator), fleet, directory)


async def _address(coordinator: Child) -> str:
    """Where it serves. One that was killed a moment ago still has its ledger for a while."""
    said = coordinator.ready
    try:
        async with asyncio.timeout(_LEDGER_FREE_S):
            while "http" not in said:
                said = await coordinator.read()
    except TimeoutError:
        raise ChildFailed(
            f"{said['reason']}: end that coordinator, or let this fleet have a ledger of its own. "
            "How one stands by for another: docs/operations.md, Standby"
        ) from None
    return str(said["http"])


@contextlib.asynccontextmanager
async def run_agents(
    local: LocalFleet, name: str, cars: Sequence[HostedCar], broker_port: int | None = None
) -> AsyncIterator[Child]:
    """Run the agents of some cars in one process, perhaps with something between them and the broker.

    Raises ChildFailed.
    """
    spec = HostSpec(
        broker_host=local.broker.host,
        broker_port=local.broker.port if broker_port is None else broker_port,
        fleet=local.fleet,
        data=str(_folder(local.directory / "vehicles")),
        cars=tuple(cars),
    )
    file = local.directory / f"{name}.json"
    file.write_bytes(msgspec.json.encode(spec))
    arguments = ["-m", "idlewheel.agent_host", "--spec", str(file)]
    async with run_child(f"the agents of {name}", arguments, local.directory / f"{name}.log") as child:
        yield child


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
