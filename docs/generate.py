"""Writes what programs read, from the code, by `make docs`: asyncapi.yaml and the schemas of policies and tariff files.

Only puts together what the code says: names, bounds and descriptions stand there and nowhere else.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from coordinator.rules.tariff import TariffDocument
from fleet_wire import codec, messages, policy
from fleet_wire.codec import MessageKind
from fleet_wire.topics import FleetTopics, VehicleChannel

DOCUMENT = Path(__file__).with_name("asyncapi.yaml")
POLICY_SCHEMA = Path(__file__).with_name("owner-policy.schema.json")
TARIFF_SCHEMA = Path(__file__).with_name("tariff.schema.json")

_TOPICS = FleetTopics("fleet")
_PARAMETERS = {
    "fleet": "Id of the fleet: 1 to 64 of A-Z a-z 0-9 _ -",
    "vehicle": "Id of the vehicle, which is its MQTT client id and its certificate's common name; never a VIN",
    "job": "Id of the job",
    "coordinator": "Id of the coordinator, which is its MQTT client id",
}
_INTRODUCTION = """\
Seen from a vehicle's agent: it sends what the operations with `action: send` say and receives the others.
Payloads are MessagePack; the schemas describe the decoded value. Maps have string keys; unknown ones are ignored.
Where a schema says `format: binary`, the value is MessagePack bin. A message's headers are its MQTT user properties.
docs/wire.md has the rules that no schema can say.
"""
_TRACED = (codec.TASK, codec.RESULT)
_TRACE_PROPERTIES = {
    "title": "TraceProperties",
    "description": "The W3C trace that the message belongs to, level 1. A malformed one is ignored and harms nothing.",
    "type": "object",
    "properties": {
        "traceparent": {
            "description": "The sender's span; at most one. A later version is read as far as this one goes.",
            "type": "string",
            "pattern": "^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$",
        },
        "tracestate": {
            "description": "What the client sent, carried on as it came; at most 32 members.",
            "type": "string",
            "maxLength": 512,
        },
    },
    "dependencies": {"tracestate": ["traceparent"]},
}


@dataclass(frozen=True)
class Channel:
    """A topic as the document shows it: who sends what on it, and how."""

    name: str
    topic: str
    action: str
    kind: MessageKind[Any]
    structs: tuple[type[msgspec.Struct], ...]
    retain: bool
    summary: str


def _vehicle_topic(channel: VehicleChannel) -> str:
    return _TOPICS.vehicle("{vehicle}", channel).replace("/fleet/", "/{fleet}/")


CHANNELS = (
    Channel(
        "vehicleState",
        _vehicle_topic(VehicleChannel.STATE),
        "send",
        codec.STATE,
        (messages.State,),
        True,
        "Birth after every CONNECT; the same topic is that of the Will.",
    ),
    Channel(
        "vehicleCaps",
        _vehicle_topic(VehicleChannel.CAPS),
        "send",
        codec.CAPS,
        (messages.Caps,),
        True,
        "What the vehicle's computer is and holds; after every CONNECT and on change.",
    ),
    Channel(
        "vehicleTelemetry",
        _vehicle_topic(VehicleChannel.TELE),
        "send",
        codec.TELEMETRY,
        (messages.Telemetry,),
        False,
        "A snapshot of all signals or a delta.",
    ),
    Channel(
        "vehicleBeat",
        _vehicle_topic(VehicleChannel.BEAT),
        "send",
        codec.BEAT,
        (messages.Beat,),
        False,
        "A sign of life: after every CONNECT, and again and again while the vehicle holds leases.",
    ),
    Channel(
        "vehicleTask",
        _vehicle_topic(VehicleChannel.TASK),
        "receive",
        codec.TASK,
        (messages.Task,),
        False,
        "Leases on chunks of a job.",
    ),
    Channel(
        "vehicleControl",
        _vehicle_topic(VehicleChannel.CTL),
        "receive",
        codec.CONTROL,
        (messages.Cancel, messages.Drain, messages.Rebirth, messages.Notice),
        False,
        "What the coordinator asks besides work.",
    ),
    Channel(
        "vehiclePolicy",
        _vehicle_topic(VehicleChannel.POLICY),
        "receive",
        codec.POLICY,
        (policy.OwnerPolicy,),
        True,
        "The owner's policy and consent; the vehicle refuses tasks that rely on another version.",
    ),
    Channel(
        "jobResult",
        _TOPICS.result("{job}", "{vehicle}").replace("/fleet/", "/{fleet}/"),
        "send",
        codec.RESULT,
        (messages.Rows, messages.Refusal, messages.Failure),
        False,
        "The answer to a task: rows as they are ready, leases given back, or an error of the model.",
    ),
    Channel(
        "coordinatorState",
        _TOPICS.coordinator("{coordinator}").replace("/fleet/", "/{fleet}/"),
        "receive",
        codec.COORDINATOR,
        (messages.CoordinatorState,),
        True,
        "Birth and Will of the coordinator, with the address of its HTTP interface.",
    ),
)


def asyncapi() -> dict[str, Any]:
    """The whole document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Idlewheel fleet protocol",
            "version": f"{codec.VERSION}.0.0",
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0"},
        },
        "servers": {
            "broker": {
                "host": "{host}:{port}",
                "protocol": "mqtt",
                "protocolVersion": "5.0",
                "description": "The fleet's MQTT 5 broker; with TLS on a network, without it on loopback only.",
                "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "1883"}},
            }
        },
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {_operation_name(channel): _operation(channel) for channel in CHANNELS if channel.structs},
        "components": {
            "messages": {
                struct.__name__: _message(channel.kind, struct) for channel in CHANNELS for struct in channel.structs
            },
            "schemas": _schemas(),
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": channel.topic,
        "description": channel.summary,
        "parameters": {
            name: {"description": text} for name, text in _PARAMETERS.items() if f"{{{name}}}" in channel.topic
        },
        "messages": {
            struct.__name__: {"$ref": f"#/components/messages/{struct.__name__}"} for struct in channel.structs
        },
    }


