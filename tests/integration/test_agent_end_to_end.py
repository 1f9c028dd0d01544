"""A whole agent on a real broker, with a coordinator played by the test: births, leases, rows, departures, restarts."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from fleet_link import ConnectOptions, LinkLost, connect
from fleet_link import Session as Link
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.codec import CAPS, CONTROL, COORDINATOR, POLICY, RESULT, STATE, TASK, TELEMETRY
from fleet_wire.messages import (
    BlobRef,
    Cancel,
    Caps,
    CoordinatorState,
    Failure,
    Lease,
    Rebirth,
    Refusal,
    RefusalReason,
    Rows,
    Span,
    State,
    Task,
    Telemetry,
)
from fleet_wire.policy import OwnerPolicy
from fleet_wire.signals import Signals
from fleet_wire.tensors import decode_tensors, encode_tensors
from fleet_wire.topics import FleetTopics, VehicleChannel
from idlewheel.brokers import Broker
from tests.integration.blob_server import BlobServer, serve_blobs
from tests.integration.small_models import digest_of, doubling, endless, swelling
from vehicle_agent.consent import Consent
from vehicle_agent.daemon import run_agent
from vehicle_agent.errors import IdentityTaken
from vehicle_agent.link import stay_connected
from vehicle_agent.presence import EpochFile
from vehicle_agent.settings import AgentSettings

TOPICS = FleetTopics("test")
DEADLINE_S = 60.0
AGREED = OwnerPolicy(version=3, owner="ada", purposes=["general"])
REVOKED = OwnerPolicy(version=4, owner="ada", purposes=[], revoked=True)


class Car:
    """A car whose signals the test sets."""

    def __init__(self) -> None:
        self.signals = Signals(
            moving=False,
            plugged=True,
            charge_percent=80.0,
            battery_temperature_c=20.0,
            cabin_temperature_c=20.0,
            compute_temperature_c=30.0,
            link_metered=False,
            opted_in=True,
            update_pending=False,
            camp_mode=False,
            sentry_mode=False,
        )
        self.computing: list[float] = []
        self._changed = asyncio.Event()

    def read(self, now_ms: int) -> Signals:
        return self.signals

    async def changed(self, now_ms: int) -> None:
        await self._changed.wait()
        self._changed.clear()

    def set_computing(self, share: float) -> None:
        self.computing.append(share)

    def set(self, **signals: Any) -> None:
        for name, value in signals.items():
            setattr(self.signals, name, value)
        self._changed.set()


class Coordinator:
    """The other side, by hand: it keeps all that it hears."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.heard: list[tuple[str, Any]] = []
        self._arrived = asyncio.Event()

    async def listen(self) -> None:
        kinds = {"state": STATE, "caps": CAPS, "tele": TELEMETRY}
        while True:
            messages = await self.link.receive()
            for message in messages:
                kind = kinds.get(message.topic.rsplit("/", 1)[1], RESULT)
                self.heard.append((message.topic, kind.decode(message.payload, message.content_type)))
            self.link.acknowledge(messages)
            self._arrived.set()

    def of(self, kind: type) -> list[Any]:
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    async def send(self, channel: VehicleChannel, kind: Any, message: Any) -> None:
        topic = TOPICS.vehicle("car-1", channel)
        await self.link.publish(topic, kind.encode(message), content_type=kind.content_type)

    def outputs(self, job: str) -> dict[int, np.ndarray]:
        rows: dict[int, np.ndarray] = {}
        for message in self.of(Rows):
            if message.job != job or message.outputs is None:
                continue
            values = iter(decode_tensors(message.outputs)["y"])
            for span in message.spans:
                for row in range(span.start, span.stop):
                    assert row not in rows
                    rows[row] = next(values)
            assert next(values, None) is None
        return rows


@pytest.fixture
def blobs() -> Iterator[BlobServer]:
    with serve_blobs() as server:
        yield server


