"""A coordinator's core and several cars' sessions with lists between them instead of a network.

The core, the session, ingest, the mailbox, the policies, the telemetry stream and the ledger are the real ones, and
every message crosses as bytes. Plain stand-ins are only what does I/O around them: the daemons' loops, the broker, the
worker (a pure function of the inputs), the blob store and the outbox. Nothing here happens by itself.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.commands import (
    AddAnswer,
    AddRows,
    FindOut,
    GrantLease,
    KeepChecks,
    LedgerWrite,
    LookBack,
    SendControl,
    SendPolicy,
    SendTask,
)
from coordinator.commands import Command as CoreCommand
from coordinator.core import Core, CorePolicy
from coordinator.dispatch import _task
from coordinator.events import Event as CoreEvent
from coordinator.events import RowsFailed, RowsKnown, RowsReceived, TaskUndelivered, VehiclesHeard
from coordinator.events import Tick as CoreTick
from coordinator.ingest import Ingest, outputs_event
from coordinator.model import REFEREE, AcceptedRows, Check, Job, LeaseRecord, Model
from coordinator.payloads import decode_payload
from coordinator.progress import row_range
from coordinator.rules.fit import output_fault
from fleet_wire.api import TensorSpec
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.codec import BEAT, CAPS, CONTROL, POLICY, RESULT, STATE, TASK, TELEMETRY, MessageKind
from fleet_wire.errors import WireError
from fleet_wire.messages import Beat, BlobRef, Caps, Failure, Notice, Rebirth, Refusal, Rows, Span, State, Task
from fleet_wire.policy import OwnerPolicy
from fleet_wire.signals import Signals
from fleet_wire.tensors import Array, encode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel
from tests.property.plain_ledger import PlainJob, PlainLedger
from vehicle_agent.events import (
    BatchFailed,
    BatchRan,
    Command,
    Connected,
    Event,
    FetchInputs,
    FetchModel,
    InputsArrived,
    Judged,
    KillWorker,
    LoadModel,
    ModelArrived,
    ModelLoaded,
    OutboxFilled,
    PolicyChanged,
    Run,
    Send,
    ShutDown,
    Tick,
    UploadFailed,
)
from vehicle_agent.mailbox import Mailbox, PolicyOffered
from vehicle_agent.pace import PaceLimits
from vehicle_agent.policy import CarLimits, judge
from vehicle_agent.presence import TelemetryStream
from vehicle_agent.results import ByReference
from vehicle_agent.session import Session, SessionLimits

TOPICS = FleetTopics("test")
PACKET_BYTES = 128 * 1024
OUTBOX_MESSAGES = 12
BEAT_MS = 700
SLOTS = 6

_SPEC = (TensorSpec("x", "int64", [None, 1]),)
_OUT = (TensorSpec("y", "int64", [None, 1]),)
MODELS = {digest * 64: Model(digest * 64, 100, _SPEC, _OUT, batch) for digest, batch in (("a", None), ("b", 4))}


def computed(model: str, inputs: Array) -> Array:
    """What a model makes of its inputs: a direct computation, and what the workers do."""
    return inputs * 3 + 1 if model[0] == "a" else inputs * 5 + 2


def inputs_of(job: str, start: int, stop: int) -> Array:
    """Rows of a job; no two rows of any jobs are alike."""
    return (np.arange(start, stop, dtype=np.int64) + 1000 * int(job[1:])).reshape(-1, 1)


LIES: dict[str, Callable[[Array], Array]] = {
    "in every row": np.ones_like,
    "in some rows": lambda inputs: inputs % 3 == 0,
}
"""Where a car lies. How much it adds is its own, so that no two liars agree."""


@dataclass(frozen=True)
class Packet:
    """A PUBLISH. `intact`: its checksum is right; `survives`: the outbox keeps it over the connection's end."""

    topic: str
    payload: bytes
    content_type: str | None
    retain: bool = False
    response_topic: str | None = None
    intact: bool = True
    survives: bool = False

    @classmethod
    def of(cls, kind: MessageKind[Any], topic: str, message: Any, **more: Any) -> "Packet":
        return cls(topic, kind.encode(message), kind.content_type, **more)


