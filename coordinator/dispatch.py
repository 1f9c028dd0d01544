"""Turns task and control commands into MQTT messages. Decides nothing: what can't be delivered goes back.

What waits is bounded: of policies the newest of each car, of control messages no two that say the same to one car, and
of tasks no more than a round of the brain above `WAITING_TASKS`, for it gives no work while there is no room.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from coordinator.brain import wall_clock_ms
from coordinator.commands import SendControl, SendPolicy, SendTask
from coordinator.errors import CoordinatorError, StoreUnavailable
from coordinator.events import BlobLost, TaskUndelivered
from coordinator.model import Job, LeaseRecord, Model
from coordinator.ports import InputReader
from coordinator.progress import row_range
from fleet_link import LinkError, LinkLost, Session, Tracer
from fleet_wire.bundle import encode_bundle
from fleet_wire.codec import CONTROL, POLICY, TASK
from fleet_wire.messages import BlobRef, Lease, Rebirth, Task
from fleet_wire.tensors import Tensor, decode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel

__all__ = ["WAITING_TASKS", "Dispatch"]

WAITING_TASKS: Final = 1_000
_NO_SUBSCRIBER = 0x10
_PACKET_OVERHEAD_BYTES = 1536  # topic, properties (a tracestate among them) and MQTT header beside the payload


class Catalogue(Protocol):
    """Where a job and its model are looked up; a job that has ended is not there."""

    def find(self, job: str) -> tuple[Job, Model] | None:
        """The job and its model, while it runs."""

    def standing(self, leases: Sequence[LeaseRecord]) -> tuple[LeaseRecord, ...]:
        """Those leases, all of one job, that have not ended."""


class Undelivered(Protocol):
    """Takes tasks back that nobody received, and learns of inputs that nobody can have."""

    def __call__(self, event: TaskUndelivered | BlobLost) -> None: ...


class Dispatch:
    """Sends what is to be said to cars in its order, and before any task; then tasks in theirs.

    A cancel may so overtake the task that it is about, of which then nothing is sent: its leases have ended before.
    `session` is set while the link is up; without it tasks go straight back. Policies, and what asks a car for a
    rebirth, wait for the next one: the core takes them for said, and would not say them again for a minute.
    """

    def __init__(
        self,
        topics: FleetTopics,
        inputs: InputReader,
        catalogue: Catalogue,
        undelivered: Undelivered,
        max_packet_bytes: int,
        tracer: Tracer,
    ) -> None:
        self._session: Session | None = None
        self.counters: Counter[str] = Counter()
        self._topics = topics
        self._inputs = inputs
        self._catalogue = catalogue
        self._undelivered = undelivered
        self._max_packet_bytes = max_packet_bytes
        self._tracer = tracer
        self._words: OrderedDict[tuple[str, bytes], SendControl | SendPolicy] = OrderedDict()
        self._waiting: deque[SendTask] = deque()
        self._rebirths_unheard: dict[str, SendControl] = {}
        self._policies_unheard: dict[str, SendPolicy] = {}
        self._wake = asyncio.Event()

    @property
    def session(self) -> Session | None:
        """The connection, while the link is up."""
        return self._session

    @session.setter
    def session(self, session: Session | None) -> None:
        self._session = session
        if session is not None:
            unheard: list[SendControl | SendPolicy] = [*self._rebirths_unheard.values()]
            for word in [*unheard, *self._policies_unheard.values()]:
                self._words.setdefault(_key(word), word)  # a newer policy waits there already
            self._rebirths_unheard.clear()
            self._policies_unheard.clear()
            self._wake.set()

    @property
    def has_room(self) -> bool:
        """Whether it makes sense to give more work: there is a connection, and not too many tasks wait for it."""
        return self.session is not None and len(self._waiting) < WAITING_TASKS

    def put(self, commands: Sequence[SendTask | SendControl | SendPolicy]) -> None:
        """Queue commands; never waits and never drops."""
        for command in commands:
            if isinstance(command, SendTask):
                self._waiting.append(command)
            else:
                self._words[_key(command)] = command
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if self._words:
                _, word = self._words.popitem(last=False)
                await self._say(word)
            elif self._waiting:
                await self._send_task(self._waiting.popleft())
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _say(self, word: SendControl | SendPolicy) -> None:
        try:
            match word:
                case SendControl(vehicle, control):
                    topic = self._topics.vehicle(vehicle, VehicleChannel.CTL)
                    answer = await self._publish(topic, CONTROL.encode(control), CONTROL.content_type, expiry_s=60)
                case SendPolicy(vehicle, policy):
                    topic = self._topics.vehicle(vehicle, VehicleChannel.POLICY)
                    answer = await self._publish(topic, POLICY.encode(policy), POLICY.content_type, retain=True)
        except LinkError:
            self._not_heard(word)
        else:
            answer.add_done_callback(lambda future: self._not_heard(word) if _is_lost(future) else None)

    def _not_heard(self, word: SendControl | SendPolicy) -> None:
        """Keep what a car does not know otherwise for the next connection; cancelling is only a favour."""
        match word:
            case SendPolicy(vehicle, policy):
                self.counters["policy_undelivered"] += 1
                later = self._policies_unheard.get(vehicle)
                if later is None or later.policy.version < policy.version:
                    self._policies_unheard[vehicle] = word
            case SendControl():
                self.counters["control_undelivered"] += 1
                if isinstance(word.control, Rebirth):
                    self._rebirths_unheard[word.vehicle] = word

    async def _send_task(self, command: SendTask) -> None:
        found = self._catalogue.find(command.job)
        standing = self._catalogue.standing(command.leases)
        if found is None or not standing:
            return
        job, model = found
        command = msgspec.structs.replace(command, leases=standing)
        try:
            for task, leases in await self._tasks(command, job, model):
                await self._send_one(command, job, task, leases)
        except CoordinatorError as error:
            self.counters[f"inputs_{error.code}"] += 1
            if isinstance(error, StoreUnavailable):
                self._give_back(command, command.leases)
            else:
                self._undelivered(BlobLost(job.inputs, error.detail))

    async def _tasks(self, command: SendTask, job: Job, model: Model) -> list[tuple[Task, Sequence[LeaseRecord]]]:
        """One task with its inputs inside or, where they are too large for a packet, one a lease with a reference."""
        rows_of = [row_range(job, lease.start, lease.stop) for lease in command.leases]
        inputs = await self._inputs.gather(job.inputs, rows_of)
        size = sum(len(tensor.data) for tensor in inputs) + 16 * len(command.leases)
        if size + _PACKET_OVERHEAD_BYTES <= self._packet_limit():
            return [(_task(command, job, model, command.leases, inputs=inputs), command.leases)]
        tasks: list[tuple[Task, Sequence[LeaseRecord]]] = []
        for lease, rows_range in zip(command.leases, rows_of, strict=True):
            rows = await self._inputs.gather(job.inputs, [rows_range])
            data = encode_bundle(decode_tensors(rows))
            path = f"/v1/jobs/{job.id}/inputs/{lease.start}-{lease.stop}"
            ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data), path)
            tasks.append((_task(command, job, model, [lease], inputs_ref=ref), [lease]))
        return tasks

    async def _send_one(self, command: SendTask, job: Job, task: Task, leases: Sequence[LeaseRecord]) -> None:
        trace = None if job.trace is None else self._tracer.begin(job.trace)
        left_s = max(1, (task.deadline_ms - leases[0].granted_ms) // 1000)
        try:
            answer = await self._publish(
                self._topics.vehicle(command.vehicle, VehicleChannel.TASK),
                TASK.encode(task),
                TASK.content_type,
                expiry_s=left_s,
                response_topic=self._topics.result(command.job, command.vehicle),
                correlation=leases[0].chunk.to_bytes(8, "big"),
                user_properties=() if trace is None else trace.properties,
            )
        except LinkError:
            self._give_back(command, leases)
        else:
            answer.add_done_callback(lambda future: self._answered(future, command, leases))
        if trace is not None:
            facts: dict[str, str | int] = {"job": job.id, "vehicle": command.vehicle, "leases": len(leases)}
            self._tracer.end("assign", trace, job.trace, leases[0].granted_ms, wall_clock_ms(), **facts)

    async def _publish(
        self,
        topic: str,
        payload: bytes,
        content_type: str,
        *,
        expiry_s: int | None = None,
        retain: bool = False,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> asyncio.Future[int]:
        session = self.session
        if session is None:
            raise LinkLost("not connected")
        await session.drain()
        return session.publish_soon(
            topic,
            payload,
            content_type=content_type,
            expiry_s=expiry_s,
            retain=retain,
            response_topic=response_topic,
            correlation=correlation,
            user_properties=user_properties,
        )

    def _answered(self, answer: asyncio.Future[int], command: SendTask, leases: Sequence[LeaseRecord]) -> None:
        if _is_lost(answer) or answer.result() == _NO_SUBSCRIBER:
            self._give_back(command, leases)

    def _give_back(self, command: SendTask, leases: Sequence[LeaseRecord]) -> None:
        chunks = tuple(lease.chunk for lease in leases)
        self._undelivered(TaskUndelivered(command.vehicle, command.job, chunks))

    def _packet_limit(self) -> int:
        server = self._max_packet_bytes if self.session is None else self.session.server.max_packet_size
        return min(self._max_packet_bytes, server)


def _key(word: SendControl | SendPolicy) -> tuple[str, bytes]:
    """Of words with the same key only the last one is said."""
    match word:
        case SendControl(vehicle, control):
            return vehicle, CONTROL.encode(control)
        case SendPolicy(vehicle):
            return vehicle, b"policy"


def _is_lost(answer: asyncio.Future[int]) -> bool:
    return answer.cancelled() or answer.exception() is not None


def _task(
    command: SendTask,
    job: Job,
    model: Model,
    leases: Sequence[LeaseRecord],
    *,
    inputs: list[Tensor] | None = None,
    inputs_ref: BlobRef | None = None,
) -> Task:
    return Task(
        job=command.job,
        epoch=command.epoch,
        model=BlobRef(model.digest, model.size, f"/v1/blobs/{model.digest}"),
        deadline_ms=command.deadline_ms,
        consent_version=command.consent_version,
        purpose=job.terms.purpose,
        energy_micro_per_kwh=command.energy_micro_per_kwh,
        pay_micro_per_h=command.pay_micro_per_h,
        leases=[Lease(lease.chunk, lease.start, lease.stop) for lease in leases],
        inputs=inputs,
        inputs_ref=inputs_ref,
    )
