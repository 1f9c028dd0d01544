"""The agent put together: carries out what the session decides, and brings it what happens. Decides nothing itself."""

import asyncio
import contextlib
import logging
import platform
import time
from collections import Counter, deque
from collections.abc import Awaitable
from importlib import metadata
from io import BytesIO
from random import Random
from typing import Any, assert_never

import msgspec

from fleet_link import LinkError, OutboxFull, SpanSink, Tracer
from fleet_link import Message as LinkMessage
from fleet_link import Session as Link
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.codec import BEAT, CAPS, RESULT, STATE, TELEMETRY, MessageKind
from fleet_wire.errors import WireError
from fleet_wire.messages import Beat, BlobRef, Caps, CoordinatorState, Notice, Rebirth, Refusal, State, Task, Telemetry
from fleet_wire.signals import Signals, check_numbers
from fleet_wire.tensors import encode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel
from fleet_wire.trace import trace_of
from vehicle_agent.allotment import Allotment, allotted
from vehicle_agent.blobs import Blobs
from vehicle_agent.consent import Consent, utc_offset_ms
from vehicle_agent.errors import BlobUnavailable
from vehicle_agent.events import (
    BatchFailed,
    BatchRan,
    Command,
    Connected,
    Event,
    FetchInputs,
    FetchModel,
    InputsArrived,
    InputsUnavailable,
    Judged,
    KillWorker,
    LoadModel,
    ModelArrived,
    ModelUnavailable,
    OutboxFilled,
    PolicyChanged,
    Run,
    Send,
    ShutDown,
    TaskOffered,
    Tick,
    UploadFailed,
    WorkerDied,
)
from vehicle_agent.frames import Load, RunBatch
from vehicle_agent.inference import Inference
from vehicle_agent.link import EpochBehind, stay_connected
from vehicle_agent.mailbox import Mailbox, PolicyOffered
from vehicle_agent.models import ModelCache
from vehicle_agent.month_bytes import MonthBytes
from vehicle_agent.outbox import Outbox
from vehicle_agent.pace import PaceLimits
from vehicle_agent.policy import Level, Verdict, judge
from vehicle_agent.power import PowerMeter
from vehicle_agent.presence import EpochFile, TelemetryStream
from vehicle_agent.results import ByReference
from vehicle_agent.session import Session, SessionLimits
from vehicle_agent.settings import AgentSettings
from vehicle_agent.signals import SignalSource
from vehicle_agent.spool import Spool
from vehicle_agent.tracing import TaskTraces

__all__ = ["run_agent"]

_log = logging.getLogger(__name__)
_TICK_S = 0.02
_FETCHES_AT_ONCE = 4
_TOPIC_BYTES = 1024  # of a packet: topic, content type and the rest that is not payload
_MODELS_TOLD = 1024
_URGENT = ("refusal", "plugged", "moving", "opted_in")