def corrupted(packet: Packet, how: str) -> Packet:
    """The same, so that nobody can take it for a message."""
    match how:
        case "truncated":
            return replace(packet, payload=packet.payload[: len(packet.payload) // 2])
        case "flipped":
            return replace(packet, payload=bytes([*packet.payload[:-1], packet.payload[-1] ^ 4]), intact=False)
        case "no MessagePack":
            return replace(packet, payload=b"\xc1" + packet.payload)
        case "too large":
            return replace(packet, payload=packet.payload + bytes(PACKET_BYTES))
        case _:
            return replace(packet, content_type="application/vnd.idlewheel.other+msgpack; v=9")


WILLING = Signals(
    moving=False,
    plugged=True,
    charging=True,
    charge_percent=80.0,
    battery_temperature_c=20.0,
    battery_power_w=5_000.0,
    battery_capacity_kwh=60.0,
    cabin_temperature_c=20.0,
    link_metered=False,
    link_rate_mbps=50.0,
    link_month_bytes=0,
    compute_temperature_c=40.0,
    compute_power_w=25.0,
    awake_power_w=0.0,
    opted_in=True,
    update_pending=False,
    camp_mode=False,
    sentry_mode=False,
)
TROUBLES: dict[str, dict[str, Any]] = {
    "unplugged": {"plugged": False, "charging": False},
    "driven off": {"plugged": False, "charging": False, "moving": True},
    "owner's stop": {"opted_in": False},
    "hot": {"battery_temperature_c": 60.0},
    "flat": {"charge_percent": 5.0},
    "bus silent": dict.fromkeys(("moving", "plugged", "opted_in", "charge_percent"), msgspec.UNSET),
}


class Broker:
    """What is on its way. Everything the coordinator is told lies in `inbox` until it is acknowledged."""

    def __init__(self) -> None:
        self.retained: dict[str, Packet] = {}
        self.inbox: list[Packet] = []
        self.down: dict[str, list[Packet]] = {}  # by connected car
        self.wills: list[tuple[str, Packet]] = []
        self.names_nobody = True  # says so when nobody is subscribed

    def take(self, packet: Packet) -> None:
        """A car's message has come."""
        if packet.retain:
            self.retained[packet.topic] = packet
        self.inbox.append(replace(packet, retain=False))
        for car, down in self.down.items():
            if packet.topic == TOPICS.vehicle(car, VehicleChannel.STATE):
                down.append(packet)

    def publish_will(self, place: int) -> None:
        self.take(self.wills.pop(place)[1])

    def connect(self, car: str) -> None:
        topics = [TOPICS.vehicle(car, each) for each in (VehicleChannel.POLICY, VehicleChannel.STATE)]
        self.down[car] = [self.retained[topic] for topic in topics if topic in self.retained]

    def send(self, car: str, packet: Packet) -> bool:
        """The coordinator's message to a car; whether anybody hears it."""
        if packet.retain:
            self.retained[packet.topic] = packet
        if car in self.down:
            self.down[car].append(packet)
        return car in self.down


@dataclass
class Books:
    """Every row that a session took under a lease, until it ends; whatever ends has to be in here."""

    open: dict[tuple[str, int], set[int]] = field(default_factory=dict)

    def take(self, task: Task) -> None:
        for lease in task.leases:
            self.open.setdefault((task.job, lease.chunk), set(range(lease.start, lease.stop)))

    def end(self, message: Rows | Failure) -> None:
        for span in message.spans:
            left = self.open.get((message.job, span.chunk), set())
            rows = set(range(span.start, span.stop))
            assert rows <= left, "a row ended twice, or that was never leased"
            left -= rows
            if not left:
                del self.open[message.job, span.chunk]

    def without(self, gathered: Iterable[tuple[str, Span]]) -> dict[tuple[str, int], set[int]]:
        """The same less rows that are computed and not sent yet; leases that have no row left are not in it."""
        done: dict[tuple[str, int], set[int]] = {}
        for job, span in gathered:
            done.setdefault((job, span.chunk), set()).update(range(span.start, span.stop))
        left = {lease: rows - done.get(lease, set()) for lease, rows in self.open.items()}
        return {lease: rows for lease, rows in left.items() if rows}

    def refuse(self, message: Refusal) -> None:
        for chunk in message.chunks:
            assert self.open.pop((message.job, chunk), None), "a lease was refused that is not held"


class Car:
    """A session and what the agent's daemon does around it; `disk` survives it."""

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.world = world
        self.policy: OwnerPolicy | None = None
        self.epoch = 0
        self.max_bytes = 60_000
        self.signals = WILLING
        self.skew_ms = 0
        self.broken = False
        self.lies: str | None = None
        self.spool: list[Packet] = []
        self.refused: Counter[str] = Counter()
        self.mailbox = Mailbox("test", name, PACKET_BYTES)
        self.telemetry: TelemetryStream | None = None
        self.start()

    def start(self) -> None:
        """A new process of the agent."""
        pace = PaceLimits(first_rows=2, max_rows=8)
        self.session = Session(SessionLimits(slots=SLOTS, worker_models=1, pace=pace), self.policy)
        self.books = Books()
        self.up: deque[Packet] = deque()
        self.pipe: deque[LoadModel | Run] = deque()
        self.fetching: list[BlobRef] = []
        self.fetching_inputs: dict[int, BlobRef] = {}
        self.uploads: list[ByReference] = []
        self.full = False
        self.born = False
        self.events: deque[Event] = deque()
        self.handling = False

    @property
    def connected(self) -> bool:
        return self.telemetry is not None

    @property
    def now_ms(self) -> int:
        return self.world.now_ms + self.skew_ms

    # The session's events and commands

    def tell(self, event: Event) -> None:
        self.events.append(event)
        if self.handling:
            return
        self.handling = True
        while self.events:
            for command in self.session.handle(self.events.popleft(), self.now_ms):
                self.carry_out(command)
        self.handling = False

    def carry_out(self, command: Command) -> None:
        match command:
            case Send(Refusal() as refusal):
                self.books.refuse(refusal)
                self.publish_result(refusal)
            case Send(message):
                self.books.end(message)
                self.publish_result(message)
            case ByReference(rows):
                self.books.end(rows)
                self.uploads.append(command)
            case LoadModel():
                self.assert_may_work()
                self.pipe.append(command)
            case Run(job=job):
                self.assert_may_work()
                assert self.policy is not None
                assert self.world.terms(job).purpose in self.policy.purposes
                self.pipe.append(command)
            case KillWorker():
                self.pipe.clear()
            case FetchModel(ref):
                assert ref not in self.fetching
                self.fetching.append(ref)
            case FetchInputs(task, ref):
                self.fetching_inputs[task] = ref

    def assert_may_work(self) -> None:
        """The car's own rules, looked at by themselves."""
        assert self.reason(willing=True) is None
        assert self.policy is not None
        assert not self.policy.revoked

    def reason(self, *, willing: bool) -> Any:
        verdict = judge(self.signals, self.policy, CarLimits(), now_ms=self.now_ms, utc_offset_ms=0, willing=willing)
        return None if verdict is None else verdict.reason

    def publish_result(self, message: Rows | Failure | Refusal) -> None:
        topic = TOPICS.result(message.job, self.name)
        packet = Packet.of(RESULT, topic, message, survives=not isinstance(message, Refusal))
        if self.connected:
            self.up.append(packet)
        elif packet.survives:
            self.spool.append(packet)
        self.report_fill()

    def report_fill(self) -> None:
        full = len(self.up) >= OUTBOX_MESSAGES or (self.full and 2 * len(self.up) > OUTBOX_MESSAGES)
        if full != self.full:
            self.full = full
            self.tell(OutboxFilled(full))

    # Signals and telemetry

    def feel(self, **changes: Any) -> None:
        self.signals = msgspec.structs.replace(WILLING, **changes)
        self.sense()

    def sense(self) -> None:
        reason = self.reason(willing=self.session.reason is None)
        self.tell(Judged(reason, 25.0, 0.0))
        if reason is not None:
            assert not self.pipe, "the worker goes on though the car may not work"
        self.tell(Tick())
        if self.telemetry is not None:
            self.publish(VehicleChannel.BEAT, BEAT, Beat(self.epoch, BEAT_MS))
            delta = self.telemetry.delta(self.told(), self.now_ms)
            if delta is not None:
                self.publish(VehicleChannel.TELE, TELEMETRY, delta)

    def told(self) -> Signals:
        reason = self.session.reason
        refusal = "" if reason is None else reason.value
        return msgspec.structs.replace(self.signals, refusal=refusal, free_slots=self.session.free_slots)

    def tell_all(self) -> None:
        if self.telemetry is not None:
            self.publish(VehicleChannel.TELE, TELEMETRY, self.telemetry.snapshot(self.told(), self.now_ms))

    def tell_state(self, *, online: bool = True) -> None:
        self.publish(VehicleChannel.STATE, STATE, State(online, self.epoch, self.now_ms), retain=True)

    def tell_caps(self) -> None:
        version = 0 if self.policy is None else self.policy.version
        caps = Caps(self.epoch, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, SLOTS, version)
        self.publish(VehicleChannel.CAPS, CAPS, caps, retain=True)

    def publish(self, channel: VehicleChannel, kind: MessageKind[Any], message: Any, *, retain: bool = False) -> None:
        if self.connected:
            self.up.append(Packet.of(kind, TOPICS.vehicle(self.name, channel), message, retain=retain))

    # The link

    def connect(self) -> None:
        assert not self.connected
        self.epoch += 1
        self.world.broker.connect(self.name)
        self.born = False
        self.telemetry = TelemetryStream(self.epoch)
        self.tell_state()
        self.tell_caps()
        self.sense()
        self.tell_all()
        self.up.extend(self.spool)
        self.spool = []
        self.tell(Connected(self.epoch, self.max_bytes))
        self.report_fill()

    def broker_takes(self, count: int) -> None:
        for _ in range(min(count, len(self.up))):
            self.world.broker.take(self.up.popleft())
        self.report_fill()

    def cut(self, count: int, *, unheard: bool) -> None:
        """The link breaks when the broker has taken `count` messages; perhaps its acknowledgements were lost."""
        taken = list(self.up)[:count]
        for packet in taken:
            self.world.broker.take(packet)
        kept = self.up if unheard else list(self.up)[count:]
        self.spool += [packet for packet in kept if packet.survives]
        self.leave_link()
        will = Packet.of(
            STATE, TOPICS.vehicle(self.name, VehicleChannel.STATE), State(online=False, epoch=self.epoch), retain=True
        )
        self.world.broker.wills.append((self.name, will))

    def leave_link(self) -> None:
        self.up.clear()
        self.telemetry = None
        del self.world.broker.down[self.name]
        self.report_fill()

    def stop(self) -> None:
        """The agent ends in order."""
        self.tell(ShutDown())
        if self.connected:
            self.tell_state(online=False)
            self.broker_takes(len(self.up))
            self.leave_link()
        assert self.books.open == {}
        self.start()

    def kill(self, count: int) -> None:
        """The agent is killed: what was in memory is gone, but for what the broker has taken."""
        if self.connected:
            kept = self.spool
            self.cut(count, unheard=False)
            self.spool = kept
        self.start()

    def hear(self, packet: Packet) -> None:  # noqa: C901 - one case a message
        """Take a message of the coordinator, as the daemon does."""
        try:
            mail = self.mailbox.read(packet)
        except WireError as error:
            self.refused[error.fault.value] += 1
            refusal = self.mailbox.refusal_of(packet, error)
            if refusal is not None:
                self.publish_result(msgspec.structs.replace(refusal, epoch=self.epoch))
            return
        match mail:
            case State(online, epoch):
                assert epoch <= self.epoch
                if online and epoch == self.epoch:
                    self.born = True
                elif self.born:
                    self.tell_state()
            case PolicyOffered(policy):
                assert policy is not None
                if self.policy is None or policy.version > self.policy.version:
                    self.policy = policy
                    self.tell(PolicyChanged(policy))
                    self.sense()
                    self.tell_caps()
            case Rebirth():
                self.tell_state()
                self.tell_caps()
                self.tell_all()
            case Notice(fault):
                self.refused[f"notice {fault}"] += 1
            case _:
                if packet.topic == TOPICS.vehicle(self.name, VehicleChannel.TASK):
                    self.books.take(mail.task)
                self.tell(mail)

    def fail_upload(self, command: ByReference) -> None:
        """Its leases are given back as a whole, also those that had nothing left."""
        for chunk in {span.chunk for span in command.rows.spans}:
            self.books.open.setdefault((command.rows.job, chunk), set()).add(-1)
        self.tell(UploadFailed(command.rows, "full"))

    # The worker

    def compute(self, run: Run, compute_ms: float) -> Event:
        rows = run.inputs["x"]
        assert len(rows) == run.rows
        if self.broken:
            return BatchFailed("this computer is broken", by_row=False)
        if self.world.bad_values & set(rows[:, 0].tolist()):
            return BatchFailed("a bad row", by_row=True)
        y = computed(run.digest, rows)
        if self.lies is not None:
            y = y + LIES[self.lies](rows) * 1_000_000 * list(self.world.cars).index(self.name)
        return BatchRan({"y": y}, compute_ms, compute_ms)


class World:
    """The cell: a core on its ledger, the cars, the broker, and all that was ever asked of them."""

    def __init__(self, policy: CorePolicy, cars: Sequence[str]) -> None:
        self.policy = policy
        self.now_ms = 10_000_000
        self.clock_ms = 0  # how far the coordinator's clock is off
        self.ledger = SqliteLedger(Path(":memory:"))
        self.ledger.open()
        self.plain = PlainLedger()
        self.processes = 0
        self.core = self.new_core()
        self.ingest = Ingest("test", PACKET_BYTES)
        self.broker = Broker()
        self.happened: list[CoreEvent] = []  # inside the coordinator, for its next round
        self.sending: list[SendTask | SendControl | SendPolicy] = []
        self.granted: list[LeaseRecord] = []
        self.bad_values: set[int] = set()
        self.by_reference: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.asked: dict[tuple[str, int], None] = {}  # rows that the coordinator is to compute itself
        self.liars: set[str] = set()  # who has ever lied
        self.reached: set[str] = set()
        self.on_grant: Callable[[LeaseRecord], None] = lambda lease: None
        self.cars = {name: Car(name, self) for name in cars}

    @property
    def coordinator_ms(self) -> int:
        return self.now_ms + self.clock_ms

    def terms(self, job: str) -> Any:
        return self.plain.jobs[job].job.terms

    # The coordinator's round, as in `brain`

    def round(self, taken: Sequence[Packet] = (), *, dies: str = "") -> None:
        """Take messages and what happened inside. `dies`: before the commit, or after it and before anything else."""
        events = self._events(taken) + self.happened
        self.happened = []
        commands: list[CoreCommand] = []
        for event in events:
            commands += self.core.handle(event, self.coordinator_ms)
        assigned = self.core.assign(self.coordinator_ms)
        if dies == "before":
            self.restart()
            return
        writes = [command for command in commands if isinstance(command, LedgerWrite)]
        self.plain.keep(writes)
        self._check(writes)
        for command in assigned:
            if isinstance(command, GrantLease):
                self.on_grant(command.lease)
                self.plain.keep([command])
                self.granted.append(command.lease)
                writes.append(command)
        if writes:
            self.ledger.commit(writes)
        self._look_back([command.vehicle for command in commands if isinstance(command, LookBack)])
        if dies == "after":
            self.restart()
            return
        self.asked |= {(each.job, row): None for each in commands if isinstance(each, FindOut) for row in each.rows}
        self.sending += [each for each in commands + assigned if isinstance(each, SendTask | SendControl | SendPolicy)]
        self._assert_kept(events)
        for packet in taken:
            self.broker.inbox.remove(packet)

    def _events(self, taken: Sequence[Packet]) -> list[CoreEvent]:
        batch = self.ingest.sort(taken, self.coordinator_ms)
        events: list[CoreEvent] = [] if batch.telemetry is None else [batch.telemetry]
        events += [event for event, _ in batch.events]
        if batch.heard:
            events.append(VehiclesHeard(batch.heard, [(vehicle, beat) for vehicle, beat, _ in batch.beats]))
        for vehicle, rows, _ in batch.by_reference:
            assert rows.outputs_ref is not None
            try:
                outputs = encode_tensors(decode_bundle(self.blobs.get(rows.outputs_ref.digest, b"")))
                found = self.core.find(rows.job)
                if found is not None and found[0].terms.is_verified:
                    whole = msgspec.structs.replace(rows, outputs=outputs, outputs_ref=None)
                    events.append(outputs_event(vehicle, whole, outputs))
                else:
                    events.append(outputs_event(vehicle, rows, outputs))
            except WireError as error:
                events.append(RowsFailed(vehicle, Failure(rows.job, rows.epoch, rows.spans, str(error))))
        for rejection in batch.rejected:
            if rejection.vehicle is not None:
                notice = Notice(rejection.error.fault.value, rejection.packet.topic)
                self.broker.send(
                    rejection.vehicle,
                    Packet.of(CONTROL, TOPICS.vehicle(rejection.vehicle, VehicleChannel.CTL), notice),
                )
        return events

    def _check(self, writes: Iterable[LedgerWrite]) -> None:
        for write in writes:
            if isinstance(write, AddRows) and not write.rows.retracted:
                self._check_values(write.rows)
                self._check_was_free(write.rows)
            self._note(write)

    def _check_values(self, rows: AcceptedRows) -> None:
        """What is kept is what a direct computation gives, but where a liar's word may do."""
        kept = self.plain.jobs[rows.job]
        if rows.vehicle in self.liars and kept.job.terms.verification.rule != "quorum":
            return
        model, values = kept.job.model, self.outputs(rows)["y"]
        for piece in rows.pieces:
            given = values[piece.offset : piece.offset + piece.stop - piece.start]
            wanted = computed(model, inputs_of(rows.job, piece.start, piece.stop))
            assert given.tolist() == wanted.tolist(), "rows were made up"

    def _check_was_free(self, rows: AcceptedRows) -> None:
        """Rows of a held answer are shown when nothing of it waits any more, or the coordinator knows them."""
        if rows.answer is None or not (kept := self.plain.jobs[rows.job]).answers[rows.answer].held:
            return
        answer = kept.answers[rows.answer]
        if any(kept.checks.get(slot) for slot in kept.slots_of(answer)):
            for piece in rows.pieces:
                known = [REFEREE in kept.standing(row) for row in range(piece.start, piece.stop)]
                assert all(known), "a row was shown that should be held"

    def _note(self, write: LedgerWrite) -> None:
        """What examples come to, for Hypothesis's statistics."""
        match write:
            case AddAnswer(answer):
                self.reached |= {"an answer was held"} if answer.held else set()
                kept = self.plain.jobs[answer.job]
                if kept.job.terms.verification.rule == "adaptive" and kept.slots_of(answer)[-1] >= kept.job.rows:
                    self.reached.add("a car audited")
            case KeepChecks(_, _, Check.AUDIT):
                self.reached.add("an audit was asked for")
            case AddRows(rows) if rows.retracted:
                self.reached.add("rows were retracted")

    def _look_back(self, convicted: Iterable[str]) -> None:
        """The ledger's answer about jobs that have ended is the plain one."""
        for vehicle in convicted:
            self.reached.add("a car was convicted")
            for job in self.ledger.ended_jobs_answered(vehicle, 0):
                lone = self.plain.jobs[job].unconfirmed(vehicle, self.plain.conduct)
                assert self.ledger.rows_unconfirmed(job, vehicle) == lone
                self.reached |= {"rows of an ended job stood by a liar's word"} if lone else set()

    def outputs(self, rows: AcceptedRows) -> dict[str, Array]:
        if rows.answer is not None:
            return decode_payload(self.plain.jobs[rows.job].answers[rows.answer].payload)
        if rows.payload is not None:
            return decode_payload(rows.payload)
        assert rows.payload_ref is not None
        return decode_bundle(self.blobs[rows.payload_ref])

    def _assert_kept(self, events: Sequence[CoreEvent]) -> None:
        """Before a car's rows are acknowledged they are in the ledger, if they may be at all."""
        for event in events:
            if isinstance(event, RowsReceived) and event.rows.job in self.plain.running:
                kept = self.plain.jobs[event.rows.job]
                spans, granted = event.rows.spans, self.core.jobs[event.rows.job].granted
                rows = {row for span in spans for row in range(span.start, span.stop)}
                fits = output_fault(event.outputs, len(rows), self.core.models[kept.job.model]) is None
                if fits and all(granted[span.chunk].vehicle == event.vehicle for span in spans):
                    if kept.job.terms.is_verified:
                        self._assert_answered(kept, event, rows)
                    else:
                        assert rows <= {*kept.done, *kept.failed}

    def _assert_answered(self, kept: PlainJob, event: RowsReceived, slots: set[int]) -> None:
        """The same of a verified job: as somebody's answer, if they are still asked for and their car is believed."""
        answered = {slot for answer in kept.answers for slot in kept.slots_of(answer)}
        convicted_ms = self.core._conduct.convicted.get(event.vehicle, -1)
        granted = [self.core.jobs[kept.job.id].granted[span.chunk] for span in event.rows.spans]
        if any(lease.granted_ms <= convicted_ms for lease in granted):
            return
        if not any(event.vehicle in kept.standing(slot % kept.job.rows) for slot in slots):
            assert all(self.core.jobs[kept.job.id].settled[list(slots - answered)])

    def new_core(self) -> Core:
        """Of a new process, which has a secret of its own."""
        self.processes += 1
        return Core(self.policy, secret=b"%016d" % self.processes)

    def restored(self) -> Core:
        core = self.new_core()
        core.restore(self.ledger.load(), self.coordinator_ms)
        return core

    def restart(self) -> None:
        """The coordinator's process is gone, and a new one has come; the broker kept what it has not acknowledged."""
        if any(any(kept.checks.values()) for kept in self.plain.running.values()):
            self.reached.add("a restart with open checks")
        self.core = self.restored()
        self.ingest = Ingest("test", PACKET_BYTES)
        self.happened.clear()
        self.sending.clear()
        self.asked.clear()
        for channel in (VehicleChannel.STATE, VehicleChannel.CAPS):
            topics = [TOPICS.vehicle(car, channel) for car in self.cars]
            self.broker.inbox += [self.broker.retained[topic] for topic in topics if topic in self.broker.retained]

    # What it sends, as in `dispatch`

    def send(self, count: int, *, unsure: bool = False) -> None:
        """Carry out commands; `unsure`: the link broke, so that nobody knows whether the tasks were taken."""
        for _ in range(min(count, len(self.sending))):
            match self.sending.pop(0):
                case SendControl(vehicle, control):
                    topic = TOPICS.vehicle(vehicle, VehicleChannel.CTL)
                    self.broker.send(vehicle, Packet.of(CONTROL, topic, control))
                case SendPolicy(vehicle, policy):
                    topic = TOPICS.vehicle(vehicle, VehicleChannel.POLICY)
                    self.broker.send(vehicle, Packet.of(POLICY, topic, policy, retain=True))
                case SendTask() as command:
                    self._send_task(command, unsure=unsure)

    def _send_task(self, command: SendTask, *, unsure: bool) -> None:
        found, standing = self.core.find(command.job), self.core.standing(command.leases)
        if found is None or not standing:
            return
        job, model = found
        command = msgspec.structs.replace(command, leases=standing)
        parts = [[lease] for lease in standing] if job.id in self.by_reference else [list(standing)]
        for leases in parts:
            rows = [row_range(job, lease.start, lease.stop) for lease in leases]
            inputs = {"x": np.concatenate([inputs_of(job.id, *each) for each in rows])}
            if job.id in self.by_reference:
                data = encode_bundle(inputs)
                path = f"/v1/jobs/{job.id}/inputs/{leases[0].start}-{leases[0].stop}"
                ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data), path)
                self.blobs[ref.digest] = data
                task = _task(command, job, model, leases, inputs_ref=ref)
            else:
                task = _task(command, job, model, leases, inputs=encode_tensors(inputs))
            answer_to = TOPICS.result(job.id, command.vehicle)
            topic = TOPICS.vehicle(command.vehicle, VehicleChannel.TASK)
            heard = self.broker.send(command.vehicle, Packet.of(TASK, topic, task, response_topic=answer_to))
            if unsure or (not heard and self.broker.names_nobody):
                chunks = tuple(lease.chunk for lease in leases)
                self.happened.append(TaskUndelivered(command.vehicle, job.id, chunks))

    # Its own answers, as in `referee`

    def find_out(self, count: int) -> None:
        """The coordinator computes rows that it was asked for, the first first."""
        for job, row in list(self.asked)[:count]:
            del self.asked[job, row]
            inputs = inputs_of(job, row, row + 1)
            if self.bad_values & {int(inputs[0, 0])}:
                self.happened.append(RowsKnown(job, (row,), None, "a bad row"))
            else:
                y = computed(self.plain.jobs[job].job.model, inputs)
                self.happened.append(RowsKnown(job, (row,), msgspec.msgpack.encode(encode_tensors({"y": y}))))

    def trust(self, car: str, checks: int) -> None:
        """Of a car so many rows were found right before."""
        kept = self.core._conduct.passed(car, checks)
        writes = [command for command in kept if isinstance(command, LedgerWrite)]
        self.plain.keep(writes)
        self.ledger.commit(writes)

    # All goes well for a while

    def flow(self, pass_ms: int) -> None:
        """Time passes, and everything that is on its way arrives and is done."""
        self.now_ms += pass_ms
        for car in self.cars.values():
            car.sense()
            car.broker_takes(len(car.up))
        self.find_out(len(self.asked))
        self.happened.append(CoreTick())
        self.round(list(self.broker.inbox))
        self.send(len(self.sending))
        for car in self.cars.values():
            self.hear_all(car)
            self.work_all(car)

    def hear_all(self, car: Car) -> None:
        while self.broker.down.get(car.name):
            car.hear(self.broker.down[car.name].pop(0))

    def work_all(self, car: Car) -> None:
        while car.fetching or car.fetching_inputs or car.pipe or car.uploads:
            for ref in car.fetching[:1]:
                car.fetching.remove(ref)
                car.tell(ModelArrived(ref.digest))
            for number in list(car.fetching_inputs)[:1]:
                car.tell(InputsArrived(number, decode_bundle(self.blobs[car.fetching_inputs.pop(number).digest])))
            for order in list(car.pipe)[:1]:
                car.pipe.popleft()
                if isinstance(order, LoadModel):
                    car.tell(ModelLoaded(order.digest, MODELS[order.digest].batch_rows))
                else:
                    car.tell(car.compute(order, 5.0))
            for command in car.uploads[:1]:
                self.upload(car, command)

    def upload(self, car: Car, command: ByReference) -> None:
        """Store outputs in a blob, and send the rows that name it."""
        car.uploads.remove(command)
        data = encode_bundle(command.outputs)
        ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data), "/v1/blobs/outputs")
        self.blobs[ref.digest] = data
        car.publish_result(msgspec.structs.replace(command.rows, outputs_ref=ref))


def new_job(name: str, model: str, rows: int, terms: Any, created_ms: int) -> Job:
    return Job(name, "", model, "b" * 64, rows, 8, terms, created_ms)
