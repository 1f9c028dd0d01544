"""Everything that is taken is acknowledged: else the broker's window fills, and the coordinator hears nothing more."""

import time
from pathlib import Path

from fleet_link import ConnectOptions, connect
from fleet_wire.codec import CAPS, STATE, TELEMETRY
from fleet_wire.messages import Caps, State, Telemetry
from fleet_wire.signals import Signals
from idlewheel.brokers import Broker
from tests.system.deployment import deployment, until

DOCUMENTS = 3_000


async def test_telemetry_mixed_with_other_messages_never_stops(broker: Broker, tmp_path: Path) -> None:
    caps = Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 4)
    async with deployment(broker, tmp_path, cars=0) as running:
        car = await connect(ConnectOptions(broker.host, broker.port, "car"))
        root = "iw/v1/test/veh/car"
        for seq in range(1, DOCUMENTS + 1):
            now_ms = time.time_ns() // 1_000_000
            document = Telemetry(1, seq, now_ms, snapshot=False, signals=Signals(charge_percent=float(seq % 100)))
            for topic, kind, message in (
                ("tele", TELEMETRY, document),
                ("state", STATE, State(online=True, epoch=1)),
                ("caps", CAPS, caps),
                ("tele", TELEMETRY, {"not": "telemetry"}),
            ):
                await car.drain()
                car.publish_soon(f"{root}/{topic}", kind.encode(message), content_type=kind.content_type)  # type: ignore[attr-defined]
        await until(
            lambda: running.client.health().counters.get("telemetry_applied") == DOCUMENTS,
            "all telemetry is in the fleet view",
        )
        assert running.client.health().refusals == {"message_malformed": DOCUMENTS}
        await car.close()
