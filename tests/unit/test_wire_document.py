"""docs/wire.md and docs/asyncapi.yaml say what the code does: every topic, message, field, bound and example."""

import importlib.util
import re
from enum import Enum
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from msgspec import inspect
from msgspec.structs import replace

from fleet_wire import api, codec, messages, policy
from fleet_wire.bundle import PREFIX_BYTES, BundleEntry, decode_bundle
from fleet_wire.codec import MessageKind
from fleet_wire.errors import WireFault
from fleet_wire.messages import BlobRef, Lease, Rows, Span, State, Task, Telemetry
from fleet_wire.signals import DEAD_BANDS, Signals
from fleet_wire.tensors import DTYPES, Tensor
from fleet_wire.topics import FleetTopics, VehicleChannel
from fleet_wire.trace import new_trace, parse_trace

DOCS = Path(__file__).parents[2] / "docs"
WIRE = (DOCS / "wire.md").read_text(encoding="utf-8")
NAMED_PATTERNS = {
    "^[A-Za-z0-9_-]{1,64}$(?!\\n)": "id",
    "^[0-9a-f]{64}$(?!\\n)": "digest",
    "^/": "path",
    "^[a-z0-9-]{1,32}$(?!\\n)": "purpose",
}


def structs_of(*modules: ModuleType) -> list[type[msgspec.Struct]]:
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return [each for each in found if isinstance(each, type) and issubclass(each, msgspec.Struct)]


def label(kind: inspect.Type) -> str:  # noqa: C901 - one case a kind of type
    match kind:
        case inspect.Metadata():
            return label(kind.type)
        case inspect.BoolType():
            return "bool"
        case inspect.IntType() | inspect.FloatType():
            return number(kind)
        case inspect.StrType(pattern=str(pattern)):
            return NAMED_PATTERNS[pattern]
        case inspect.StrType(max_length=length):
            return "str" if length is None else f"str, at most {length}"
        case inspect.NoneType():
            return "nil"
        case inspect.EnumType():
            return kind.cls.__name__
        case inspect.StructType():
            return kind.cls.__name__
        case inspect.ListType() | inspect.VarTupleType():
            least, most = kind.min_length or 0, kind.max_length
            return f"array of {label(kind.item_type)}" + ("" if most is None else f", {least} to {most}")
        case inspect.UnionType():
            return " or ".join(label(each) for each in kind.types)
    raise AssertionError(kind)


def number(kind: inspect.IntType | inspect.FloatType) -> str:
    name = "int" if isinstance(kind, inspect.IntType) else "float"
    least = f"above {power(kind.gt)}" if kind.gt is not None else None if kind.ge is None else power(kind.ge)
    most = kind.lt - 1 if kind.lt is not None else kind.le
    if least is None or most is None:
        return name
    steps = "" if kind.multiple_of is None else f", a multiple of {kind.multiple_of:g}"
    return f"{name} {least} to {power(most)}{steps}"


def power(value: float) -> str:
    return {2**53: "2^53", 1e12: "1e12", 1e6: "1e6", -1e6: "-1e6", 1e5: "1e5", 1e4: "1e4", 256e6: "256000000"}.get(
        value, f"{value:g}"
    )


def field_row(field: inspect.Field) -> str:
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if field.required:
        shown = "required"
    elif isinstance(default, msgspec.Struct):
        shown = type(default).__name__
    else:
        shown = msgspec.json.encode(default).decode().replace("null", "nil")
    return f"| `{field.encode_name}` | {label(field.type)} | {shown} |"


