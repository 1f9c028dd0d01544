"""Some hundred vehicles in one process: real connections and the whole protocol, but one onnxruntime for all of them.

`python -m benchmarks.soak_agents PORT FLEET FIRST COUNT CHURN_S FOLDER`: each vehicle leaves in order, or is cut off
without a word, every CHURN_S seconds on average, and comes back as the agent does. Once a second it says what it
counted. What the broker acknowledged stands in books in FOLDER: see `benchmarks.soak_account`.
"""

import asyncio
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import msgspec
import numpy as np
import onnxruntime
import uvloop

from benchmarks.child import say
from benchmarks.fleet_load import READY
from benchmarks.soak_account import Book
from fleet_link import ConnectOptions, LinkError, LinkLost, LinkRefused, Message, Session, Will, connect
from fleet_wire.codec import BEAT, CAPS, CONTROL, COORDINATOR, POLICY, RESULT, STATE, TASK, TELEMETRY
from fleet_wire.messages import Beat, Cancel, Caps, Rebirth, Refusal, RefusalReason, Rows, Span, State, Task, Telemetry
from fleet_wire.signals import Signals
from fleet_wire.tensors import decode_tensors, encode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel
from vehicle_agent.link import reconnect_after_s

_HOST: Final = "127.0.0.1"
_TELEMETRY_S: Final = 15.0
_BEAT_MS: Final = 1_000
_STABLE_S: Final = 10.0
_COMPUTE_S: Final = (0.02, 0.4)
_AWAY_S: Final = (2.0, 20.0)
_SLOTS: Final = 16
_ANSWERS_S: Final = 10.0
_TAKEN: Final = 0  # PUBACK's code; 0x10 says that nobody was there to take it


class Models:
    """Models by digest, fetched once and loaded once for all vehicles."""

    def __init__(self) -> None:
        self.http_url = ""
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._lock = asyncio.Lock()

    async def run(self, task: Task) -> dict[str, Any]:
        """The outputs of all rows of a task."""
        async with self._lock:
            session = self._sessions.get(task.model.digest)
            if session is None:
                async with httpx.AsyncClient(timeout=60) as http:
                    data = (await http.get(self.http_url + task.model.path)).raise_for_status().content
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                session = self._sessions[task.model.digest] = onnxruntime.InferenceSession(data, options)
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, decode_tensors(task.inputs or []))
        return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}


