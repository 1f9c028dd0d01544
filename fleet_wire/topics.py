"""Names of MQTT topics, built and parsed here and nowhere else. Never touches a payload."""

import re
from dataclasses import dataclass
from enum import StrEnum

from fleet_wire.errors import WireError, WireFault

__all__ = [
    "FleetTopics",
    "JobTopic",
    "VehicleChannel",
    "VehicleTopic",
    "is_identifier",
    "parse_topic",
]

_ROOT = "iw/v1"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_identifier(text: str) -> bool:
    """Say whether `text` may stand in a topic as a fleet, vehicle, job or coordinator id."""
    return _IDENTIFIER.fullmatch(text) is not None


class VehicleChannel(StrEnum):
    """The last level of a vehicle's topics."""

    STATE = "state"
    CAPS = "caps"
    TELE = "tele"
    BEAT = "beat"
    TASK = "task"
    CTL = "ctl"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class VehicleTopic:
    """`iw/v1/{fleet}/veh/{vehicle}/{channel}`, taken apart."""

    fleet: str
    vehicle: str
    channel: VehicleChannel


@dataclass(frozen=True, slots=True)
class JobTopic:
    """`iw/v1/{fleet}/job/{job}/res/{vehicle}`, taken apart."""

    fleet: str
    job: str
    vehicle: str


@dataclass(frozen=True, slots=True)
class FleetTopics:
    """Every topic and subscription filter of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        if not is_identifier(self.fleet):
            raise WireError(WireFault.BAD_TOPIC, f"{self.fleet!r} is no fleet id: use [A-Za-z0-9_-], at most 64")

    def vehicle(self, vehicle: str, channel: VehicleChannel) -> str:
        """Topic of one vehicle's channel."""
        return f"{_ROOT}/{self.fleet}/veh/{vehicle}/{channel.value}"

    def every_vehicle(self, channel: VehicleChannel) -> str:
        """Filter for one channel of all vehicles."""
        return f"{_ROOT}/{self.fleet}/veh/+/{channel.value}"

    def result(self, job: str, vehicle: str) -> str:
        """Topic on which a vehicle answers for a job."""
        return f"{_ROOT}/{self.fleet}/job/{job}/res/{vehicle}"

    def every_result(self) -> str:
        """Filter for all results of the fleet."""
        return f"{_ROOT}/{self.fleet}/job/+/res/+"

    def coordinator(self, coordinator: str) -> str:
        """Topic of one coordinator's presence."""
        return f"{_ROOT}/{self.fleet}/coord/{coordinator}/state"

    def every_coordinator(self) -> str:
        """Filter for the presence of all coordinators."""
        return f"{_ROOT}/{self.fleet}/coord/+/state"


_CHANNELS = frozenset(VehicleChannel)


def parse_topic(topic: str) -> VehicleTopic | JobTopic:
    """Take a vehicle's topic apart; raise WireError(BAD_TOPIC) for any other."""
    match topic.split("/"):
        case ["iw", "v1", fleet, "veh", vehicle, channel] if is_identifier(vehicle) and channel in _CHANNELS:
            return VehicleTopic(fleet, vehicle, VehicleChannel(channel))
        case ["iw", "v1", fleet, "job", job, "res", vehicle] if is_identifier(job) and is_identifier(vehicle):
            return JobTopic(fleet, job, vehicle)
    raise WireError(WireFault.BAD_TOPIC, topic[:200])