@pytest.fixture
async def coordinator(broker: Broker, blobs: BlobServer) -> AsyncIterator[Coordinator]:
    link = await connect(ConnectOptions(broker.host, broker.port, "coordinator"))
    side = Coordinator(link)
    await link.subscribe([(TOPICS.every_vehicle(VehicleChannel(name)), 1) for name in ("state", "caps", "tele")])
    await link.subscribe([(TOPICS.every_result(), 1)])
    state = CoordinatorState(online=True, epoch=1, http_url=blobs.url)
    payload = COORDINATOR.encode(state)
    await link.publish(TOPICS.coordinator("c"), payload, retain=True, content_type=COORDINATOR.content_type)
    listening = asyncio.create_task(side.listen())
    yield side
    listening.cancel()
    await link.close()


@contextlib.asynccontextmanager
async def running(settings: AgentSettings, car: Car, counters: Counter[str]) -> AsyncIterator[asyncio.Task[None]]:
    agent = asyncio.create_task(run_agent(settings, car, random=random.Random(1), counters=counters))
    try:
        yield agent
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> AgentSettings:
    """Of a car whose owner has agreed."""
    (tmp_path / "car").mkdir()
    consent = Consent.open(tmp_path / "car" / "policy", Counter())
    consent.take(AGREED)
    consent.save()
    return AgentSettings(
        fleet="test", vehicle="car-1", data_dir=tmp_path / "car", broker_port=broker.port, threads=1, sample_s=0.2
    )


def model_ref(blobs: BlobServer, path: Path) -> BlobRef:
    digest = digest_of(path)
    blobs.blobs[f"/v1/blobs/{digest}"] = path.read_bytes()
    return BlobRef(digest, path.stat().st_size, f"/v1/blobs/{digest}")


def task_of(model: BlobRef, leases: list[Lease], **fields: Any) -> Task:
    rows = np.concatenate([np.arange(lease.start, lease.stop) for lease in leases])
    given = {
        "job": "job-1",
        "epoch": 1,
        "model": model,
        "deadline_ms": time.time_ns() // 1_000_000 + 60_000,
        "consent_version": AGREED.version,
        "purpose": "general",
        "leases": leases,
        "inputs": encode_tensors({"x": np.repeat(rows[:, None], 3, axis=1).astype(np.float32)}),
    }
    return Task(**(given | fields))


async def test_a_car_is_born_computes_its_leases_and_says_goodbye(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    car, counters = Car(), Counter[str]()
    async with running(settings, car, counters):
        await coordinator.until(lambda: any(each.snapshot for each in coordinator.of(Telemetry)))
        assert [State(True, 1, each.ts_ms) for each in coordinator.of(State)] == coordinator.of(State)
        leases = [Lease(chunk, 10 * chunk, 10 * chunk + 7) for chunk in range(30)]
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, leases))
        wanted = {row for lease in leases for row in range(lease.start, lease.stop)}
        await coordinator.until(lambda: coordinator.outputs("job-1").keys() == wanted)
        assert all((values == 2 * row).all() for row, values in coordinator.outputs("job-1").items())
        await coordinator.until(lambda: any(model.digest in caps.models for caps in coordinator.of(Caps)))
        assert car.computing[:1] == [True]
    await coordinator.until(lambda: not coordinator.of(State)[-1].online)
    assert coordinator.of(State)[-1].epoch == 1
    assert not coordinator.of(Refusal)


async def test_unplugging_stops_the_work_at_once_and_gives_the_leases_back(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    blobs.go_on.clear()  # so that the leases stay open
    car, counters = Car(), Counter[str]()
    async with running(settings, car, counters):
        await coordinator.until(lambda: len(coordinator.heard) >= 3)
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(4, 0, 5), Lease(9, 5, 6)]))
        await coordinator.until(lambda: any(each.signals.free_slots == 1022 for each in coordinator.of(Telemetry)))
        car.set(plugged=False)
        await coordinator.until(lambda: bool(coordinator.of(Refusal)))
        assert coordinator.of(Refusal) == [Refusal("job-1", 1, RefusalReason.LEAVING, [4, 9], "not_plugged_in")]
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(10, 0, 1)]))
        await coordinator.until(lambda: len(coordinator.of(Refusal)) == 2)
        assert coordinator.of(Refusal)[1] == Refusal("job-1", 1, RefusalReason.INELIGIBLE, [10])
        told = [each.signals.refusal for each in coordinator.of(Telemetry)]
        assert "not_plugged_in" in told