class Vehicle:
    """One vehicle, over all its connections."""

    def __init__(
        self, number: int, port: int, topics: FleetTopics, models: Models, counted: Counter[str], book: Book
    ) -> None:
        self._number = number
        self._name = name = f"soak-{number}"
        self._port = port
        self._topics = topics
        self._models = models
        self._counted = counted
        self._book = book
        self._random = Random(name)
        self._epoch = time.time_ns() // 1_000_000
        self._version = self._seq = 0
        self._link: Session | None = None
        self._held: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._sent: set[asyncio.Future[int]] = set()

    async def live(self, churn_s: float) -> None:
        """Until cancelled."""
        attempt = 0
        while True:
            self._epoch += 1
            begun_s = time.monotonic()
            try:
                await self._visit(self._random.expovariate(1 / churn_s))
            except LinkLost:
                self._counted["links_lost"] += 1
            except LinkError:
                self._counted["connects_failed"] += 1
            self._link = None
            self._drop()
            attempt = 0 if time.monotonic() - begun_s > _STABLE_S else attempt
            await asyncio.sleep(reconnect_after_s(attempt, self._random))
            attempt += 1

    async def _visit(self, stays_s: float) -> None:
        will = Will(
            self._topic(VehicleChannel.STATE),
            STATE.encode(State(online=False, epoch=self._epoch)),
            content_type=STATE.content_type,
        )
        link = await connect(ConnectOptions(_HOST, self._port, self._name, will=will))
        await link.subscribe(
            [
                (self._topic(VehicleChannel.TASK), 1),
                (self._topic(VehicleChannel.CTL), 1),
                (self._topic(VehicleChannel.POLICY), 1),
                (self._topics.every_coordinator(), 1),
            ]
        )
        self._link, self._seq = link, 0
        self._counted["connected"] += 1
        self._introduce()
        speaking = asyncio.create_task(self._speak())
        try:
            async with asyncio.timeout(stays_s):
                while True:
                    messages = await link.receive()
                    for message in messages:
                        self._take(message)
                    link.acknowledge(messages)
        except TimeoutError:
            await self._leave(link)
        finally:
            speaking.cancel()
            self._drop()
        self._link = None
        await asyncio.sleep(self._random.uniform(*_AWAY_S))

    async def _leave(self, link: Session) -> None:
        for work in set(self._held.values()):
            work.cancel()
        await self.answered()  # of a result that is cut off on its way nobody knows whether it was refused or lost
        if self._random.random() < 0.5:
            self._counted["cut_off"] += 1
            link.abort()
            return
        self._counted["left"] += 1
        for job in {job for job, _ in self._held}:
            chunks = [chunk for held, chunk in self._held if held == job]
            self._tell(
                self._topics.result(job, self._name), RESULT, Refusal(job, self._epoch, RefusalReason.LEAVING, chunks)
            )
        self._say(VehicleChannel.STATE, STATE, State(online=False, epoch=self._epoch), retain=True)
        await link.close()

    async def answered(self) -> None:
        """Wait until the fate of every result is known that was sent."""
        if self._sent:
            await asyncio.wait(self._sent, timeout=_ANSWERS_S)

    def _take(self, message: Message) -> None:
        if message.content_type == TASK.content_type:
            task = TASK.decode(message.payload, message.content_type)
            work = asyncio.create_task(self._work(task))
            work.add_done_callback(self._worked)
            self._held.update({(task.job, lease.chunk): work for lease in task.leases})
        elif message.content_type == COORDINATOR.content_type:
            state = COORDINATOR.decode(message.payload, message.content_type)
            self._models.http_url = state.http_url if state.online else self._models.http_url
        elif message.content_type == POLICY.content_type and message.payload:
            self._version = POLICY.decode(message.payload, message.content_type).version
            self._say_caps()
        elif message.content_type == CONTROL.content_type:
            match CONTROL.decode(message.payload, message.content_type):
                case Cancel(job, chunks):
                    for chunk in chunks or [chunk for held, chunk in self._held if held == job]:
                        work = self._held.pop((job, chunk), None)
                        if work is not None and work not in self._held.values():
                            work.cancel()
                case Rebirth():
                    self._introduce()

    async def _work(self, task: Task) -> None:
        begun_s = time.perf_counter()
        await asyncio.sleep(self._random.uniform(*_COMPUTE_S))
        outputs = await self._models.run(task)
        link = self._link
        if link is None:
            return
        spans = [Span(lease.chunk, lease.start, lease.stop) for lease in task.leases]
        rows = Rows(task.job, self._epoch, spans, encode_tensors(outputs), None, (time.perf_counter() - begun_s) * 1000)
        try:
            await link.drain()
            answer = link.publish_soon(
                self._topics.result(task.job, self._name), RESULT.encode(rows), content_type=RESULT.content_type
            )
        except LinkLost:
            return
        self._sent.add(answer)
        answer.add_done_callback(partial(self._result_answered, task.job, spans, time.monotonic()))

    def _result_answered(self, job: str, spans: Sequence[Span], sent_s: float, answer: asyncio.Future[int]) -> None:
        self._sent.discard(answer)
        code = _code(answer)
        if code not in {_TAKEN, None}:
            self._counted["results_not_taken"] += 1
            return
        told_s = time.monotonic() if code == _TAKEN else math.nan
        for span in spans:
            self._book.result(job, self._number, span.chunk, span.stop - span.start, sent_s, told_s)
            if code == _TAKEN:
                self._counted["rows_acknowledged"] += span.stop - span.start
                self._held.pop((job, span.chunk), None)

    def _worked(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and work.exception() is not None:
            self._counted["tasks_failed"] += 1
            print(repr(work.exception()), file=sys.stderr)

    async def _speak(self) -> None:
        telemetry_s = time.monotonic() + self._random.uniform(0, _TELEMETRY_S)
        while True:
            await asyncio.sleep(_BEAT_MS / 1000)
            if self._held:
                self._say(VehicleChannel.BEAT, BEAT, Beat(self._epoch, _BEAT_MS), qos=0)
            if time.monotonic() >= telemetry_s:
                telemetry_s += _TELEMETRY_S
                charge = self._random.uniform(60, 90)
                self._say_signals(Signals(charge_percent=charge, free_slots=_SLOTS - len(self._held)), snapshot=False)

    def _introduce(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._say(VehicleChannel.STATE, STATE, State(online=True, epoch=self._epoch, ts_ms=now_ms), retain=True)
        self._say_caps()
        self._say(VehicleChannel.BEAT, BEAT, Beat(self._epoch, _BEAT_MS), qos=0)
        self._say_signals(_PARKED, snapshot=True)

    def _say_caps(self) -> None:
        caps = Caps(self._epoch, "soak", "x86_64", "CPUExecutionProvider", "1", 1, _SLOTS, self._version)
        self._say(VehicleChannel.CAPS, CAPS, caps, retain=True)

    def _say_signals(self, signals: Signals, *, snapshot: bool) -> None:
        document = Telemetry(self._epoch, self._seq, time.time_ns() // 1_000_000, snapshot, signals)
        self._seq += 1
        answer = self._say(VehicleChannel.TELE, TELEMETRY, document)
        if answer is not None:
            answer.add_done_callback(partial(self._document_answered, document.epoch, document.seq, time.monotonic()))

    def _document_answered(self, epoch: int, seq: int, sent_s: float, answer: asyncio.Future[int]) -> None:
        code = _code(answer)
        if code == _TAKEN:
            self._book.document(self._number, epoch, seq, sent_s, time.monotonic())
        elif code is not None:
            self._counted["documents_not_taken"] += 1

    def _say(
        self, channel: VehicleChannel, kind: Any, message: Any, *, retain: bool = False, qos: int = 1
    ) -> asyncio.Future[int] | None:
        return self._tell(self._topic(channel), kind, message, retain=retain, qos=qos)

    def _tell(
        self, topic: str, kind: Any, message: Any, *, retain: bool = False, qos: int = 1
    ) -> asyncio.Future[int] | None:
        """Publish, or count that it can't be; the answer is silent about its error."""
        if self._link is not None:
            try:
                return self._link.publish_soon(
                    topic, kind.encode(message), qos=qos, retain=retain, content_type=kind.content_type
                )
            except LinkError:
                self._counted["not_said"] += 1
        return None

    def _topic(self, channel: VehicleChannel) -> str:
        return self._topics.vehicle(self._name, channel)

    def _drop(self) -> None:
        for work in set(self._held.values()):
            work.cancel()
        self._held.clear()

    @property
    def is_connected(self) -> bool:
        return self._link is not None


def _code(answer: asyncio.Future[int]) -> int | None:
    """What the broker answered; None when nobody knows whether it took the message."""
    if answer.cancelled():
        return None
    error = answer.exception()
    if error is None:
        return answer.result()
    return error.reason_code if isinstance(error, LinkRefused) else None


_PARKED: Final = msgspec.structs.replace(READY, free_slots=_SLOTS)


async def run(port: int, fleet: str, first: int, count: int, churn_s: float, folder: Path) -> None:
    counted: Counter[str] = Counter()
    topics, models, book = FleetTopics(fleet), Models(), Book(folder, f"soak-{first}")
    vehicles = [Vehicle(number, port, topics, models, counted, book) for number in range(first, first + count)]
    living = [asyncio.create_task(vehicle.live(churn_s)) for vehicle in vehicles]
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    over = asyncio.create_task(reader.read())  # ends with whoever started us
    while not over.done():
        say(online=sum(vehicle.is_connected for vehicle in vehicles), counted=counted)
        await asyncio.wait([over], timeout=1.0)
        for task in living:
            if task.done():
                task.result()
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)
    await asyncio.gather(*(vehicle.answered() for vehicle in vehicles))
    book.close()


def main() -> None:
    port, fleet, first, count, churn_s, folder = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(int(port), fleet, int(first), int(count), float(churn_s), Path(folder)))


if __name__ == "__main__":
    main()