async def run_agent(
    settings: AgentSettings,
    source: SignalSource,
    *,
    random: Random,
    counters: Counter[str] | None = None,
    spans: SpanSink | None = None,
) -> None:
    """Be a vehicle until cancelled; then give leases back, send what is ready and say goodbye.

    Raise IdentityTaken when another client connects under the same id. `counters` may be watched from outside.
    `spans` hears of what is done for traced tasks; whoever gives it closes it.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    counted: Counter[str] = Counter() if counters is None else counters
    spool = Spool.open(settings.data_dir / "outbox.sqlite", settings.spool_bytes, counted)
    blobs = Blobs(settings.http_url, random, counted)
    try:
        async with contextlib.AsyncExitStack() as ending:
            ending.callback(spool.close)
            ending.push_async_callback(blobs.close)
            async with asyncio.TaskGroup() as group:
                agent = _Agent(settings, source, group, spool, blobs, counted, Tracer(random, spans))
                ending.push_async_callback(agent.close)
                epochs = EpochFile(settings.data_dir / "epoch")
                group.create_task(agent.watch_signals(), name="signals")
                group.create_task(agent.tick(), name="ticks")
                group.create_task(stay_connected(settings, epochs, agent.visit, counted, random), name="link")
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors
        raise


class _Agent:
    def __init__(
        self,
        settings: AgentSettings,
        source: SignalSource,
        group: asyncio.TaskGroup,
        spool: Spool,
        blobs: Blobs,
        counters: Counter[str],
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._source = source
        self._group = group
        self._spool = spool
        self._blobs = blobs
        self._counters = counters
        self._topics = FleetTopics(settings.fleet)
        self._mailbox = Mailbox(settings.fleet, settings.vehicle, settings.max_packet_bytes)
        self._consent = Consent.open(settings.data_dir / "policy", counters)
        self._month_bytes = MonthBytes.open(settings.data_dir / "month_bytes", counters)
        self._bytes_counted = 0
        self._power = PowerMeter(settings.compute_power_w, settings.awake_power_w)
        self._session = Session(_session_limits(settings), self._consent.policy, counters=counters)
        self._traces = TaskTraces(tracer, settings.vehicle)
        self._outbox = Outbox(spool, counters, lambda full: self.handle(OutboxFilled(full)))
        loop = asyncio.get_running_loop()
        self._inference = Inference(
            group,
            self._allotment(),
            on_event=self.handle,
            must_stop=self._must_stop,
            on_kill=lambda: loop.call_soon_threadsafe(self._guard_killed),
            cgroup=None if settings.cgroup is None else settings.cgroup / f"worker-{settings.vehicle}",
        )
        models_dir = settings.models_dir or settings.data_dir / "models"
        self._models = ModelCache(models_dir, settings.vehicle, settings.models_bytes, blobs)
        self._fetches = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._events: deque[Event] = deque()
        self._handling = False
        self._busy = asyncio.Event()
        self._computing = False
        self._closing = False
        self._link: Link | None = None
        self._epoch = 0
        self._is_born = False
        self._caps: Caps | None = None
        self._telemetry: TelemetryStream | None = None
        self._last_words: Verdict | None = None
        self._signals = Signals()
        self._told = Signals()
        self._delta_ms = self._snapshot_ms = self._beat_ms = 0

    # Events and commands ---------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Bring the session an event and carry out what it wants, one event after the other."""
        self._events.append(event)
        if self._handling:  # a command has an effect at once, as when the outbox gets full
            return
        self._handling = True
        try:
            while self._events:
                event = self._events.popleft()
                self._trace(event)
                for command in self._session.handle(event, _now_ms()):
                    self._carry_out(command)
        finally:
            self._handling = False
        if self._session.working != self._computing:
            self._computing = self._session.working
            self._source.set_computing(self._inference.allotment.power_share if self._computing else 0.0)
        if self._session.busy:
            self._busy.set()

    def _trace(self, event: Event) -> None:
        match event:
            case BatchRan():
                self._traces.batch_ended(event.compute_ms, _now_ms())
            case BatchFailed():
                self._traces.batch_ended(0.0, _now_ms())
            case WorkerDied():
                self._traces.worker_gone()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(message):
                topic = self._topics.result(message.job, self._settings.vehicle)
                trace = self._traces.answered(message, _now_ms())
                self._outbox.put(
                    topic,
                    RESULT.encode(message),
                    # Leases end with the connection, so that a refusal means nothing on the next one.
                    outlives_link=not isinstance(message, Refusal),
                    properties=() if trace is None else trace.properties,
                )
            case Run(digest, rows, inputs, job, chunk):
                self._traces.batch_given(job, chunk, rows)
                self._inference.order(RunBatch(digest, rows, encode_tensors(inputs)))
            case LoadModel(digest, unload):
                self._inference.order(Load(digest, str(self._models.path(digest)), list(unload)))
            case KillWorker():
                self._traces.worker_gone()
                self._inference.kill()
            case FetchModel(ref):
                self._group.create_task(self._fetch_model(ref), name=f"model {ref.digest}")
            case FetchInputs(task, ref):
                self._group.create_task(self._fetch_inputs(task, ref), name=f"inputs {task}")
            case ByReference() if self._closing:
                self._counters["outputs_not_stored"] += 1  # the goodbye gives their leases back
            case ByReference():
                self._group.create_task(self._store_outputs(command), name=f"outputs of {command.rows.job}")
            case _:
                assert_never(command)

    async def tick(self) -> None:
        """Tell the session that time passes, often while it has something to do."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(_TICK_S)
            self.handle(Tick())
            if self._session.open_leases:
                self._tell_beat(_now_ms())
            if not self._session.busy:
                self._busy.clear()

    # Blobs -----------------------------------------------------------------------------------------------------------

    async def _fetch_model(self, ref: BlobRef) -> None:
        try:
            async with self._fetches:
                await self._models.obtain(ref)
        except (BlobUnavailable, OSError) as error:
            self._counters["model_unavailable"] += 1
            self.handle(ModelUnavailable(ref.digest, str(error)))
            return
        self.handle(ModelArrived(ref.digest))
        self._tell_caps()

    async def _fetch_inputs(self, task: int, ref: BlobRef) -> None:
        sink = BytesIO()
        try:
            async with self._fetches:
                await self._blobs.fetch(ref, sink)
            inputs = await asyncio.to_thread(decode_bundle, sink.getvalue())
        except (BlobUnavailable, WireError) as error:
            self._counters["inputs_unavailable"] += 1
            self.handle(InputsUnavailable(task, str(error)))
            return
        self.handle(InputsArrived(task, inputs))

    async def _store_outputs(self, command: ByReference) -> None:
        try:
            async with self._fetches:
                ref = await self._blobs.store(await asyncio.to_thread(encode_bundle, command.outputs))
        except BlobUnavailable as error:
            self._counters["outputs_not_stored"] += 1
            self.handle(UploadFailed(command.rows, str(error)))
            return
        self._carry_out(Send(msgspec.structs.replace(command.rows, outputs_ref=ref)))

    # Signals and telemetry -------------------------------------------------------------------------------------------

    async def watch_signals(self) -> None:
        """Read the signals at a steady pace and whenever they change suddenly."""
        while True:
            now_ms = _now_ms()
            self._sense(now_ms)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sample_s):
                    await self._source.changed(now_ms)

    def _sense(self, now_ms: int) -> None:
        signals = self._read(now_ms)
        signals.link_month_bytes = self._count_bytes(now_ms)
        self._power.learn(signals, self._inference.allotment.power_share)
        verdict = self._judge(signals, now_ms, willing=self._session.reason is None)
        self._tell_verdict(verdict)
        self.handle(Tick())
        signals.refusal = "" if verdict is None else verdict.reason.value
        signals.free_slots = self._session.free_slots
        self._signals = signals
        self._report(now_ms)

    def _judge(self, signals: Signals, now_ms: int, *, willing: bool) -> Verdict | None:
        policy = self._consent.policy
        drawn_w = self._power.compute_w * self._inference.allotment.power_share
        return judge(
            msgspec.structs.replace(signals, compute_power_w=drawn_w),
            policy,
            self._settings.limits,
            now_ms=now_ms,
            utc_offset_ms=0 if policy is None else utc_offset_ms(policy, now_ms),
            willing=willing,
        )

    def _tell_verdict(self, verdict: Verdict | None) -> None:
        reason, level = (None, Level.KILL) if verdict is None else (verdict.reason, verdict.level)
        compute_w = self._power.compute_w * self._inference.allotment.threads_share
        self.handle(Judged(reason, compute_w, self._power.awake_w, level))

    def _must_stop(self) -> bool:
        """Look at the car, in the guard's thread: it changes nothing but `_last_words` and counters."""
        now_ms = _now_ms()
        verdict = self._judge(self._read(now_ms), now_ms, willing=True)
        if verdict is None or verdict.level is not Level.KILL:
            return False
        self._last_words = verdict
        return True

    def _guard_killed(self) -> None:
        """The guard has killed the worker: what it saw counts, though all may be well again."""
        if self._closing:  # which has ended the worker, too
            return
        self._counters["killed_by_guard"] += 1
        self._tell_verdict(self._last_words)
        self._sense(_now_ms())

    def _allotment(self) -> Allotment:
        settings = self._settings
        maker = Allotment(settings.threads, settings.niceness, settings.memory_bytes)
        return allotted(maker, settings.compute_power_w, self._consent.policy)

    def _count_bytes(self, now_ms: int) -> int:
        moved = self._blobs.bytes_moved + (0 if self._link is None else self._link.bytes_moved)
        new, self._bytes_counted = moved - self._bytes_counted, moved
        return self._month_bytes.add(new, now_ms)

    def _read(self, now_ms: int) -> Signals:
        try:
            signals = msgspec.structs.replace(self._source.read(now_ms))
            check_numbers(signals)
        except Exception:  # noqa: BLE001
            # Whatever is wrong with a car's bus, not knowing the car's state must mean not working.
            self._counters["signals_unreadable"] += 1
            _log.warning("%s: the signals can't be read", self._settings.vehicle, exc_info=True)
            return Signals()
        return signals

    def _report(self, now_ms: int) -> None:
        """Send what the fleet should know by now."""
        if self._telemetry is None:
            return
        if now_ms - self._snapshot_ms >= self._settings.snapshot_s * 1000:
            self._tell_all(now_ms)
            return
        is_urgent = any(getattr(self._signals, name) != getattr(self._told, name) for name in _URGENT)
        if is_urgent or now_ms - self._delta_ms >= self._settings.telemetry_s * 1000:
            delta = self._telemetry.delta(self._signals, now_ms)
            self._delta_ms, self._told = now_ms, self._signals
            if delta is not None:
                self._tell_telemetry(delta)

    def _tell_all(self, now_ms: int) -> None:
        if self._telemetry is not None:
            self._delta_ms = self._snapshot_ms = now_ms
            self._told = self._signals
            self._tell_telemetry(self._telemetry.snapshot(self._signals, now_ms))

    def _tell_telemetry(self, document: Telemetry) -> None:
        self._tell(VehicleChannel.TELE, TELEMETRY, document, retain=False)

    def _tell_caps(self) -> None:
        threads, models = self._inference.allotment.threads, self._models.digests()
        caps = _caps(self._settings, self._epoch, self._consent.version, threads, models)
        if self._link is not None and caps != self._caps:
            self._caps = caps
            self._tell(VehicleChannel.CAPS, CAPS, caps, retain=True)

    def _tell_state(self) -> None:
        state = State(online=True, epoch=self._epoch, ts_ms=_now_ms())
        self._tell(VehicleChannel.STATE, STATE, state, retain=True)

    def _tell_beat(self, now_ms: int) -> None:
        every_ms = int(self._settings.beat_s * 1000)
        if abs(now_ms - self._beat_ms) >= every_ms:
            self._beat_ms = now_ms
            self._tell(VehicleChannel.BEAT, BEAT, Beat(self._epoch, every_ms), retain=False, qos=0)

    def _tell(
        self, channel: VehicleChannel, kind: MessageKind[Any], message: Any, *, retain: bool, qos: int = 1
    ) -> None:
        if self._link is None:
            return
        topic = self._topics.vehicle(self._settings.vehicle, channel)
        try:
            payload = kind.encode(message)
            self._link.publish_soon(topic, payload, qos=qos, retain=retain, content_type=kind.content_type)
        except OutboxFull:
            self._counters["telemetry_dropped"] += 1  # the gap in the sequence asks for a snapshot
        except LinkError:
            self._counters["untold"] += 1  # whoever receives on the link learns why

    # The link --------------------------------------------------------------------------------------------------------

    async def visit(self, link: Link, epoch: int) -> None:
        """Be present on one connection until it is lost. Raise LinkLost, LinkRefused or EpochBehind."""
        await link.subscribe(self._mailbox.filters)
        self._link, self._epoch, self._caps, self._is_born = link, epoch, None, False
        self._telemetry = TelemetryStream(epoch)
        self._tell_state()
        self._tell_caps()
        self._beat_ms = 0
        self._tell_beat(_now_ms())
        self._sense(_now_ms())
        self._tell_all(_now_ms())
        self._outbox.online(link)
        limit = min(self._settings.max_packet_bytes, link.server.max_packet_size)
        self.handle(Connected(epoch, limit - _TOPIC_BYTES))
        try:
            while True:
                messages = await link.receive()
                for message in messages:
                    self._received(message)
                link.acknowledge(messages)
        except (LinkError, EpochBehind):
            self._count_bytes(_now_ms())
            self._bytes_counted -= link.bytes_moved
            self._link = self._telemetry = None
            self._outbox.offline()
            raise

    def _received(self, message: LinkMessage) -> None:
        try:
            mail = self._mailbox.read(message)
        except WireError as error:
            self._counters[f"message_{error.fault.value}"] += 1
            refusal = self._mailbox.refusal_of(message, error)
            if refusal is not None:
                self._carry_out(Send(msgspec.structs.replace(refusal, epoch=self._epoch)))
            return
        match mail:
            case State(online, epoch):
                self._saw_own_state(epoch, online=online)
            case PolicyOffered(policy):
                if self._consent.take(policy):
                    self.handle(PolicyChanged(policy))  # what relied on the last one ends before the disk is waited for
                    self._inference.allotment = self._allotment()
                    self._consent.save()
                    self._sense(_now_ms())
                    self._tell_caps()
            case CoordinatorState(online, _, http_url):
                self._saw_coordinator(http_url, online=online)
            case Rebirth():
                self._caps = None
                self._tell_state()
                self._tell_caps()
                self._tell_all(_now_ms())
            case Notice(fault, topic, detail):
                self._counters[f"notice_{fault}"] += 1
                _log.warning("%s: the coordinator refused %s: %s (%s)", self._settings.vehicle, topic, detail, fault)
            case TaskOffered(task):
                self._note_trace(task, message)
                self.handle(mail)
            case _:
                self.handle(mail)

    def _note_trace(self, task: Task, message: LinkMessage) -> None:
        try:
            trace = trace_of(message.user_properties)
        except ValueError:
            self._counters["trace_malformed"] += 1
            return
        if trace is not None:
            self._traces.offered(task, trace, _now_ms())

    def _saw_own_state(self, epoch: int, *, online: bool) -> None:
        if epoch > self._epoch:
            raise EpochBehind(epoch)
        if online and epoch == self._epoch:
            self._is_born = True
        elif self._is_born:  # what came before our birth it has overwritten; what comes after it must not stand
            self._counters["state_overwritten"] += 1
            self._tell_state()

    def _saw_coordinator(self, http_url: str, *, online: bool) -> None:
        if not online:
            return
        if http_url and not self._settings.http_url:
            self._blobs.url = http_url.rstrip("/")
        self._outbox.retry()

    # The end ---------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Give everything back, send what is ready, say goodbye; each step within its time."""
        self._closing = True
        self.handle(ShutDown())
        link = self._link
        if link is not None:
            await self._within(self._outbox.flush())
            state = STATE.encode(State(online=False, epoch=self._epoch, ts_ms=_now_ms()))
            topic = self._topics.vehicle(self._settings.vehicle, VehicleChannel.STATE)
            await self._within(link.publish(topic, state, retain=True, content_type=STATE.content_type))
            await link.close()
        self._count_bytes(_now_ms())
        self._month_bytes.close()
        self._outbox.offline()
        await self._inference.close()

    async def _within(self, step: Awaitable[object]) -> None:
        with contextlib.suppress(TimeoutError, LinkError):
            async with asyncio.timeout(self._settings.shutdown_s):
                await step


def _session_limits(settings: AgentSettings) -> SessionLimits:
    return SessionLimits(
        slots=settings.slots,
        input_bytes=settings.input_bytes,
        worker_models=settings.worker_models,
        worker_idle_ms=int(settings.worker_idle_s * 1000),
        pace=PaceLimits(settings.first_batch_rows, settings.max_batch_rows, target_ms=settings.batch_target_ms),
    )


def _caps(settings: AgentSettings, epoch: int, consent_version: int, threads: int, models: list[str]) -> Caps:
    return Caps(
        epoch=epoch,
        agent_version=_version("idlewheel"),
        architecture=platform.machine()[:64],
        execution_provider="CPUExecutionProvider",
        runtime_version=_version("onnxruntime"),
        threads=threads,
        slots=settings.slots,
        consent_version=consent_version,
        region=settings.region,
        models=models[-_MODELS_TOLD:],
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)[:64]
    except metadata.PackageNotFoundError:
        return "unknown"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