async def test_revoking_stops_the_work_at_once_and_holds_after_a_restart(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    blobs.go_on.clear()  # so that the leases stay open
    car, counters = Car(), Counter[str]()
    topic = TOPICS.vehicle("car-1", VehicleChannel.POLICY)
    (settings.data_dir / "policy").unlink()
    await coordinator.link.publish(topic, POLICY.encode(AGREED), retain=True, content_type=POLICY.content_type)
    async with running(settings, car, counters):
        await coordinator.until(lambda: any(each.consent_version == 3 for each in coordinator.of(Caps)))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(1, 0, 1)]))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(2, 1, 2)], consent_version=2))
        research = task_of(model, [Lease(3, 2, 3)], purpose="research")
        await coordinator.send(VehicleChannel.TASK, TASK, research)
        await coordinator.until(lambda: len(coordinator.of(Refusal)) == 2)
        await coordinator.send(VehicleChannel.POLICY, POLICY, REVOKED)
        await coordinator.until(lambda: coordinator.of(Caps)[-1].consent_version == 4)
        await coordinator.until(lambda: len(coordinator.of(Refusal)) == 3)
        told = [(each.reason, each.chunks) for each in coordinator.of(Refusal)]
        assert told == [("consent_missing", [2]), ("purpose_not_agreed", [3]), ("consent_missing", [1])]
        await coordinator.until(lambda: coordinator.of(Telemetry)[-1].signals.refusal == "consent_revoked")
    coordinator.heard.clear()
    async with running(settings, car, counters):
        await coordinator.until(lambda: any(each.snapshot for each in coordinator.of(Telemetry)))
        await coordinator.send(VehicleChannel.CTL, CONTROL, Rebirth())
        await coordinator.until(lambda: len(coordinator.of(Caps)) == 2)
        assert {each.consent_version for each in coordinator.of(Caps)} == {4}
        assert counters["policy_outdated"] == 1  # the broker still had the first one
        assert coordinator.of(Telemetry)[-1].signals.refusal == "consent_revoked"


async def test_a_policy_that_cannot_be_applied_changes_nothing_and_is_counted(
    coordinator: Coordinator, settings: AgentSettings
) -> None:
    counters = Counter[str]()
    topic = TOPICS.vehicle("car-1", VehicleChannel.POLICY)
    (settings.data_dir / "policy").unlink()
    async with running(settings, Car(), counters) as agent:
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        assert coordinator.of(Telemetry)[0].signals.refusal == "consent_missing"
        await coordinator.send(VehicleChannel.POLICY, POLICY, AGREED)
        await coordinator.link.publish(topic, b"\xc1", content_type=POLICY.content_type)
        await coordinator.link.publish(topic, POLICY.encode(REVOKED), content_type=TASK.content_type)
        nothing_agreed = OwnerPolicy(version=9, owner="ada", purposes=[])
        elsewhere = OwnerPolicy(version=9, owner="ada", purposes=["general"], timezone="Moon/Tycho")
        older = OwnerPolicy(version=2, owner="ada", purposes=["general"])
        for policy in (nothing_agreed, elsewhere, older):
            await coordinator.send(VehicleChannel.POLICY, POLICY, policy)
        async with asyncio.timeout(DEADLINE_S):
            while counters["policy_outdated"] == 0:  # the last of them
                assert not agent.done()
                await asyncio.sleep(0.02)
        assert {each.consent_version for each in coordinator.of(Caps)} == {0, 3}
        assert (counters["message_malformed"], counters["message_wrong_content_type"]) == (1, 1)
        assert (counters["policy_refused"], counters["policy_outdated"]) == (2, 1)
        await coordinator.link.publish(topic, b"", retain=True)
        await coordinator.until(lambda: coordinator.of(Caps)[-1].consent_version == 0)


