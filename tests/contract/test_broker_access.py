"""The configuration for a real fleet, run by a real Mosquitto with fresh certificates: who may do what."""

import asyncio
import dataclasses
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fleet_link import ConnectOptions, LinkRefused, LinkUnreachable, Session, connect
from idlewheel.brokers import free_port

CONFIGURATION = Path(__file__).parents[2] / "broker_config"
VEH = "iw/v1/demo/veh"

Options = Callable[..., ConnectOptions]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None and not os.environ.get("CI"):
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificates")
    script = CONFIGURATION / "make_certificates.sh"
    subprocess.run([script, directory, "127.0.0.1", "coordinator-1", "v1", "v2"], check=True, timeout=60)
    subprocess.run([script, directory / "stranger", "127.0.0.1", "v1"], check=True, timeout=60)
    return directory


@pytest.fixture
async def options(certificates: Path, mosquitto_program: str, tmp_path: Path) -> AsyncIterator[Options]:
    """Start the fleet's broker; give the options with which an identity connects to it."""
    port = free_port()
    text = (CONFIGURATION / "mosquitto.conf").read_text()
    for theirs, ours in {
        "listener 8883": f"user root\nlistener {port} 127.0.0.1",
        "/mosquitto/config/certificates": str(certificates),
        "/mosquitto/config": str(CONFIGURATION),
        "/mosquitto/data": str(tmp_path),
    }.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    (tmp_path / "mosquitto.conf").write_text(text)

    def connect_as(identity: str, client_id: str | None = None, folder: str = ".") -> ConnectOptions:
        tls = ssl.create_default_context(cafile=certificates / "ca.crt")
        tls.load_cert_chain(certificates / folder / f"{identity}.crt", certificates / folder / f"{identity}.key")
        return ConnectOptions("127.0.0.1", port, client_id or identity, tls=tls, connect_timeout_s=30)

    process = await asyncio.create_subprocess_exec(
        mosquitto_program, "-c", str(tmp_path / "mosquitto.conf"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_until_open(connect_as("v1"))
        yield connect_as
    finally:
        process.terminate()
        await process.wait()


async def wait_until_open(options: ConnectOptions) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                session = await connect(options)
            except LinkUnreachable:
                await asyncio.sleep(0.02)
            else:
                return await session.close()


async def receive_one(session: Session) -> tuple[str, bytes]:
    async with asyncio.timeout(60):
        (message,) = await session.receive(1)
    return message.topic, message.payload


async def test_a_vehicle_writes_its_own_topics_and_no_other(options: Options) -> None:
    vehicle = await connect(options("v1"))
    own = [f"{VEH}/v1/state", f"{VEH}/v1/caps", f"{VEH}/v1/tele", "iw/v1/demo/job/j1/res/v1"]
    for topic in own:
        assert await vehicle.publish(topic, b"") in (0, 0x10)
    foreign = [
        f"{VEH}/v2/state",
        f"{VEH}/v2/tele",
        f"{VEH}/v1/task",
        f"{VEH}/v1/policy",
        f"{VEH}/v2/ctl",
        "iw/v1/demo/job/j1/res/v2",
        "iw/v1/demo/coord/coordinator-1/state",
        "anything/else",
    ]
    for topic in foreign:
        with pytest.raises(LinkRefused) as refusal:
            await vehicle.publish(topic, b"")
        assert refusal.value.reason_code == 0x87
    await vehicle.close()


async def test_a_vehicle_hears_its_own_tasks_and_no_other(options: Options) -> None:
    curious, coordinator = await connect(options("v1")), await connect(options("coordinator-1"))
    await curious.subscribe([("#", 1)])
    await coordinator.publish(f"{VEH}/v2/task", b"not yours")
    await coordinator.publish(f"{VEH}/v2/policy", b"not yours", retain=True)
    await coordinator.publish(f"{VEH}/v1/task", b"yours")
    assert await receive_one(curious) == (f"{VEH}/v1/task", b"yours")
    await curious.close()
    await coordinator.close()


async def test_the_coordinator_hears_every_vehicle(options: Options) -> None:
    vehicle, coordinator = await connect(options("v2")), await connect(options("coordinator-1"))
    await coordinator.subscribe([(f"{VEH}/+/state", 1), (f"{VEH}/+/tele", 1), ("iw/v1/demo/job/+/res/+", 1)])
    for topic in (f"{VEH}/v2/state", f"{VEH}/v2/tele", "iw/v1/demo/job/j/res/v2"):
        await vehicle.publish(topic, b"x")
        assert await receive_one(coordinator) == (topic, b"x")
    with pytest.raises(LinkRefused):
        await coordinator.publish(f"{VEH}/v2/state", b"made up")
    await vehicle.close()
    await coordinator.close()


async def test_a_vehicle_cannot_take_the_id_of_another(options: Options) -> None:
    victim = await connect(options("v1"))
    intruder = await connect(options("v2", client_id="v1"))
    with pytest.raises(LinkRefused):
        await intruder.publish(f"{VEH}/v1/state", b"I am v1")
    assert await victim.publish(f"{VEH}/v1/state", b"I am") in (0, 0x10)
    await victim.close()
    await intruder.close()


async def test_only_certificates_of_the_fleet_get_in(options: Options, certificates: Path) -> None:
    with pytest.raises(LinkUnreachable):
        await connect(options("v1", folder="stranger"))
    nameless = dataclasses.replace(options("v1"), tls=ssl.create_default_context(cafile=certificates / "ca.crt"))
    with pytest.raises(LinkUnreachable):
        await connect(nameless)
