"""MQTT 5 clients side by side through Mosquitto: `python -m benchmarks.mqtt_clients [--messages N] [--json]`.

Receiving: each batch is committed to SQLite and acknowledged after that, as the coordinator does it. The floor only
counts, and acknowledges at once. Publishing: until the last PUBACK is in. QoS 1 and 300 bytes throughout; every client
in a process of its own, the load in another. `cpu_us` is the client's processor time a message: on a machine whose
cores everything shares it says more than the rate.
"""
# ruff: noqa: PLC0415  a client that is not installed must not stop the others

import argparse
import asyncio
import json
import logging
import queue
import resource
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import mqtt5
import uvloop

from fleet_link import ConnectOptions, connect
from idlewheel.brokers import start_broker

TOPIC: Final = "iw/v1/bench/veh/v1/tele"
PAYLOAD: Final = bytes(300)
WINDOW: Final = 900  # below the server's Receive Maximum, which gmqtt must not reach
DEADLINE_S: Final = 120
HOST: Final = "127.0.0.1"


class Store:
    """Where a batch is made durable before it is acknowledged."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._database = sqlite3.connect(Path(self._folder.name) / "store.sqlite", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE message (topic TEXT, payload BLOB)")

    def commit(self, rows: Sequence[tuple[str, bytes]]) -> None:
        with self._database:
            self._database.executemany("INSERT INTO message VALUES (?, ?)", rows)


class Meter:
    """Rate from the first to the last message, processor time of the whole stretch, and memory at its highest."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.seen = 0
        self._first_s = 0.0
        self._cpu_s = time.process_time()
        self._report: dict[str, float] = {}

    def start(self) -> None:
        self._cpu_s, self._first_s = time.process_time(), time.perf_counter()

    def add(self, count: int) -> bool:
        """Count messages; True when all have come."""
        if not self._first_s:
            self.start()
        self.seen += count
        return self.seen >= self.expected

    def report(self) -> dict[str, float]:
        wall_s, cpu_s = time.perf_counter() - self._first_s, time.process_time() - self._cpu_s
        return {
            "per_s": self.seen / wall_s,
            "cpu_us": cpu_s / self.seen * 1e6,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def ready() -> None:
    print("ready", flush=True)


# -- receiving ----------------------------------------------------------------------------------------------------


async def receive_floor(port: int, meter: Meter) -> None:
    """A codec on a socket that counts and acknowledges: no queue, no hand-over, no commit."""
    done = asyncio.Event()

    class Counter(asyncio.Protocol):
        rest = b""
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport  # type: ignore[assignment]
            self.transport.write(mqtt5.ConnectPacket("sub", clean_start=True, receive_max=WINDOW).write())
            self.transport.write(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(TOPIC)]).write())

        def data_received(self, data: bytes) -> None:
            stream, at, acks = memoryview(self.rest + data), 0, []
            while at < len(stream):
                try:
                    packet, size = mqtt5.read(stream[at:])
                except IndexError:
                    break
                at += size
                if isinstance(packet, mqtt5.PublishPacket):
                    acks.append(mqtt5.PubAckPacket(packet.packet_id).write())  # type: ignore[arg-type]
                elif isinstance(packet, mqtt5.SubAckPacket):
                    ready()
            self.rest = bytes(stream[at:])
            if acks:
                self.transport.write(b"".join(acks))
                if meter.add(len(acks)):
                    done.set()

    await asyncio.get_running_loop().create_connection(Counter, HOST, port)
    await done.wait()


async def receive_ours(port: int, meter: Meter) -> None:
    store = Store()
    session = await connect(ConnectOptions(HOST, port, "sub", receive_max=WINDOW))
    await session.subscribe([(TOPIC, 1)])
    ready()
    while True:
        messages = await session.receive()
        store.commit([(message.topic, message.payload) for message in messages])
        session.acknowledge(messages)
        if meter.add(len(messages)):
            return