async def test_the_bytes_of_the_month_are_told_and_outlive_the_agent(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    rows = np.zeros((3, 600_000), dtype=np.float32)
    bundle = encode_bundle({"x": rows})
    (tmp_path / "inputs").write_bytes(bundle)
    blobs.blobs["/v1/jobs/job-1/inputs/0-3"] = bundle
    ref = BlobRef(digest_of(tmp_path / "inputs"), len(bundle), "/v1/jobs/job-1/inputs/0-3")
    async with running(settings, Car(), Counter()):
        await coordinator.until(lambda: len(coordinator.heard) >= 3)
        assert 0 < coordinator.of(Telemetry)[0].signals.link_month_bytes < 10_000
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 3)], inputs=None, inputs_ref=ref))
        await coordinator.until(
            lambda: any((each.signals.link_month_bytes or 0) > len(bundle) for each in coordinator.of(Telemetry))
        )
    coordinator.heard.clear()
    async with running(settings, Car(), Counter()):
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        assert coordinator.of(Telemetry)[0].signals.link_month_bytes > len(bundle)


async def test_inputs_and_outputs_too_large_for_a_packet_travel_over_http(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx", width="w"))
    rows = np.random.default_rng(5).random((3, 60_000), dtype=np.float32)
    bundle = encode_bundle({"x": rows})
    (tmp_path / "inputs").write_bytes(bundle)
    blobs.blobs["/v1/jobs/job-1/inputs/0-3"] = bundle
    ref = BlobRef(digest_of(tmp_path / "inputs"), len(bundle), "/v1/jobs/job-1/inputs/0-3")
    async with running(settings, Car(), Counter()):
        await coordinator.until(lambda: len(coordinator.heard) >= 3)
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 3)], inputs=None, inputs_ref=ref))
        await coordinator.until(lambda: bool(coordinator.of(Rows)))
        (message,) = coordinator.of(Rows)
        stored = decode_bundle(blobs.blobs[message.outputs_ref.path])
        assert (stored["y"] == 2 * rows).all()


async def test_a_task_that_cannot_be_read_is_refused_where_it_asks_for_the_answer(
    coordinator: Coordinator, settings: AgentSettings
) -> None:
    counters = Counter[str]()
    async with running(settings, Car(), counters):
        await coordinator.until(lambda: len(coordinator.heard) >= 3)
        topic = TOPICS.vehicle("car-1", VehicleChannel.TASK)
        mine, foreign = TOPICS.result("job-7", "car-1"), TOPICS.result("job-7", "car-2")
        newer = TASK.content_type.replace("v=1", "v=9")
        await coordinator.link.publish(topic, b"\xc1", content_type=TASK.content_type, response_topic=foreign)
        await coordinator.link.publish(topic, b"\xc1", content_type=TASK.content_type, response_topic=mine)
        await coordinator.link.publish(topic, b"\x80", content_type=newer, response_topic=mine)
        await coordinator.link.publish(topic, bytes(200_000), content_type=TASK.content_type, response_topic=mine)
        await coordinator.until(lambda: len(coordinator.of(Refusal)) == 3)
        assert [each.reason for each in coordinator.of(Refusal)] == ["malformed", "unknown_version", "malformed"]
        assert counters["message_malformed"] == 2
        assert counters["message_unknown_version"] == counters["message_oversized"] == 1


async def test_a_rebirth_and_a_cancel_are_obeyed(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    blobs.go_on.clear()
    async with running(settings, Car(), Counter()):
        await coordinator.until(lambda: len(coordinator.heard) >= 3)
        await coordinator.send(VehicleChannel.CTL, CONTROL, Rebirth())
        await coordinator.until(lambda: sum(each.snapshot for each in coordinator.of(Telemetry)) == 2)
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(1, 0, 2), Lease(2, 2, 3)]))
        await coordinator.send(VehicleChannel.CTL, CONTROL, Cancel("job-1", [2, 77]))
        await coordinator.until(lambda: bool(coordinator.of(Refusal)))
        assert coordinator.of(Refusal) == [Refusal("job-1", 1, RefusalReason.CANCELLED, [2])]