def _operation_name(channel: Channel) -> str:
    return channel.action + channel.name[0].upper() + channel.name[1:]


def _operation(channel: Channel) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": channel.action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": channel.summary,
        "messages": [{"$ref": f"#/channels/{channel.name}/messages/{struct.__name__}"} for struct in channel.structs],
        "bindings": {"mqtt": {"qos": 1, "retain": channel.retain, "bindingVersion": "0.2.0"}},
    }
    if channel.name == "vehicleTask":
        operation["reply"] = {
            "address": {"description": "The Response Topic of the task", "location": "$message.header#/responseTopic"},
            "channel": {"$ref": "#/channels/jobResult"},
        }
    return operation


def _message(kind: MessageKind[Any], struct: type[msgspec.Struct]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": struct.__name__,
        "contentType": kind.content_type,
        "summary": msgspec.json.schema(struct)["$defs"][struct.__name__]["description"].splitlines()[0],
        "payload": {"$ref": f"#/components/schemas/{struct.__name__}"},
    }
    if kind in _TRACED:
        message["headers"] = {"$ref": "#/components/schemas/TraceProperties"}
    if kind is codec.TASK:
        first_chunk = {"description": "The first lease's chunk, big-endian", "type": "string", "format": "binary"}
        answer_on = next(channel.topic for channel in CHANNELS if channel.kind is codec.RESULT)
        binding = {"responseTopic": answer_on, "correlationData": first_chunk | {"minLength": 8, "maxLength": 8}}
        message["bindings"] = {"mqtt": binding | {"bindingVersion": "0.2.0"}}
    return message


def _schemas() -> dict[str, Any]:
    structs = [struct for channel in CHANNELS for struct in channel.structs]
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    schemas["TraceProperties"] = _TRACE_PROPERTIES
    return {name: _as_draft_7(_tidy(schema)) for name, schema in sorted(schemas.items())}


def _tidy(schema: Any) -> Any:
    """Descriptions without the indentation of docstrings, which not every Python keeps."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidy(value) for key, value in schema.items()}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = inspect.cleandoc(tidy["description"])
    return tidy


def _as_draft_7(schema: Any) -> Any:
    """AsyncAPI's schemas are of draft 7: arrays by position go by another name, and bytes are MessagePack's own."""
    if isinstance(schema, list):
        return [_as_draft_7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "contentEncoding" in schema:
        return {"type": "string", "format": "binary"}
    positions = schema.get("prefixItems")
    kept = {key: value for key, value in schema.items() if key not in ("prefixItems", "items")}
    kept = {key: value if key == "default" else _as_draft_7(value) for key, value in kept.items()}
    if positions is not None:
        kept["items"] = _as_draft_7(positions)
    elif "items" in schema:
        kept["items"] = _as_draft_7(schema["items"])
    return kept


def text() -> str:
    """The document as it lies in the file."""
    body = yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=110)
    return f"# Generated from fleet_wire by `make docs`; change it there.\n{body}"


def policy_schema_text() -> str:
    """The JSON Schema of an owner's policy as it lies in the file."""
    return _schema_text("Owner's policy of a vehicle", policy.OwnerPolicy)


def tariff_schema_text() -> str:
    """The JSON Schema of a tariff file as it lies in the file."""
    return _schema_text("What energy costs where and when", TariffDocument)


def _schema_text(title: str, struct: type[msgspec.Struct]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return json.dumps(schema | _tidy(msgspec.json.schema(struct)), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text(), encoding="utf-8")
    POLICY_SCHEMA.write_text(policy_schema_text(), encoding="utf-8")
    TARIFF_SCHEMA.write_text(tariff_schema_text(), encoding="utf-8")
