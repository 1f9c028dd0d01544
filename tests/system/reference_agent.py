"""A vehicle agent written from docs/wire.md alone, on aiomqtt: it shares no code with ours, so it tests the document.

Run as `python -m tests.system.reference_agent HOST PORT FLEET VEHICLE`. It is always plugged in, cool and never leaves,
and has no disk: its owner's policy comes with every connection, because it is retained.
"""

import asyncio
import hashlib
import platform
import sys
import time
from typing import Any

import aiomqtt
import httpx
import msgspec
import numpy as np
import onnxruntime
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TYPES = {"float": "<f4", "double": "<f8", "int32": "<i4", "int64": "<i8", "bool": "?", "uint8": "u1"}
NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
CHARGING = "Vehicle.Powertrain.TractionBattery.Charging."
SNAPSHOT = {
    "Vehicle.IsMoving": False,
    f"{CHARGING}ChargingPort.AnyPosition.IsChargingCableConnected": True,
    f"{CHARGING}IsCharging": True,
    "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current": 70.0,
    "Vehicle.Powertrain.TractionBattery.Temperature.Average": 20.0,
    "Vehicle.Powertrain.TractionBattery.CurrentPower": 11_000.0,
    "Vehicle.Powertrain.TractionBattery.NetCapacity": 60.0,
    "Vehicle.Cabin.HVAC.AmbientAirTemperature": 15.0,
    "Vehicle.Idlewheel.Link.IsMetered": False,
    "Vehicle.Idlewheel.Link.Throughput": 50.0,
    "Vehicle.Idlewheel.Link.MonthBytes": 0,
    "Vehicle.Idlewheel.Compute.Temperature": 40.0,
    "Vehicle.Idlewheel.Compute.Power": 0.0,
    "Vehicle.Idlewheel.Compute.AwakePower": 260.0,
    "Vehicle.Idlewheel.Compute.FreeSlots": 16,
    "Vehicle.Idlewheel.Owner.IsOptedIn": True,
    "Vehicle.Idlewheel.Blocker.IsUpdatePending": False,
    "Vehicle.Idlewheel.Blocker.IsCampMode": False,
    "Vehicle.Idlewheel.Blocker.IsSentryMode": False,
    "Vehicle.Idlewheel.Agent.Refusal": "",
}


def typed(kind: str) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = f"application/vnd.idlewheel.{kind}+msgpack; v=1"
    return properties