async def test_results_of_a_broken_link_arrive_after_it_is_back_under_a_new_epoch(
    broker: Broker, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    car, counters = Car(), Counter[str]()

    async def side() -> tuple[Coordinator, asyncio.Task[None]]:
        link = await connect(ConnectOptions(broker.host, broker.port, "coordinator"))
        one = Coordinator(link)
        await link.subscribe([(TOPICS.every_vehicle(VehicleChannel.STATE), 1), (TOPICS.every_result(), 1)])
        # An agent that was back before us had its results refused, as nobody listened: it sends them again by this.
        here = COORDINATOR.encode(CoordinatorState(online=True, epoch=1, http_url=blobs.url))
        await link.publish(TOPICS.coordinator("c"), here, retain=True, content_type=COORDINATOR.content_type)
        return one, asyncio.create_task(one.listen())

    settings = settings.model_copy(update={"http_url": blobs.url})
    blobs.go_on.clear()
    async with running(settings, car, counters) as agent:
        coordinator, listening = await side()
        await coordinator.until(lambda: bool(coordinator.of(State)))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 40)]))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(1, 0, 1)], epoch=77))
        await coordinator.until(lambda: bool(coordinator.of(Refusal)))  # so both tasks were taken in
        await broker.kill()
        listening.cancel()
        blobs.go_on.set()
        async with asyncio.timeout(DEADLINE_S):
            while counters["spooled"] == 0:
                assert not agent.done()
                await asyncio.sleep(0.02)
        await broker.kill()
        await broker.start()
        coordinator, listening = await side()
        await coordinator.until(lambda: len(coordinator.outputs("job-1")) == 40)
        assert {each.epoch for each in coordinator.of(Rows)} == {1}
        assert coordinator.of(State)[-1].epoch > 1
    listening.cancel()
    await coordinator.link.close()


async def test_an_agent_whose_disk_was_lost_comes_back_above_the_epoch_that_the_broker_remembers(
    coordinator: Coordinator, settings: AgentSettings
) -> None:
    topic = TOPICS.vehicle("car-1", VehicleChannel.STATE)
    old = STATE.encode(State(online=False, epoch=500))
    await coordinator.link.publish(topic, old, retain=True, content_type=STATE.content_type)
    async with running(settings, Car(), Counter()):
        await coordinator.until(lambda: coordinator.of(State)[-1].epoch > 500 if coordinator.of(State) else False)
    assert (settings.data_dir / "epoch").read_text() == "501"


async def test_an_old_will_that_overwrites_the_birth_is_overwritten_again(
    coordinator: Coordinator, settings: AgentSettings
) -> None:
    counters = Counter[str]()
    async with running(settings, Car(), counters):
        await coordinator.until(lambda: bool(coordinator.of(State)))
        topic = TOPICS.vehicle("car-1", VehicleChannel.STATE)
        will = STATE.encode(State(online=False, epoch=0))
        await coordinator.link.publish(topic, will, retain=True, content_type=STATE.content_type)
        await coordinator.until(lambda: [each.online for each in coordinator.of(State)] == [True, False, True])
        assert counters["state_overwritten"] == 1


async def test_a_session_that_is_taken_over_is_an_alarm_and_not_a_reason_to_reconnect(
    settings: AgentSettings, tmp_path: Path
) -> None:
    visits: list[int] = []

    async def visit(link: Link, epoch: int) -> None:
        visits.append(epoch)
        await link.close()
        raise LinkLost("session taken over", 0x8E)

    with pytest.raises(IdentityTaken):
        await stay_connected(settings, EpochFile(tmp_path / "epoch"), visit, Counter(), random.Random(1))
    assert visits == [1]


def worker() -> psutil.Process | None:
    found = [child for child in psutil.Process().children() if "vehicle_agent.worker" in child.cmdline()]
    return found[0] if found else None


async def test_a_pulled_cable_ends_the_worker_while_the_agent_is_busy_with_something_else(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, endless(tmp_path / "m.onnx"))
    car, counters = Car(), Counter[str]()
    settings = settings.model_copy(update={"sample_s": 1000.0})
    async with running(settings, car, counters):
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        inputs = encode_tensors({"times": np.array([1 << 40]), "x": np.zeros((1, 3), np.float32)})
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 1)], inputs=inputs))
        async with asyncio.timeout(DEADLINE_S):
            while not car.computing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        process = worker()
        assert process is not None
        car.signals.plugged = False
        process.wait(DEADLINE_S)  # blocks the agent's loop, and ours
        await coordinator.until(lambda: bool(coordinator.of(Refusal)))
        (refusal,) = coordinator.of(Refusal)
        assert (refusal.reason, refusal.detail) == (RefusalReason.LEAVING, "not_plugged_in")
        assert counters["killed_by_guard"] == 1
        assert not counters["worker_died"]


