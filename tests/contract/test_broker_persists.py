"""What Mosquitto keeps over SIGKILL when it is told to; the embedded broker keeps nothing."""

import asyncio
import time
from pathlib import Path

from fleet_link import ConnectOptions, Message, connect
from idlewheel.brokers import Broker, free_port

# Written after every change, though a moment after the PUBACK. It rewrites the whole file: for a small broker only.
CONFIGURATION = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {directory}/
autosave_on_changes true
autosave_interval 1
"""


def wait_until_written(database: Path, payload: bytes) -> None:
    """Wait until the broker has saved a payload: it answers a publish first, and saves at its loop's end."""
    deadline = time.monotonic() + 60
    while not (database.exists() and payload in database.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_retained_and_queued_messages_survive_a_kill(mosquitto_program: str, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "mosquitto.conf"
    file.write_text(CONFIGURATION.format(port=port, directory=tmp_path))
    broker = Broker("mosquitto", port, [mosquitto_program, "-c", str(file)], tmp_path / "broker.log")
    await broker.start()
    try:
        kept = ConnectOptions(broker.host, broker.port, "reader", clean_start=False, session_expiry_s=300)
        reader = await connect(kept)
        await reader.subscribe([("queued", 1)])
        reader.abort()
        await reader.close()
        writer = await connect(ConnectOptions(broker.host, broker.port, "writer"))
        await writer.publish("retained", b"policy", retain=True)
        await writer.publish("queued", b"result")
        wait_until_written(tmp_path / "mosquitto.db", b"result")
        await broker.kill()
        await broker.start()
        reader = await connect(kept)
        assert reader.server.session_present
        await reader.subscribe([("retained", 1)])
        found: list[Message] = []
        async with asyncio.timeout(60):
            while len(found) < 2:
                found += await reader.receive()
        assert sorted(message.payload for message in found) == [b"policy", b"result"]
        await reader.close()
    finally:
        await broker.kill()
