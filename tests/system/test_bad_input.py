"""What nobody should send, to a real coordinator: each refusal is named, counted and told, and nothing else changes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import numpy as np
import pytest

from fleet_link import ConnectOptions, Session, connect
from fleet_wire.codec import CAPS, CONTROL, STATE, TELEMETRY
from fleet_wire.messages import Caps, Notice, State
from fleet_wire.signals import SIGNAL_PATHS
from fleet_wire.topics import FleetTopics, VehicleChannel
from idlewheel.brokers import Broker
from tests.influx import InfluxProcess
from tests.system.deployment import DEADLINE_S, Deployment, deployment, until
from tests.system.test_large_and_hostile import doubling

TOPICS = FleetTopics("test")
FAR_MS = 1 << 53
CHARGE, PLUGGED, BYTES, DEPARTURE = (
    SIGNAL_PATHS[name] for name in ("charge_percent", "plugged", "link_month_bytes", "departure_ms")
)


def document(epoch: Any = 1, seq: Any = 0, ts_ms: Any = None, signals: Any = None, snapshot: Any = True) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    return msgspec.msgpack.encode(
        {
            "epoch": epoch,
            "seq": seq,
            "ts_ms": now_ms if ts_ms is None else ts_ms,
            "snapshot": snapshot,
            "signals": {CHARGE: 50.0} if signals is None else signals,
        }
    )


MALFORMED: dict[str, bytes] = {
    "nothing at all": b"",
    "rubbish of 100 kB": Random(1).randbytes(100_000),
    "text of 100 kB": b"\xdb\x00\x01\x86\xa0" + b"x" * 100_000,
    "nested without end": b"\x81\xa7signals" * 10_000 + b"\xc0",
    "cut off": document()[:-1],
    "more behind it": document() + b"\x00",
    "a list": b"\x90",
    "a charge in words": document(signals={CHARGE: "50"}),
    "a flag that is a number": document(signals={PLUGGED: 1}),
    "a sequence number in words": document(seq="1"),
    "a sequence number of 2^63": document(seq=1 << 63),
    "a sequence number below zero": document(seq=-1),
    "an epoch of 2^64-1": document(epoch=(1 << 64) - 1),
    "no epoch": msgspec.msgpack.encode({"seq": 0, "ts_ms": 0, "snapshot": True, "signals": {}}),
    "a time with a fraction": document(ts_ms=1.5),
    "a time just too far": document(ts_ms=FAR_MS + 1),
    "a time before 1970": document(ts_ms=-1),
    "bytes of 2^63": document(signals={BYTES: 1 << 63}),
    "a departure of 2^53+1": document(signals={DEPARTURE: FAR_MS + 1}),
    "a charge that is no number": document(signals={CHARGE: float("nan")}),
    "a charge without end": document(signals={CHARGE: float("inf")}),
    "a charge below zero": document(signals={CHARGE: -0.001}),
    "signals in a list": document(signals=[50.0]),
    "a snapshot in words": document(snapshot="yes"),
}


async def say(session: Session, vehicle: str, *payloads: bytes) -> None:
    for payload in payloads:
        topic = TOPICS.vehicle(vehicle, VehicleChannel.TELE)
        await session.publish(topic, payload, content_type=TELEMETRY.content_type)


async def be_there(session: Session, vehicle: str, epoch: int, *, online: bool = True) -> None:
    topic = TOPICS.vehicle(vehicle, VehicleChannel.STATE)
    await session.publish(topic, STATE.encode(State(online, epoch)), retain=True, content_type=STATE.content_type)


async def notices(session: Session, counted: Counter[str]) -> None:
    while True:
        for message in await session.receive():
            control = CONTROL.decode(message.payload, message.content_type)
            assert isinstance(control, Notice)
            counted[control.fault] += 1
            session.acknowledge([message])


def kept(server: InfluxProcess, database: str) -> dict[str, list[tuple[int, int, int]]]:
    """Epoch, sequence number and time of every document in the server, by vehicle."""
    found = server.query("SELECT epoch, seq, ts_ms FROM vehicle_state, vehicle_state_late GROUP BY vehicle", database)
    documents: dict[str, list[tuple[int, int, int]]] = {}
    for series in found:
        documents.setdefault(series["tags"]["vehicle"], []).extend(  # type: ignore[index]
            tuple(map(int, row[1:]))  # type: ignore[misc]
            for row in series["values"]  # type: ignore[attr-defined]
        )
    return documents


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_telemetry_that_cannot_be_is_refused_by_its_reason_and_told(
    broker: Broker, influx_of: Callable[[str], InfluxProcess], tmp_path: Path
) -> None:
    server, database = influx_of("1.6.7"), f"bad_{uuid4().hex}"
    rows = np.random.default_rng(3).random((300, 16), dtype=np.float32)
    async with deployment(broker, tmp_path, cars=1, store=server.url(database)) as running:
        liar = await connect(ConnectOptions(broker.host, broker.port, "liar"))
        told: Counter[str] = Counter()
        await liar.subscribe([(TOPICS.vehicle("liar", VehicleChannel.CTL), 1)])
        listening = asyncio.create_task(notices(liar, told))
        await say(liar, "liar", *MALFORMED.values())
        await until(lambda: told["malformed"] == len(MALFORMED), "every refusal is told")

        car = await connect(ConnectOptions(broker.host, broker.port, "publisher"))
        await be_there(car, "steady", 3)
        in_order = [document(3, seq) for seq in range(3)]
        repeated, older, of_before = document(3, 2), document(3, 1), document(2, 50)
        await say(car, "steady", *in_order, repeated, older, of_before, document(3, 3, snapshot=False))
        await be_there(car, "steady", 2)  # an epoch that goes back, and a Will that comes late
        await be_there(car, "steady", 2, online=False)
        for vehicle, ts_ms in (("long-ago", 0), ("far-ahead", FAR_MS)):
            await be_there(car, vehicle, 1)
            caps = Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 4)
            topic = TOPICS.vehicle(vehicle, VehicleChannel.CAPS)
            await car.publish(topic, CAPS.encode(caps), content_type=CAPS.content_type)
            await say(car, vehicle, document(ts_ms=ts_ms))

        def codes() -> dict[str, str]:
            return {view.id: (view.reason or "").partition(":")[0] for view in running.client.vehicles()}

        await until(
            lambda: codes().get("far-ahead") == codes().get("long-ago") == "clock_wrong", "wrong clocks are noticed"
        )
        assert codes()["steady"] == "caps_unknown"  # it is not thought to be offline
        assert "liar" not in codes()
        assert running.client.health().refusals == {
            "message_malformed": len(MALFORMED),
            "telemetry_out_of_order": 3,
            "state_of_another_epoch": 2,
            "telemetry_clock_wrong": 2,
        }
        everything = {"steady": {(3, 0), (3, 1), (3, 2), (3, 3)}, "long-ago": {(1, 0)}, "far-ahead": {(1, 0)}}

        def is_kept() -> bool:
            found = kept(server, database)
            return all({each[:2] for each in found.get(car, [])} >= everything[car] for car in everything)

        await until(is_kept, "what was taken is in the server")
        found = kept(server, database)
        assert {car: {each[2] for each in found[car]} for car in ("long-ago", "far-ahead")} == {
            "long-ago": {0},
            "far-ahead": {FAR_MS},
        }
        assert "liar" not in found
        assert not [name for name in running.client.health().counters if "store" in name and "refused" in name]

        job = await asyncio.to_thread(running.client.submit, doubling(16), rows)
        np.testing.assert_array_equal((await asyncio.to_thread(job.result, DEADLINE_S))["y"], rows * 2)
        listening.cancel()
        await liar.close()
        await car.close()


AGREED: dict[str, Any] = {"owner": "ada", "purposes": ["general"]}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"purposes": []}, "names no purpose"),
    ({"purposes": ["general", "general"]}, "named twice"),
    ({"revoked": True}, "revoked and still names purposes"),
    ({"link": {"month_bytes": 0}}, "no byte a month"),
    ({"charge_floor_percent": 90, "departure_charge_percent": 80}, "promises 80 % for the departure and keeps"),
    ({"hours": [{"days": [1, 1], "start_minute": 0, "stop_minute": 60}]}, "name a day twice"),
    ({"timezone": "Mars/Olympus"}, "no timezone"),
]  # fmt: skip
UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"hours": [{"days": [], "start_minute": 0, "stop_minute": 60}]}, "days"),
    ({"hours": [{"days": [0], "start_minute": 0, "stop_minute": 61}]}, "stop_minute"),
    ({"hours": "always"}, "hours"),
    ({"price_ceiling_micro_per_kwh": -1}, "price_ceiling_micro_per_kwh"),
    ({"price_ceiling_micro_per_kwh": 0.25}, "price_ceiling_micro_per_kwh"),
    ({"price_ceiling_micro_per_kwh": "250000"}, "price_ceiling_micro_per_kwh"),
    ({"price_ceiling_micro_per_kwh": 1 << 63}, "price_ceiling_micro_per_kwh"),
    ({"least_pay_micro_per_h": 1 << 64}, "least_pay_micro_per_h"),
    ({"charge_floor_percent": 100.5}, "charge_floor_percent"),
    ({"charge_floor_percent": "half"}, "charge_floor_percent"),
    ({"power_cap_w": 0}, "power_cap_w"),
    ({"threads": 0}, "threads"),
    ({"niceness": 20}, "niceness"),
    ({"memory_bytes": 1 << 20}, "memory_bytes"),
    ({"charge_floor": 30}, "charge_floor"),
    ({"owner": ""}, "owner"),
]  # fmt: skip


@pytest.fixture
async def alone(broker: Broker, tmp_path: Path) -> AsyncIterator[Deployment]:
    running = Deployment(broker, tmp_path)
    await running.start_coordinator(consent=False)
    yield running
    await running.close()


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_a_policy_that_contradicts_itself_is_refused_and_the_one_before_stands(alone: Deployment) -> None:
    async with httpx.AsyncClient(base_url=alone.url, trust_env=False) as http:
        where = "/v1/vehicles/car-1/policy"
        assert (await http.put(where, params={"by": "ada"}, json=AGREED)).status_code == 200
        for changes, words in [*CONTRADICTIONS, *UNREADABLE]:
            answer = await http.put(where, params={"by": "ada"}, json={**AGREED, **changes})
            assert answer.status_code == 422, (changes, answer.text)
            detail = answer.json()["detail"]
            assert words in detail, changes
            assert "\n" not in detail
        for text in ('{"owner": "ada", "purposes": ["general"], "charge_floor_percent": NaN}', '{"owner": "ada"', ""):
            answer = await http.put(where, params={"by": "ada"}, content=text)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_json"), text
        refusals = (await http.get("/v1/health")).json()["refusals"]
        assert refusals == {
            "policy_contradicts": len(CONTRADICTIONS),
            "invalid": len(UNREADABLE),
            "bad_json": 3,
        }
        history = (await http.get(f"{where}/history")).json()
        assert [(each["policy"]["version"], each["policy"]["charge_floor_percent"]) for each in history] == [(1, 30.0)]