async def test_a_row_that_needs_too_much_memory_is_reported_and_the_others_are_computed(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    model = model_ref(blobs, swelling(tmp_path / "m.onnx"))
    counters = Counter[str]()
    settings = settings.model_copy(update={"memory_bytes": 1 << 29})
    async with running(settings, Car(), counters):
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        inputs = encode_tensors({"elements": np.array([4, 1 << 28, 4]), "x": np.ones((3, 3), np.float32)})
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 3)], inputs=inputs))
        await coordinator.until(lambda: len(coordinator.outputs("job-1")) == 2 and bool(coordinator.of(Failure)))
        (failure,) = coordinator.of(Failure)
        assert failure.spans == [Span(0, 1, 2)]
        assert "allocat" in failure.error
        assert sorted(coordinator.outputs("job-1")) == [0, 2]
        assert not counters["worker_died"]


async def test_the_owners_bounds_hold_for_the_worker_as_soon_as_their_policy_arrives(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"threads": 3, "niceness": 5, "memory_bytes": 1 << 30})
    policy = replace(AGREED, version=4, threads=1, niceness=15, memory_bytes=300_000_000)
    model = model_ref(blobs, endless(tmp_path / "m.onnx"))
    inputs = encode_tensors({"times": np.array([1 << 40]), "x": np.zeros((1, 3), np.float32)})
    car = Car()
    async with running(settings, car, Counter()):
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 1)], inputs=inputs))
        before = await computing_worker()
        assert worker_bounds(before) == (5, 1 << 30)
        threads = before.num_threads()
        await coordinator.send(VehicleChannel.POLICY, POLICY, policy)
        await coordinator.until(lambda: coordinator.of(Caps)[-1].consent_version == 4)
        assert [each.threads for each in coordinator.of(Caps)][:: len(coordinator.of(Caps)) - 1] == [3, 1]
        task = task_of(model, [Lease(1, 1, 2)], inputs=inputs, consent_version=4)
        await coordinator.send(VehicleChannel.TASK, TASK, task)
        after = await computing_worker()
        assert after.pid != before.pid
        assert worker_bounds(after) == (15, 300_000_000)
        assert threads - after.num_threads() == 2
        assert car.computing == [1.0, 0.0, 1 / 3]  # of the power that all threads draw
        await coordinator.send(VehicleChannel.CTL, CONTROL, Cancel("job-1"))


def worker_bounds(process: psutil.Process) -> tuple[int, int]:
    """Its niceness, and what it may allocate; it stands back from disks in any case."""
    assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    return process.nice(), process.rlimit(psutil.RLIMIT_DATA)[0]


async def computing_worker() -> psutil.Process:
    """The worker, once it has computed for a while."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            process = worker()
            with contextlib.suppress(psutil.Error):
                if process is not None and process.cpu_times().user > 1.5:
                    return process
            await asyncio.sleep(0.01)


async def test_under_a_cap_below_what_computing_draws_a_car_computes_for_a_part_of_the_time(
    coordinator: Coordinator, settings: AgentSettings, blobs: BlobServer, tmp_path: Path
) -> None:
    consent = Consent.open(settings.data_dir / "policy", Counter())
    consent.take(replace(AGREED, version=4, power_cap_w=20.0))
    consent.save()
    model = model_ref(blobs, doubling(tmp_path / "m.onnx"))
    car = Car()
    async with running(settings, car, Counter()):
        await coordinator.until(lambda: bool(coordinator.of(Telemetry)))
        await coordinator.send(VehicleChannel.TASK, TASK, task_of(model, [Lease(0, 0, 5)], consent_version=4))
        await coordinator.until(lambda: len(coordinator.outputs("job-1")) == 5)
    assert car.computing == [0.8, 0.0]  # of the 25 W that are set
