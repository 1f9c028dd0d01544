"""A fleet that talks as fast as it may, from packets that are made beforehand, so that it does not set the pace.

`python -m benchmarks.fleet_load PORT FLEET VEHICLES announce` sends a birth, capabilities and a snapshot a vehicle.
`... deltas` does too, then sends deltas, each vehicle in turn; a line `{"allowed": N}` on its input lets the total rise
to N. It says ten times a second how many the broker has acknowledged.
"""

import asyncio
import json
import struct
import sys
import time
from collections.abc import Sequence
from typing import Final, cast

import mqtt5
import uvloop
from mqtt5 import QoS

from benchmarks.child import say
from fleet_link import ConnectOptions, connect
from fleet_wire.codec import CAPS, STATE, TELEMETRY
from fleet_wire.messages import Caps, State, Telemetry
from fleet_wire.signals import Signals
from fleet_wire.topics import FleetTopics, VehicleChannel

HOST: Final = "127.0.0.1"
CONNECTIONS: Final = 4
WINDOW: Final = 200
EPOCH: Final = 1
_BLOCK: Final = 50
_SAY_EVERY_S: Final = 0.1
_MARK: Final = 0x7ABCDEF1  # stands where the sequence number will: encoded in four bytes, as all that replace it
_PUBACK: Final = 4
READY = Signals(
    moving=False,
    plugged=True,
    charging=True,
    charge_percent=80.0,
    battery_temperature_c=20.0,
    battery_power_w=7000.0,
    cabin_temperature_c=15.0,
    link_metered=False,
    link_rate_mbps=50.0,
    compute_temperature_c=35.0,
    compute_power_w=2.0,
    free_slots=1,
    opted_in=True,
    update_pending=False,
    camp_mode=False,
    sentry_mode=False,
    refusal="",
)
_DELTA = Signals(charge_percent=80.5, battery_temperature_c=21.0, battery_power_w=7100.0)


class Template:
    """One vehicle's delta as a whole PUBLISH packet, into which packet id, sequence number and time are put."""

    def __init__(self, topic: str) -> None:
        now_ms = time.time_ns() // 1_000_000
        payload = TELEMETRY.encode(Telemetry(EPOCH, _MARK, now_ms, snapshot=False, signals=_DELTA))
        self.payload_bytes = len(payload)
        packet = mqtt5.PublishPacket(
            topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=0x7FFE, content_type=TELEMETRY.content_type
        )
        self._packet = bytearray(packet.write())
        self._id_at = self._packet.index(b"\x7f\xfe", self._packet.index(topic.encode()) + len(topic))
        self._seq_at = self._packet.index(_MARK.to_bytes(4, "big"))
        self._ts_at = self._packet.index(now_ms.to_bytes(8, "big"))
        self._seq = 0

    def next(self, packet_id: int, now_ms: int) -> bytes:
        self._seq += 1
        struct.pack_into(">H", self._packet, self._id_at, packet_id)
        struct.pack_into(">I", self._packet, self._seq_at, self._seq)
        struct.pack_into(">Q", self._packet, self._ts_at, now_ms)
        return bytes(self._packet)


class Sender(asyncio.Protocol):
    """One connection that sends for its vehicles in turn, with at most a window of packets not acknowledged."""

    def __init__(self, name: str, templates: Sequence[Template]) -> None:
        self.acknowledged = self.refused = self.sent = self.allowed = 0
        self._name = name
        self._templates = templates
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.opened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(mqtt5.ConnectPacket(self._name, clean_start=True, keep_alive=0).write())

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at = 0
        while at + 2 <= len(data) and at + 2 + data[at + 1] <= len(data):  # what we get is shorter than 128 bytes
            if data[at] >> 4 == _PUBACK:
                self.acknowledged += 1
                self.refused += data[at + 1] > 2 and data[at + 4] != 0
            else:
                self.opened.set()
            at += 2 + data[at + 1]
        self._rest = data[at:]
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        sys.exit(f"{self._name}: the broker closed the connection: {exc}")

    def send(self) -> None:
        room = min(self.allowed, self.acknowledged + WINDOW) - self.sent
        if room >= min(_BLOCK, self.allowed - self.sent) and room > 0 and self._transport is not None:
            places = range(self.sent, self.sent + room)
            self.sent += room
            vehicles, now_ms = len(self._templates), time.time_ns() // 1_000_000
            self._transport.write(
                b"".join(self._templates[place % vehicles].next(place % 65_535 + 1, now_ms) for place in places)
            )


async def announce(port: int, topics: FleetTopics, vehicles: Sequence[str]) -> None:
    """Births, capabilities and snapshots, over one connection."""
    session = await connect(ConnectOptions(HOST, port, f"announce-{topics.fleet}"))
    now_ms = time.time_ns() // 1_000_000
    caps = Caps(EPOCH, "0", "x86_64", "CPUExecutionProvider", "0", threads=1, slots=1, consent_version=1)
    snapshot = Telemetry(EPOCH, 0, now_ms, snapshot=True, signals=READY)
    told = [
        (VehicleChannel.STATE, STATE.encode(State(online=True, epoch=EPOCH, ts_ms=now_ms)), STATE.content_type, True),
        (VehicleChannel.CAPS, CAPS.encode(caps), CAPS.content_type, True),
        (VehicleChannel.TELE, TELEMETRY.encode(snapshot), TELEMETRY.content_type, False),
    ]
    answers = []
    for vehicle in vehicles:
        for channel, payload, content_type, retain in told:
            await session.drain()
            topic = topics.vehicle(vehicle, channel)
            answers.append(session.publish_soon(topic, payload, retain=retain, content_type=content_type))
    await asyncio.gather(*answers)
    await session.close()


async def send_deltas(port: int, topics: FleetTopics, vehicles: Sequence[str]) -> None:
    templates = [Template(topics.vehicle(vehicle, VehicleChannel.TELE)) for vehicle in vehicles]
    senders = [Sender(f"load-{topics.fleet}-{n}", templates[n::CONNECTIONS]) for n in range(CONNECTIONS)]
    loop = asyncio.get_running_loop()
    for sender in senders:
        await loop.create_connection(lambda sender=sender: sender, HOST, port)  # type: ignore[misc]
        await sender.opened.wait()
    say(ready=True, payload_bytes=templates[0].payload_bytes)
    speaking = asyncio.create_task(_speak(senders), name="speak")
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        allowed = json.loads(line)["allowed"]
        for sender in senders:
            sender.allowed = allowed // CONNECTIONS
            sender.send()
    speaking.cancel()


async def _speak(senders: Sequence[Sender]) -> None:
    while True:
        await asyncio.sleep(_SAY_EVERY_S)
        say(
            sent=sum(sender.sent for sender in senders),
            acknowledged=sum(sender.acknowledged for sender in senders),
            refused=sum(sender.refused for sender in senders),
        )


async def run(port: int, fleet: str, count: int, kind: str) -> None:
    topics = FleetTopics(fleet)
    vehicles = [f"car-{number}" for number in range(count)]
    await announce(port, topics, vehicles)
    if kind == "deltas":
        await send_deltas(port, topics, vehicles)
    else:
        say(ready=True)


def main() -> None:
    port, fleet, count, kind = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(int(port), fleet, int(count), kind))


if __name__ == "__main__":
    main()
