"""Messages from the fleet, read: each becomes an event, a note, or a counted refusal. Pure."""

from dataclasses import dataclass, field
from typing import Protocol, assert_never

from fleet_wire.codec import CONTROL, COORDINATOR, POLICY, STATE, TASK, Control
from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import Cancel, CoordinatorState, Drain, Notice, Rebirth, Refusal, RefusalReason, State
from fleet_wire.policy import OwnerPolicy
from fleet_wire.topics import FleetTopics, JobTopic, VehicleChannel, parse_topic
from vehicle_agent.events import Drained, Event, JobCancelled, TaskOffered

__all__ = ["Mail", "Mailbox", "PolicyOffered"]


@dataclass(frozen=True, slots=True)
class PolicyOffered:
    """The owner's policy came in; None says that there is none any more."""

    policy: OwnerPolicy | None


Mail = Event | PolicyOffered | State | CoordinatorState | Rebirth | Notice

_REASONS = {
    WireFault.UNKNOWN_VERSION: RefusalReason.UNKNOWN_VERSION,
    WireFault.WRONG_CONTENT_TYPE: RefusalReason.MALFORMED,
    WireFault.MALFORMED: RefusalReason.MALFORMED,
    WireFault.OVERSIZED: RefusalReason.MALFORMED,
    WireFault.CORRUPT: RefusalReason.MALFORMED,
}


class _Message(Protocol):
    topic: str
    payload: bytes
    content_type: str | None
    response_topic: str | None
    intact: bool


@dataclass(slots=True)
class Mailbox:
    """What one vehicle of one fleet listens to."""

    fleet: str
    vehicle: str
    max_bytes: int
    _task: str = field(init=False)
    _control: str = field(init=False)
    _state: str = field(init=False)
    _policy: str = field(init=False)
    _coordinators: str = field(init=False)

    def __post_init__(self) -> None:
        topics = FleetTopics(self.fleet)
        self._task = topics.vehicle(self.vehicle, VehicleChannel.TASK)
        self._control = topics.vehicle(self.vehicle, VehicleChannel.CTL)
        self._state = topics.vehicle(self.vehicle, VehicleChannel.STATE)
        self._policy = topics.vehicle(self.vehicle, VehicleChannel.POLICY)
        self._coordinators = topics.every_coordinator()

    @property
    def filters(self) -> list[tuple[str, int]]:
        """What to subscribe to, each with its quality of service."""
        return [(name, 1) for name in (self._policy, self._task, self._control, self._state, self._coordinators)]

    def read(self, message: _Message) -> Mail:
        """Return what a message means. Raise WireError, and nothing else."""
        if not message.intact:
            raise WireError(WireFault.CORRUPT, f"{len(message.payload)} bytes")
        if len(message.payload) > self.max_bytes:
            raise WireError(WireFault.OVERSIZED, f"{len(message.payload)} bytes")
        topic, payload, content_type = message.topic, message.payload, message.content_type
        if topic == self._task:
            return TaskOffered(TASK.decode(payload, content_type))
        if topic == self._control:
            return self._read_control(payload, content_type)
        if topic == self._state:
            return STATE.decode(payload, content_type)
        if topic == self._policy:
            return PolicyOffered(POLICY.decode(payload, content_type) if payload else None)
        before, _, after = self._coordinators.partition("+")
        if topic.startswith(before) and topic.endswith(after):
            return COORDINATOR.decode(payload, content_type)
        is_ours = topic.startswith(before.removesuffix("coord/"))
        raise WireError(WireFault.BAD_TOPIC if is_ours else WireFault.FOREIGN_FLEET, topic[:200])

    def refusal_of(self, message: _Message, error: WireError) -> Refusal | None:
        """The answer to a task that can't be read, when it names our own result topic to answer on."""
        reason = _REASONS.get(error.fault)
        if message.topic != self._task or reason is None or message.response_topic is None:
            return None
        try:
            answer = parse_topic(message.response_topic)
        except WireError:
            return None
        if not isinstance(answer, JobTopic) or (answer.fleet, answer.vehicle) != (self.fleet, self.vehicle):
            return None
        return Refusal(answer.job, 0, reason, detail=error.detail[:1000])

    def _read_control(self, payload: bytes, content_type: str | None) -> Mail:
        control: Control = CONTROL.decode(payload, content_type)
        match control:
            case Cancel(job, chunks):
                return JobCancelled(job, tuple(chunks))
            case Drain():
                return Drained()
            case Rebirth() | Notice():
                return control
            case _:
                assert_never(control)