async def receive_gmqtt(port: int, meter: Meter) -> None:
    import gmqtt

    store, waiting, arrived = Store(), [], asyncio.Event()

    async def on_message(_client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        committed = asyncio.get_running_loop().create_future()
        waiting.append((topic, payload, committed))
        arrived.set()
        await committed  # the PUBACK leaves when this returns
        return 0

    client = gmqtt.Client("sub", optimistic_acknowledgement=False, receive_maximum=WINDOW)
    client.on_message = on_message
    client.on_subscribe = lambda *_: ready()
    await client.connect(HOST, port)
    client.subscribe(TOPIC, qos=1)
    while True:
        await arrived.wait()
        arrived.clear()
        batch, waiting[:] = list(waiting), []
        store.commit([(topic, payload) for topic, payload, _ in batch])
        for _, _, committed in batch:
            committed.set_result(None)
        if meter.add(len(batch)):
            return


async def receive_mqttium(port: int, meter: Meter) -> None:
    from mqttium import MQTTProtocolVersion
    from mqttium.api import AsyncClient

    store, waiting, arrived = Store(), [], asyncio.Event()
    # With a lower window it ends the connection: Mosquitto 2.0.11 sends more than Receive Maximum now and then.
    client = AsyncClient("sub", protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True, max_inbound_inflight=65_535)
    await client.connect(HOST, port)
    await client.subscribe(TOPIC, qos=1)
    ready()

    async def collect() -> None:
        async for message in client.messages():
            waiting.append(message)
            arrived.set()

    collecting = asyncio.create_task(collect(), name="collect")
    while not collecting.done():
        await arrived.wait()
        arrived.clear()
        batch, waiting[:] = list(waiting), []
        store.commit([(message.topic, message.payload) for message in batch])
        for message in batch:
            await client.ack(message)
        if meter.add(len(batch)):
            return


async def receive_paho(port: int, meter: Meter) -> None:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    store, waiting = Store(), queue.SimpleQueue[Any]()
    client = paho_client("sub", manual_ack=True)
    client.on_message = lambda _client, _data, message: waiting.put(message)
    client.on_subscribe = lambda *_: ready()
    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = WINDOW
    client.connect(HOST, port, properties=properties)
    client.subscribe(TOPIC, qos=1)
    client.loop_start()
    while True:
        batch = [waiting.get()]
        while not waiting.empty():
            batch.append(waiting.get())
        store.commit([(message.topic, message.payload) for message in batch])
        for message in batch:
            client.ack(message.mid, message.qos)
        if meter.add(len(batch)):
            return


async def receive_aiomqtt(port: int, meter: Meter) -> None:
    import aiomqtt

    store = Store()
    async with aiomqtt.Client(HOST, port, identifier="sub", protocol=aiomqtt.ProtocolVersion.V5, **NODELAY) as client:
        await client.subscribe(TOPIC, qos=1)
        ready()
        batch = []
        async for message in client.messages:  # acknowledged already: it can't wait for a commit
            batch.append((str(message.topic), bytes(message.payload)))
            if not len(client.messages) or len(batch) == WINDOW:
                store.commit(batch)
                if meter.add(len(batch)):
                    return
                batch = []


# -- publishing ---------------------------------------------------------------------------------------------------


async def publish_ours(port: int, meter: Meter) -> None:
    session = await connect(ConnectOptions(HOST, port, "pub"))
    meter.start()
    answers = []
    for _ in range(meter.expected):
        await session.drain()
        answers.append(session.publish_soon(TOPIC, PAYLOAD))
    await asyncio.gather(*answers)


async def publish_gmqtt(port: int, meter: Meter) -> None:
    import gmqtt

    client = gmqtt.Client("pub")
    await client.connect(HOST, port)
    meter.start()
    for start in range(0, meter.expected, WINDOW):  # nothing makes it wait: above the window it raises OverflowError
        for _ in range(min(WINDOW, meter.expected - start)):
            client.publish(TOPIC, PAYLOAD, qos=1)
        await client._persistent_storage.wait_empty()


async def publish_mqttium(port: int, meter: Meter) -> None:
    from mqttium import MQTTProtocolVersion
    from mqttium.api import AsyncClient

    client = AsyncClient("pub", protocol=MQTTProtocolVersion.MQTTv5)
    await client.connect(HOST, port)
    meter.start()
    receipts = [await client.publish(TOPIC, PAYLOAD, qos=1) for _ in range(meter.expected)]
    for receipt in receipts:
        await receipt.wait()


async def publish_paho(port: int, meter: Meter) -> None:
    connected = threading.Event()
    client = paho_client("pub")
    client.on_connect = lambda *_: connected.set()
    client.connect(HOST, port)
    client.loop_start()
    connected.wait()
    meter.start()
    for sent in [client.publish(TOPIC, PAYLOAD, qos=1) for _ in range(meter.expected)]:
        sent.wait_for_publish()


async def publish_aiomqtt(port: int, meter: Meter) -> None:
    import aiomqtt

    logging.getLogger("mqtt").setLevel(logging.ERROR)  # it warns of every hundredth publish that waits
    workers = 100
    async with aiomqtt.Client(HOST, port, identifier="pub", protocol=aiomqtt.ProtocolVersion.V5, **NODELAY) as client:
        meter.start()

        async def work() -> None:
            for _ in range(meter.expected // workers):
                await client.publish(TOPIC, PAYLOAD, qos=1)

        await asyncio.gather(*(work() for _ in range(workers)))


NODELAY: Final[dict[str, Any]] = {"socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]}


def paho_client(name: str, **options: Any) -> Any:
    from paho.mqtt.client import Client, MQTTv5
    from paho.mqtt.enums import CallbackAPIVersion

    client: Any = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5, **options)
    client.max_inflight_messages_set(WINDOW)
    client.on_socket_open = lambda _client, _data, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


# -- the table ----------------------------------------------------------------------------------------------------

Run = Callable[[int, Meter], Awaitable[None]]
RECEIVE: Final[dict[str, Run]] = {
    "floor (counts only)": receive_floor,
    "fleet_link": receive_ours,
    "gmqtt": receive_gmqtt,
    "mqttium": receive_mqttium,
    "paho-mqtt": receive_paho,
    "aiomqtt": receive_aiomqtt,
}
PUBLISH: Final[dict[str, Run]] = {
    "fleet_link": publish_ours,
    "gmqtt": publish_gmqtt,
    "mqttium": publish_mqttium,
    "paho-mqtt": publish_paho,
    "aiomqtt": publish_aiomqtt,
}
ON_UVLOOP: Final = ("floor (counts only)", "fleet_link", "gmqtt")


def child(direction: str, client: str, port: int, messages: int) -> None:
    """Run one client in this process and print its figures."""
    meter = Meter(messages)
    run = {"receive": RECEIVE, "publish": PUBLISH}[direction][client]

    async def measured() -> None:
        await run(port, meter)
        meter.seen = messages if direction == "publish" else meter.seen
        print(json.dumps(meter.report()), flush=True)

    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop if client in ON_UVLOOP else None)
    runner.run(measured())


async def spawn(direction: str, client: str, port: int, messages: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.mqtt_clients", "--child", direction, client, str(port), "--messages", str(messages)),
        stdout=asyncio.subprocess.PIPE,
    )


async def measure(direction: str, client: str, port: int, messages: int) -> dict[str, Any]:
    row: dict[str, Any] = {"direction": direction, "client": client, "messages": messages}
    measured = await spawn(direction, client, port, messages)
    assert measured.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            if direction == "receive":
                await measured.stdout.readline()
                load = await spawn("publish", "fleet_link", port, messages)
                await load.communicate()
            figures: dict[str, Any] = json.loads(await measured.stdout.readline())
            return row | figures
    except (TimeoutError, ValueError):
        return row | {"failed": "ended early or took too long"}
    finally:
        if measured.returncode is None:
            measured.kill()
        await measured.wait()


async def measure_all(messages: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        async with start_broker("mosquitto", Path(folder)) as broker:
            return [
                await measure(direction, client, broker.port, messages)
                for direction, clients in (("receive", RECEIVE), ("publish", PUBLISH))
                for client in clients
            ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':8} {'client':20} {'messages/s':>10} {'µs cpu each':>12} {'MB at most':>10}"]
    for row in rows:
        figures = row.get("failed") or f"{row['per_s']:10,.0f} {row['cpu_us']:12.1f} {row['rss_mb']:10.0f}"
        lines.append(f"{row['direction']:8} {row['client']:20} {figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.add_argument("--child", nargs=3, metavar=("DIRECTION", "CLIENT", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        direction, client, port = arguments.child
        return child(direction, client, int(port), arguments.messages)
    rows = asyncio.run(measure_all(arguments.messages))
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))
    return None


if __name__ == "__main__":
    main()
