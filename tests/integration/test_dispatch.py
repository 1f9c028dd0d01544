"""What the core says to cars, on a real broker: what waits is bounded, and no word to a car waits behind tasks."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import obstore
import pytest

from coordinator.adapters.input_rows import InputRows
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.brain import Brain, wall_clock_ms
from coordinator.commands import SendControl, SendPolicy, SendTask
from coordinator.core import Core
from coordinator.dispatch import WAITING_TASKS, Dispatch
from coordinator.events import BlobLost, JobCancelled, JobSubmitted, ModelAdded, TaskRefused, TaskUndelivered, Tick
from fleet_link import ConnectOptions, Session, Tracer, connect
from fleet_wire.bundle import encode_bundle
from fleet_wire.codec import CONTROL, POLICY, TASK
from fleet_wire.messages import Cancel, Rebirth, Refusal, RefusalReason
from fleet_wire.policy import OwnerPolicy
from fleet_wire.topics import FleetTopics
from idlewheel.brokers import Broker
from tests.system.deployment import DEADLINE_S, until
from tests.unit.coordinator_scenes import MODEL, arrival, job

CARS = ("car-1", "car-2", "car-3")
Said = tuple[str, object]


class Scene:
    """A core that has given work to three cars, of which nothing was sent yet, and somebody who hears all that is."""

    def __init__(self, inputs: str, blobs: ObjectBlobs, broker: Broker) -> None:
        self.broker = broker
        self.core = Core()
        for vehicle in CARS:
            for event in arrival(vehicle):
                self.core.handle(event, 0)  # type: ignore[arg-type]
        for event in (ModelAdded(MODEL), JobSubmitted(replace(job(chunk_rows=10), inputs=inputs))):
            self.core.handle(event, 0)
        self.tasks = [command for command in self.core.assign(0) if isinstance(command, SendTask)]
        self.blobs, self.inputs = blobs, inputs
        self.given_back: list[TaskUndelivered | BlobLost] = []
        self.dispatch = Dispatch(
            FleetTopics("test"), InputRows(blobs), self.core, self.given_back.append, 100_000, Tracer(random.Random(1))
        )

    async def said(self, count: int) -> list[Said]:
        """Connect, send, and return the first messages that arrive."""
        listener = await connect(ConnectOptions(self.broker.host, self.broker.port, "listener"))
        await listener.subscribe([("iw/v1/test/veh/#", 1)])
        self.dispatch.session = await connect(ConnectOptions(self.broker.host, self.broker.port, "coordinator"))
        sending = asyncio.create_task(self.dispatch.run())
        async with asyncio.timeout(DEADLINE_S):
            heard = await _hear(listener, count)
        sending.cancel()
        await self.dispatch.session.close()
        await listener.close()
        return heard


async def _hear(listener: Session, count: int) -> list[Said]:
    kinds = {"ctl": CONTROL, "policy": POLICY, "task": TASK}
    heard: list[Said] = []
    while len(heard) < count:
        messages = await listener.receive()
        for message in messages:
            _, _, _, _, vehicle, channel = message.topic.split("/")
            heard.append((vehicle, kinds[channel].decode(message.payload, message.content_type)))  # type: ignore[attr-defined]
        listener.acknowledge(messages)
    return heard


@pytest.fixture
async def scene(broker: Broker, tmp_path: Path) -> Scene:
    blobs = ObjectBlobs.in_folder(tmp_path / "blobs")
    bundle = encode_bundle({"x": np.zeros((100, 3), np.float32)})
    digest = hashlib.sha256(bundle).hexdigest()

    async def pieces() -> AsyncIterator[bytes]:
        yield bundle

    await blobs.put(pieces(), digest)
    return Scene(digest, blobs, broker)


async def test_what_is_said_to_a_car_does_not_wait_behind_tasks(scene: Scene) -> None:
    policy = OwnerPolicy(1, "owner", ["general"])
    scene.dispatch.put([*scene.tasks, SendControl("car-1", Rebirth()), SendPolicy("car-2", policy)])
    first, second, *tasks = await scene.said(2 + len(scene.tasks))
    assert [first, second] == [("car-1", Rebirth()), ("car-2", policy)]
    assert [vehicle for vehicle, _ in tasks] == [task.vehicle for task in scene.tasks]


async def test_what_waits_already_is_said_once_and_of_policies_the_newest(scene: Scene) -> None:
    old, new = OwnerPolicy(1, "owner", ["general"]), OwnerPolicy(2, "owner", [], revoked=True)
    for _ in range(1_000):
        scene.dispatch.put([SendControl("car-1", Rebirth()), SendControl("car-1", Cancel("j1", [1]))])
        scene.dispatch.put([SendPolicy("car-1", old), SendPolicy("car-1", new)])
    scene.dispatch.put([SendControl("car-1", Cancel("j1", [2])), SendControl("car-2", Rebirth())])
    assert await scene.said(5) == [
        ("car-1", Rebirth()),
        ("car-1", Cancel("j1", [1])),
        ("car-1", new),
        ("car-1", Cancel("j1", [2])),
        ("car-2", Rebirth()),
    ]


async def test_a_car_is_asked_for_a_rebirth_once_there_is_a_connection_and_again_on_the_next(scene: Scene) -> None:
    dispatch = scene.dispatch
    sending = asyncio.create_task(dispatch.run())
    dispatch.put([SendControl("car-1", Rebirth()), SendControl("car-1", Cancel("j1", [1]))])
    await until(lambda: dispatch.counters["control_undelivered"] == 2, "there was nobody to tell")
    sending.cancel()
    assert await scene.said(1) == [("car-1", Rebirth())]
    sending = asyncio.create_task(dispatch.run())
    dispatch.put([SendControl("car-2", Rebirth())])  # to a connection that has been closed
    await until(lambda: dispatch.counters["control_undelivered"] == 3, "there was nobody to tell")
    sending.cancel()
    assert await scene.said(1) == [("car-2", Rebirth())]


async def test_a_car_hears_its_newest_policy_once_there_is_a_connection_and_again_on_the_next(scene: Scene) -> None:
    dispatch = scene.dispatch
    old, new = OwnerPolicy(1, "owner", ["general"]), OwnerPolicy(2, "owner", [], revoked=True)
    for turn, vehicle in enumerate(("car-1", "car-2")):  # on the second turn the connection has been closed
        sending = asyncio.create_task(dispatch.run())
        for number, policy in enumerate((new, old), 1):
            dispatch.put([SendPolicy(vehicle, policy)])
            undelivered = 2 * turn + number
            await until(
                lambda count=undelivered: dispatch.counters["policy_undelivered"] == count,  # type: ignore[misc]
                "there was nobody to tell",
            )
        sending.cancel()
        heard = await scene.said(1 + turn)  # the broker keeps what was said before
        assert heard[-1] == (vehicle, new)


async def test_a_lease_that_ended_while_its_task_waited_is_not_sent(scene: Scene) -> None:
    gone, *sent = scene.tasks
    scene.dispatch.put(scene.tasks)
    refusal = Refusal("j1", gone.epoch, RefusalReason.LEAVING, [lease.chunk for lease in gone.leases])
    scene.core.handle(TaskRefused(gone.vehicle, refusal), 1)
    assert [vehicle for vehicle, _ in await scene.said(len(sent))] == [task.vehicle for task in sent]
    scene.dispatch.put(scene.tasks)
    scene.core.handle(JobCancelled("j1"), 2)
    scene.dispatch.put([SendControl("car-1", Rebirth())])
    assert await scene.said(1) == [("car-1", Rebirth())]
    assert scene.given_back == []


async def test_the_brain_gives_no_work_while_too_much_waits_to_be_sent(scene: Scene, tmp_path: Path) -> None:
    dispatch, core = scene.dispatch, Core()
    brain = Brain(core, SqliteLedger(tmp_path / "ledger.sqlite"))
    await brain.open()
    sent: list[SendTask] = []

    def send(commands: Sequence[SendTask | SendControl | SendPolicy]) -> None:
        sent.extend(command for command in commands if isinstance(command, SendTask))

    running = asyncio.create_task(brain.run(send, lambda asked: None, lambda: dispatch.has_room))
    brain.put([event for vehicle in CARS for event in arrival(vehicle, now_ms=wall_clock_ms())])  # type: ignore[misc]
    brain.put([ModelAdded(MODEL), JobSubmitted(job(chunk_rows=10))])
    assert not dispatch.has_room  # there is no connection
    await brain.put_and_wait(Tick({}))
    assert sent == []
    dispatch.session = await connect(ConnectOptions(scene.broker.host, scene.broker.port, "coordinator"))
    dispatch.put(scene.tasks[:1] * WAITING_TASKS)
    assert not dispatch.has_room
    await brain.put_and_wait(Tick({}))
    assert sent == []
    sending = asyncio.create_task(dispatch.run())
    async with asyncio.timeout(DEADLINE_S):
        while not sent:
            await brain.put_and_wait(Tick({}))
    assert dispatch.has_room
    running.cancel()
    sending.cancel()
    await dispatch.session.close()
    await brain.close()


async def test_a_job_whose_inputs_changed_is_told_of_and_not_tried_again(scene: Scene) -> None:
    await obstore.put_async(scene.blobs._store, f"sha256/{scene.inputs[:2]}/{scene.inputs}", b"another")
    scene.dispatch.put(scene.tasks[:1])
    sending = asyncio.create_task(scene.dispatch.run())
    async with asyncio.timeout(DEADLINE_S):
        while not scene.given_back:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    sending.cancel()
    error = f"blob {scene.inputs} has changed in the store: send it again"
    assert scene.given_back == [BlobLost(scene.inputs, error)]
    assert scene.dispatch.counters == {"inputs_blob_damaged": 1}