def fields_of(struct: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return info.fields


def section(name: str) -> str:
    """The text under the heading of that name, up to the next heading of any rank."""
    found = re.search(rf"^#+ `?{re.escape(name)}`?$\n(.*?)(?=^#|\Z)", WIRE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/wire.md has no heading {name}"
    return found[1]


@pytest.mark.parametrize("struct", structs_of(messages, policy), ids=lambda struct: struct.__name__)
def test_every_field_of_every_message_stands_in_the_document(struct: type[msgspec.Struct]) -> None:
    said = section(struct.__name__)
    rows = [line for line in said.splitlines() if line.startswith("| `")]
    assert [row.rpartition(" | ")[0] + " |" for row in rows] == [field_row(field) for field in fields_of(struct)]
    tag = struct.__struct_config__.tag
    assert tag is None or f'`type` "{tag}"' in said


@pytest.mark.parametrize("struct", structs_of(api), ids=lambda struct: struct.__name__)
def test_every_field_of_the_http_interface_stands_in_the_document(struct: type[msgspec.Struct]) -> None:
    said = section(struct.__name__)
    assert [name for name in struct.__struct_encode_fields__ if f"`{name}`" not in said] == []


def test_the_signals_stand_in_the_document_with_their_ranges_and_dead_bands() -> None:
    said = section("Signals")
    for field in fields_of(Signals):
        band = DEAD_BANDS.get(field.name)
        change = "any" if band is None else power(band)
        assert f"| `{field.encode_name}` | {label(field.type)} | {change} |" in said


def test_the_topics_stand_in_the_document() -> None:
    topics = FleetTopics("FLEET")
    names = [topics.vehicle("VEHICLE", channel) for channel in VehicleChannel]
    names += [topics.result("JOB", "VEHICLE"), topics.coordinator("COORDINATOR")]
    for name in names:
        written = re.sub(r"[A-Z]+", lambda word: "{" + word[0][0].lower() + "}", name)
        assert f"`{written}`" in section("Topics")


@pytest.mark.parametrize("enum", [messages.RefusalReason, WireFault])
def test_every_reason_stands_in_the_document(enum: type[Enum]) -> None:
    said = section(enum.__name__)
    assert [each.value for each in enum if f"`{each.value}`" not in said] == []


def test_every_element_type_and_content_type_stands_in_the_document() -> None:
    said = section("Tensor")
    assert [name for name in DTYPES if f"`{name}`" not in said] == []
    kinds = [value for value in vars(codec).values() if isinstance(value, MessageKind)]
    assert [kind.content_type for kind in kinds if f"`{kind.content_type}`" not in WIRE] == []


def test_the_bundle_is_described() -> None:
    said = section("Bundles")
    assert [name for name in BundleEntry.__struct_fields__ if f"`{name}`" not in said] == []
    assert f"{PREFIX_BYTES} bytes" in said


ONE_ROW = Tensor("x", "float", (2, 2), memoryview(bytes.fromhex("0000803f 00000040 00004040 00008040")))
ANSWER = Tensor("label", "string", (2,), memoryview(bytes.fromhex("00000000 03000000 04000000") + b"cat7"))
EXAMPLES: dict[str, tuple[MessageKind[Any], Any]] = {
    "birth": (codec.STATE, State(online=True, epoch=7, ts_ms=1_760_000_000_000)),
    "delta": (
        codec.TELEMETRY,
        Telemetry(7, 1, 1_760_000_000_500, snapshot=False, signals=Signals(charge_percent=71.5), vss="6.0"),
    ),
    "task": (
        codec.TASK,
        Task(
            job="j1",
            epoch=7,
            model=BlobRef("ab" * 32, 1000, "/v1/blobs/" + "ab" * 32),
            deadline_ms=1_760_000_060_000,
            consent_version=1,
            leases=[Lease(0, 10, 12)],
            purpose="general",
            energy_micro_per_kwh=300_000,
            pay_micro_per_h=20_000,
            inputs=[ONE_ROW],
        ),
    ),
    "rows": (codec.RESULT, Rows("j1", 7, [Span(0, 10, 12)], [ANSWER], compute_ms=1.5, energy_mwh=0)),
}


def hex_block(name: str) -> bytes:
    found = re.search(rf"```text {name}\n(.*?)```", WIRE, re.DOTALL)
    assert found is not None, f"docs/wire.md has no example {name}"
    return bytes.fromhex("".join(line.partition("  ")[0] for line in found[1].splitlines()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_the_code_reads_and_writes(name: str) -> None:
    kind, message = EXAMPLES[name]
    payload = hex_block(name)
    assert kind.encode(message).hex(" ") == payload.hex(" ")
    assert kind.decode(payload, kind.content_type) == message


def test_the_example_of_a_bundle_is_what_the_code_reads() -> None:
    arrays = decode_bundle(hex_block("bundle"))
    assert {name: array.tolist() for name, array in arrays.items()} == {"x": [[1.0, 2.0]]}


# AsyncAPI -----------------------------------------------------------------------------------------------------------


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ASYNCAPI = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))


def test_the_asyncapi_document_is_the_generated_one() -> None:
    assert (DOCS / "asyncapi.yaml").read_text(encoding="utf-8") == generator().text(), "run `make docs`"


def test_the_schema_of_the_policy_is_the_generated_one() -> None:
    written = (DOCS / "owner-policy.schema.json").read_text(encoding="utf-8")
    assert written == generator().policy_schema_text(), "run `make docs`"


def test_the_schema_of_tariff_files_is_the_generated_one() -> None:
    written = (DOCS / "tariff.schema.json").read_text(encoding="utf-8")
    assert written == generator().tariff_schema_text(), "run `make docs`"


def test_every_reference_in_it_leads_somewhere() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                target = ASYNCAPI
                for step in node["$ref"].removeprefix("#/").split("/"):
                    target = target[step]
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(ASYNCAPI)


def test_every_message_and_channel_is_in_it() -> None:
    said = {name.rpartition("/")[2] for channel in ASYNCAPI["channels"].values() for name in channel["messages"]}
    parts = {"BlobRef", "Lease", "Span", "Hours", "LinkRules"}
    assert said == {struct.__name__ for struct in structs_of(messages, policy)} - parts
    addresses = {channel["address"].rpartition("/")[2] for channel in ASYNCAPI["channels"].values()}
    assert {channel.value for channel in VehicleChannel} <= addresses


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_schemas_take_the_examples(name: str) -> None:
    kind, message = EXAMPLES[name]
    decoded = msgspec.msgpack.decode(kind.encode(message))
    plain = msgspec.to_builtins(decoded)  # bytes become text, as `format: binary` stands for
    schema = {"$ref": f"#/components/schemas/{type(message).__name__}", "components": ASYNCAPI["components"]}
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(plain)
    assert not validator.is_valid(plain | {"epoch": -1})


def test_tasks_and_their_answers_carry_their_trace_in_user_properties() -> None:
    said = {name: message.get("headers") for name, message in ASYNCAPI["components"]["messages"].items()}
    traced = {name for name, headers in said.items() if headers == {"$ref": "#/components/schemas/TraceProperties"}}
    assert traced == {"Task", "Rows", "Refusal", "Failure"}
    assert {said[name] for name in said.keys() - traced} == {None}
    validator = jsonschema.Draft7Validator(ASYNCAPI["components"]["schemas"]["TraceProperties"])
    trace = new_trace(Random(1))
    for state, takes in (("", True), ("a=b", True), ("a=" + "b" * 511, False)):
        properties = dict(replace(trace, state=state).properties)
        assert validator.is_valid(properties) == takes
        assert (parse_trace(properties["traceparent"], state).state == state) == takes
    assert validator.is_valid({})
    assert not validator.is_valid({"tracestate": "a=b"})
    for malformed in (trace.traceparent.upper(), f"00-{'0' * 32}-{trace.span_id}-01"):
        assert not validator.is_valid({"traceparent": malformed})
        with pytest.raises(ValueError, match="malformed"):
            parse_trace(malformed)