class ReferenceAgent:
    def __init__(self, fleet: str, vehicle: str) -> None:
        self.root = f"iw/v1/{fleet}"
        self.vehicle = vehicle
        self.epoch = time.time_ns() // 1_000_000
        self.seq = 0
        self.http_url = ""
        self.policy: dict[str, Any] = {"version": 0, "purposes": []}
        self.models: dict[str, onnxruntime.InferenceSession] = {}
        self.client: aiomqtt.Client

    def topic(self, channel: str) -> str:
        return f"{self.root}/veh/{self.vehicle}/{channel}"

    async def publish(self, topic: str, kind: str, message: object, *, retain: bool = False) -> None:
        payload = msgspec.msgpack.encode(message)
        await self.client.publish(topic, payload, qos=1, retain=retain, properties=typed(kind))

    async def run(self, host: str, port: int) -> None:
        will = aiomqtt.Will(
            self.topic("state"),
            msgspec.msgpack.encode({"online": False, "epoch": self.epoch}),
            qos=1,
            retain=True,
            properties=typed("state"),
        )
        async with aiomqtt.Client(
            host, port, identifier=self.vehicle, protocol=aiomqtt.ProtocolVersion.V5, will=will
        ) as self.client:
            for name in (self.topic("policy"), self.topic("task"), self.topic("ctl"), f"{self.root}/coord/+/state"):
                await self.client.subscribe(name, qos=1)
            await self.say_everything()
            async for message in self.client.messages:
                payload = msgspec.msgpack.decode(message.payload) if message.payload else None
                await self.take(str(message.topic), payload)

    async def take(self, topic: str, message: Any) -> None:
        if topic == self.topic("policy"):
            await self.agree(message or {"version": 0, "purposes": []})
        elif topic.startswith(f"{self.root}/coord/"):
            self.http_url = message["http_url"]
        elif topic == self.topic("task"):
            objection = self.objection(message)
            await (self.work(message) if objection is None else self.refuse(message, objection))
        elif message["type"] == "rebirth":
            await self.say_everything()

    async def agree(self, policy: dict[str, Any]) -> None:
        if not 0 < policy["version"] <= self.policy["version"]:
            self.policy = policy
            await self.publish(self.topic("caps"), "caps", self.caps(), retain=True)

    def objection(self, task: dict[str, Any]) -> str | None:
        if task["epoch"] != self.epoch:
            return "stale_epoch"
        if task["consent_version"] != self.policy["version"]:
            return "consent_missing"
        if task.get("purpose", "") not in self.policy["purposes"]:
            return "purpose_not_agreed"
        if task.get("energy_micro_per_kwh", 0) > (self.policy.get("price_ceiling_micro_per_kwh") or 2**53):
            return "price_too_high"
        if task.get("pay_micro_per_h", 0) < self.policy.get("least_pay_micro_per_h", 0):
            return "pay_too_low"
        return None

    async def refuse(self, task: dict[str, Any], reason: str) -> None:
        refusal = {
            "type": "refusal",
            "job": task["job"],
            "epoch": task["epoch"],
            "reason": reason,
            "chunks": [chunk for chunk, _, _ in task["leases"]],
        }
        await self.publish(f"{self.root}/job/{task['job']}/res/{self.vehicle}", "result", refusal)

    async def work(self, task: dict[str, Any]) -> None:
        session = self.models.get(task["model"]["digest"])
        if session is None:
            data = await self.fetch(task["model"])
            session = self.models[task["model"]["digest"]] = onnxruntime.InferenceSession(data)
        inputs = {name: np.frombuffer(data, TYPES[kind]).reshape(shape) for name, kind, shape, data in task["inputs"]}
        began = time.perf_counter()
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, inputs)
        answer = {
            "type": "rows",
            "job": task["job"],
            "epoch": task["epoch"],
            "spans": task["leases"],
            "outputs": [
                [name, NAMES[array.dtype], array.shape, array.tobytes()]
                for name, array in zip(names, outputs, strict=True)
            ],
            "compute_ms": (time.perf_counter() - began) * 1000,
        }
        await self.publish(f"{self.root}/job/{task['job']}/res/{self.vehicle}", "result", answer)

    async def fetch(self, ref: dict[str, Any]) -> bytes:
        async with httpx.AsyncClient() as http:
            data = (await http.get(self.http_url + ref["path"])).raise_for_status().content
        assert hashlib.sha256(data).hexdigest() == ref["digest"]
        return data

    async def say_everything(self) -> None:
        await self.publish(self.topic("state"), "state", {"online": True, "epoch": self.epoch}, retain=True)
        await self.publish(self.topic("caps"), "caps", self.caps(), retain=True)
        await self.snapshot()

    async def snapshot(self) -> None:
        self.seq += 1
        document = {
            "epoch": self.epoch,
            "seq": self.seq,
            "ts_ms": time.time_ns() // 1_000_000,
            "snapshot": True,
            "signals": SNAPSHOT,
            "vss": "6.0",
        }
        await self.publish(self.topic("tele"), "telemetry", document)

    def caps(self) -> dict[str, object]:
        return {
            "epoch": self.epoch,
            "agent_version": "reference",
            "architecture": platform.machine(),
            "execution_provider": "CPUExecutionProvider",
            "runtime_version": onnxruntime.__version__,
            "threads": 1,
            "slots": 16,
            "consent_version": self.policy["version"],
        }


if __name__ == "__main__":
    _, broker_host, broker_port, fleet_name, vehicle_id = sys.argv
    asyncio.run(ReferenceAgent(fleet_name, vehicle_id).run(broker_host, int(broker_port)))
