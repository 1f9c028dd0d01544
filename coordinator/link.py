"""The coordinator's side of the broker: connects, subscribes, sorts what comes, and acknowledges what is kept.

Telemetry goes to the store and the fleet view in batches; everything else goes to the brain. A message is acknowledged
when what it says is durable, and never before.
"""

import asyncio
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TypeVar

import msgspec

from coordinator.brain import Brain, wall_clock_ms
from coordinator.delays import Delay
from coordinator.dispatch import Dispatch
from coordinator.errors import ResourceMissing, StoreUnavailable
from coordinator.events import (
    Event,
    PlugHistory,
    RowsFailed,
    RowsReceived,
    TaskRefused,
    TelemetryBatch,
    VehiclesHeard,
    VehiclesRemembered,
)
from coordinator.ingest import Ingest, Rejection, outputs_event
from coordinator.ports import BlobStore, TelemetryStore
from fleet_link import ConnectOptions, LinkError, LinkLost, Message, Session, Tracer, Will, backoff_s, connect
from fleet_wire.bundle import decode_bundle
from fleet_wire.codec import CONTROL, COORDINATOR
from fleet_wire.errors import WireError
from fleet_wire.messages import CoordinatorState, Failure, Notice, Refusal, RefusalReason, Rows
from fleet_wire.tensors import encode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel
from fleet_wire.trace import TraceContext, trace_of

__all__ = ["Announcement", "IdentityTaken", "Link", "TelemetryWriter"]

_WAITING_BATCHES = 8
_ASK_AGAIN_S = 5.0
_HELD_BACK_S = 0.3
_SETTLES_MS = 1_000  # between the time that a document is given and its place in the queue
_log = logging.getLogger(__name__)
T = TypeVar("T")


class IdentityTaken(Exception):
    """Ours: another coordinator connected with this one's client id; going on would throw it out in turn."""


class TelemetryWriter:
    """Writes batches to the store, as many at once as wait; `kept` is called when they are durable.

    Reading and maintenance, which may take minutes, have a thread of their own and hold no telemetry back.
    """

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="telemetry")
        self._asking = asyncio.Lock()
        self._queue: asyncio.Queue[tuple[TelemetryBatch, Callable[[], None]]] = asyncio.Queue(_WAITING_BATCHES)
        self._waiting_since: deque[float] = deque()

    async def open(self) -> None:
        """Open the store. Raises StoreUnavailable."""
        await self._in_thread(self._store.open)

    async def remember(self, tell: Callable[[VehiclesRemembered], None]) -> None:
        """Tell once which vehicles the store knows and what they said last, as soon as it can be asked."""
        while True:
            try:
                latest = await self._aside(self._store.latest)
            except StoreUnavailable as error:
                _log.warning("the vehicles of before are not known yet: %s", error)
                await asyncio.sleep(_ASK_AGAIN_S)
            else:
                return tell(VehiclesRemembered(latest))

    async def maintain(self, every_s: float) -> None:
        """Have the store roll up and forget, until cancelled. What fails waits for the next time.

        What the store has not kept yet was received after the time that it is told, so that it rolls up whole hours.
        """
        while True:
            try:
                await self._aside(self._store.maintain, wall_clock_ms() - int(self.lag_ms) - _SETTLES_MS)
            except StoreUnavailable as error:
                _log.warning("telemetry was not rolled up: %s", error)
            await asyncio.sleep(every_s)

    async def plug_history(self, since_ms: int) -> PlugHistory:
        """When vehicles were plugged in since `since_ms`, as the store knows."""
        return await self._aside(self._store.plug_history, since_ms)

    async def close(self) -> None:
        """Close the store after the write that is under way; what is being asked is given up."""
        self._store.give_up()
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    async def put(self, batch: TelemetryBatch, kept: Callable[[], None]) -> None:
        """Queue a batch; waits while too many wait, which holds the broker back."""
        self._waiting_since.append(time.monotonic())
        await self._queue.put((batch, kept))

    @property
    def lag_ms(self) -> float:
        """How long the oldest batch has waited that is not kept yet; 0 when there is none."""
        return (time.monotonic() - self._waiting_since[0]) * 1000 if self._waiting_since else 0.0

    async def run(self) -> None:
        """Write until cancelled. A failing store ends the process: nothing was acknowledged that isn't kept."""
        while True:
            waiting = [await self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            await self._in_thread(self._store.append, [batch for batch, _ in waiting])
            for _, kept in waiting:
                self._waiting_since.popleft()
                kept()

    async def _in_thread(self, call: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _aside(self, call: Callable[..., T], *arguments: object) -> T:
        """Ask the store one thing at a time, in a thread that neither telemetry nor the process's end waits for."""
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()

        def ask() -> None:
            try:
                answer.set_result(call(*arguments))
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                answer.set_exception(error)

        async with self._asking:
            threading.Thread(target=ask, name="telemetry-asking", daemon=True).start()
            return await asyncio.wrap_future(answer)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What vehicles are told of this coordinator."""

    coordinator: str
    http_url: str


class Link:
    """One connection after another to the broker, for as long as the daemon runs."""

    def __init__(
        self,
        options: ConnectOptions,
        topics: FleetTopics,
        announcement: Announcement,
        ingest: Ingest,
        brain: Brain,
        telemetry: TelemetryWriter,
        blobs: BlobStore,
        dispatch: Dispatch,
        counters: Counter[str],
        rng: random.Random,
        tracer: Tracer,
    ) -> None:
        self._options = options
        self._topics = topics
        self._announcement = announcement
        self._ingest = ingest
        self._brain = brain
        self._telemetry = telemetry
        self._blobs = blobs
        self._dispatch = dispatch
        self._counters = counters
        self._rng = rng
        self._tracer = tracer
        self.connected = asyncio.Event()
        self._taking_since_s = inf
        self.telemetry_waits = Delay()
        self.message_waits = Delay()

    def listens(self) -> bool:
        """Whether what cars say gets here: there is a connection, and nothing is held back for long."""
        return self.connected.is_set() and time.monotonic() - self._taking_since_s < _HELD_BACK_S

    async def run(self) -> None:
        """Stay connected until cancelled. Raises IdentityTaken."""
        attempt = 0
        while True:
            try:
                session = await connect(self._with_will())
                attempt = 0
                await self._serve(session)
            except LinkLost as lost:
                if lost.taken_over:
                    raise IdentityTaken(
                        f"another coordinator has connected to the broker as {self._options.client_id!r}: this one "
                        "ends, instead of throwing it out in turn"
                    ) from None
                self._counters["link_lost"] += 1
            except LinkError:
                self._counters["connect_failed"] += 1
            await asyncio.sleep(backoff_s(attempt, self._rng))
            attempt += 1

    async def _serve(self, session: Session) -> None:
        # While we are introduced we listen: a broker that kept our session first sends what it kept, and when that is
        # more than the inbox holds, the answer to our subscription stands behind it.
        introduction = asyncio.create_task(self._introduce(session), name="introduction")
        try:
            while True:
                messages = await session.receive()
                self._taking_since_s = time.monotonic()
                await self._take(session, messages)
                await self._brain.room()
                self._taking_since_s = inf
        finally:
            introduction.cancel()
            self._taking_since_s = inf
            self.connected.clear()
            self._dispatch.session = None
            await session.close(with_will=True)

    async def _introduce(self, session: Session) -> None:
        """Subscribe and say that we are here; a broker that refuses is left."""
        try:
            await session.subscribe(
                [
                    (self._topics.every_result(), 1),
                    (self._topics.every_vehicle(VehicleChannel.STATE), 1),
                    (self._topics.every_vehicle(VehicleChannel.CAPS), 1),
                    (self._topics.every_vehicle(VehicleChannel.TELE), 1),
                    (self._topics.every_vehicle(VehicleChannel.BEAT), 0),
                ]
            )
            await session.publish(*self._presence(online=True), retain=True, content_type=COORDINATOR.content_type)
        except LinkLost:
            return  # which is told to whoever listens, too
        except LinkError:
            self._counters["connect_failed"] += 1
            session.abort()
        else:
            self._dispatch.session = session
            self.connected.set()

    async def _take(self, session: Session, messages: Sequence[Message]) -> None:
        batch = self._ingest.sort(messages, wall_clock_ms())
        if batch.telemetry is not None:
            self._brain.put([batch.telemetry])
            await self._telemetry.put(
                batch.telemetry, self._acknowledging(session, batch.telemetry_packets, self.telemetry_waits)
            )
        if batch.events:
            packets = [packet for _, packet in batch.events]
            acknowledge = self._acknowledging(session, packets, self.message_waits)
            self._brain.put([event for event, _ in batch.events], acknowledge)
            self._trace(batch.events)
        if batch.heard:
            self._brain.put([VehiclesHeard(batch.heard, [(vehicle, beat) for vehicle, beat, _ in batch.beats])])
        for vehicle, rows, packet in batch.by_reference:
            await self._take_reference(session, vehicle, rows, packet)
        for rejection in batch.rejected:
            self._reject(session, rejection)
        session.acknowledge([rejection.packet for rejection in batch.rejected])
        session.acknowledge([packet for *_, packet in batch.beats])

    async def _take_reference(self, session: Session, vehicle: str, rows: Rows, packet: Message) -> None:
        """Rows whose outputs lie in a blob that the vehicle has uploaded: read here, so that they can be checked."""
        assert rows.outputs_ref is not None
        acknowledge = self._acknowledging(session, [packet], self.message_waits)
        digest = rows.outputs_ref.digest
        try:
            outputs = encode_tensors(decode_bundle(await self._blobs.whole(digest)))
            found = self._brain.core.find(rows.job)
            if found is not None and found[0].terms.is_verified:  # kept whole until they are verified
                rows = msgspec.structs.replace(rows, outputs=outputs, outputs_ref=None)
            event: Event = outputs_event(vehicle, rows, outputs)
        except (ResourceMissing, WireError) as error:
            self._counters["result_blob_unusable"] += 1
            event = RowsFailed(vehicle, Failure(rows.job, rows.epoch, rows.spans, f"outputs_ref: {error}"))
        except StoreUnavailable as error:  # not the vehicle's fault: as if it had given these leases back
            self._counters["result_blob_unread"] += 1
            chunks = list(dict.fromkeys(span.chunk for span in rows.spans))
            event = TaskRefused(vehicle, Refusal(rows.job, rows.epoch, RefusalReason.BUSY, chunks, error.detail))
        self._brain.put([event], acknowledge)
        self._trace([(event, packet)])

    def _acknowledging(self, session: Session, packets: Sequence[Message], waits: Delay) -> Callable[[], None]:
        """What acknowledges these packets, and notes how long they had to wait for it from now on."""
        taken = time.monotonic()

        def acknowledge() -> None:
            session.acknowledge(packets)
            waits.add(len(packets), (time.monotonic() - taken) * 1000)

        return acknowledge

    def _trace(self, taken: Sequence[tuple[Event, Message]]) -> None:
        """Let a span of each result end when what was put before this is kept."""
        begun_ms = wall_clock_ms()
        accepted: list[tuple[RowsReceived, TraceContext]] = []
        for event, packet in taken:
            try:
                sent = trace_of(packet.user_properties)
            except ValueError:
                self._counters["trace_malformed"] += 1
                continue
            if sent is not None and isinstance(event, RowsReceived) and self._tracer.sink is not None:
                accepted.append((event, sent))
        if accepted:
            self._brain.put([], partial(self._kept, accepted, begun_ms))

    def _kept(self, accepted: Sequence[tuple[RowsReceived, TraceContext]], begun_ms: int) -> None:
        now_ms = wall_clock_ms()
        for event, sent in accepted:
            span = self._tracer.begin(sent)
            self._tracer.end("accept", span, sent, begun_ms, now_ms, job=event.rows.job, vehicle=event.vehicle)

    def _reject(self, session: Session, rejection: Rejection[Message]) -> None:
        """Tell the sender, when it is known, so that nothing is dropped in silence; once, and not for its presence."""
        if rejection.vehicle is None or rejection.packet.retain:
            return
        notice = Notice(rejection.error.fault.value, rejection.packet.topic, rejection.error.detail[:512])
        try:
            session.publish_soon(
                self._topics.vehicle(rejection.vehicle, VehicleChannel.CTL),
                CONTROL.encode(notice),
                content_type=CONTROL.content_type,
                expiry_s=60,
            ).add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        except LinkError:
            self._counters["notice_undelivered"] += 1

    def _with_will(self) -> ConnectOptions:
        topic, payload = self._presence(online=False)
        return replace(self._options, will=Will(topic, payload, content_type=COORDINATOR.content_type))

    def _presence(self, *, online: bool) -> tuple[str, bytes]:
        state = CoordinatorState(online, 0, self._announcement.http_url, wall_clock_ms())
        return self._topics.coordinator(self._announcement.coordinator), COORDINATOR.encode(state)
