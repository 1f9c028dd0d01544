"""Messages cross the wire unchanged; anything else is refused with its reason, never half understood."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_wire import codec
from fleet_wire.codec import MessageKind
from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import (
    BlobRef,
    Cancel,
    Caps,
    CoordinatorState,
    Drain,
    Failure,
    Lease,
    Notice,
    Rebirth,
    Refusal,
    RefusalReason,
    Rows,
    Span,
    State,
    Task,
    Telemetry,
)
from fleet_wire.signals import Signals
from fleet_wire.tensors import encode_tensors
from tests.property.owner_policies import owner_policies

KINDS: dict[str, MessageKind[Any]] = {
    kind.name: kind
    for kind in (
        codec.STATE,
        codec.CAPS,
        codec.TELEMETRY,
        codec.TASK,
        codec.CONTROL,
        codec.POLICY,
        codec.RESULT,
        codec.COORDINATOR,
    )
}

counts = st.integers(0, 2**53)
identifiers = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
chunks = st.lists(counts, max_size=4)
spans = st.lists(st.builds(Span, counts, counts, counts), min_size=1, max_size=4)
leases = st.lists(st.builds(Lease, counts, counts, counts), min_size=1, max_size=4)
blob_refs = st.builds(BlobRef, digests, counts, st.just("/v1/blobs/x"))
tensors = st.lists(st.integers(-9, 9), max_size=6).map(
    lambda values: encode_tensors({"x": np.array(values, dtype=np.int32), "s": np.array(["é"] * len(values), object)})
)
optional_tensors = st.none() | tensors
optional_refs = st.none() | blob_refs
percents = st.floats(0, 100)

MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "state": st.builds(State, st.booleans(), counts, counts),
    "caps": st.builds(
        Caps,
        epoch=counts,
        agent_version=st.text(max_size=64),
        architecture=st.text(max_size=64),
        execution_provider=st.text(max_size=64),
        runtime_version=st.text(max_size=64),
        threads=st.integers(1, 4096),
        slots=st.integers(1, 65535),
        consent_version=counts,
        region=st.text(max_size=64),
        models=st.lists(digests, max_size=3),
    ),
    "telemetry": st.builds(
        Telemetry,
        epoch=counts,
        seq=counts,
        ts_ms=counts,
        snapshot=st.booleans(),
        signals=st.builds(
            Signals,
            plugged=st.booleans() | st.just(msgspec.UNSET),
            charge_percent=percents | st.just(msgspec.UNSET),
            free_slots=st.integers(0, 65535) | st.just(msgspec.UNSET),
            refusal=st.text(max_size=64) | st.just(msgspec.UNSET),
        ),
    ),
    "task": st.builds(
        Task,
        job=identifiers,
        epoch=counts,
        model=blob_refs,
        deadline_ms=counts,
        consent_version=counts,
        leases=leases,
        purpose=st.text(max_size=32),
        energy_micro_per_kwh=counts,
        pay_micro_per_h=counts,
        inputs=optional_tensors,
        inputs_ref=optional_refs,
    ),
    "control": st.builds(Cancel, identifiers, chunks)
    | st.builds(Drain)
    | st.builds(Rebirth)
    | st.builds(Notice, st.text(max_size=64), st.text(max_size=50), st.text(max_size=50)),
    "result": st.builds(Rows, identifiers, counts, spans, optional_tensors, optional_refs, st.floats(0, 1e12), counts)
    | st.builds(Refusal, identifiers, counts, st.sampled_from(RefusalReason), chunks, st.text(max_size=50))
    | st.builds(Failure, identifiers, counts, spans, st.text(max_size=50)),
    "policy": owner_policies,
    "coordinator": st.builds(CoordinatorState, st.booleans(), counts, st.text(max_size=50), counts),
}
named_messages = st.sampled_from(list(KINDS)).flatmap(lambda name: st.tuples(st.just(KINDS[name]), MESSAGES[name]))


def refusal_of(kind: MessageKind[Any], payload: bytes, content_type: str | None) -> WireFault:
    with pytest.raises(WireError) as caught:
        kind.decode(payload, content_type)
    return caught.value.fault


@given(named_messages)
def test_messages_come_back(case: tuple[MessageKind[Any], Any]) -> None:
    kind, message = case
    assert kind.decode(kind.encode(message), kind.content_type) == message


@given(named_messages)
def test_a_message_cut_short_anywhere_is_refused(case: tuple[MessageKind[Any], Any]) -> None:
    kind, message = case
    payload = kind.encode(message)
    for length in range(len(payload)):
        assert refusal_of(kind, payload[:length], kind.content_type) is WireFault.MALFORMED


@given(named_messages, st.binary(min_size=1, max_size=8))
def test_bytes_after_the_message_are_refused(case: tuple[MessageKind[Any], Any], tail: bytes) -> None:
    kind, message = case
    assert refusal_of(kind, kind.encode(message) + tail, kind.content_type) is WireFault.MALFORMED


@given(st.sampled_from(list(KINDS.values())), st.binary(max_size=100))
def test_garbage_is_refused(kind: MessageKind[Any], payload: bytes) -> None:
    assert refusal_of(kind, payload, kind.content_type) is WireFault.MALFORMED


@given(named_messages, st.data())
def test_a_flipped_byte_gives_a_message_or_a_refusal(case: tuple[MessageKind[Any], Any], data: st.DataObject) -> None:
    kind, message = case
    payload = bytearray(kind.encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = kind.decode(bytes(payload), kind.content_type)
    except WireError as error:
        assert error.fault is WireFault.MALFORMED
    else:
        assert kind.decode(kind.encode(decoded), kind.content_type) == decoded


@given(named_messages)
def test_fields_of_a_later_minor_version_are_passed_over(case: tuple[MessageKind[Any], Any]) -> None:
    kind, message = case
    fields = msgspec.msgpack.decode(kind.encode(message)) | {"not yet known": {"deep": [1, {"er": b"x"}]}}
    assert kind.decode(msgspec.msgpack.encode(fields), kind.content_type) == message


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_another_version_or_type_is_named_as_such(kind: MessageKind[Any]) -> None:
    stem = f"application/vnd.idlewheel.{kind.name}+msgpack"
    assert kind.content_type == f"{stem}; v=1"
    for content_type in (f"{stem}; v=2", f"{stem};v=11", f"{stem}; v=", f"{stem}; v=1; charset=x"):
        assert refusal_of(kind, b"", content_type) is WireFault.UNKNOWN_VERSION
    for other in (None, "", "application/json", stem, f"{stem}; version=1", "text/plain; v=1"):
        assert refusal_of(kind, b"", other) is WireFault.WRONG_CONTENT_TYPE


def test_spaces_in_the_content_type_do_not_matter() -> None:
    message = State(online=True, epoch=1)
    for content_type in (
        "application/vnd.idlewheel.state+msgpack;v=1",
        " application/vnd.idlewheel.state+msgpack ;  v=1 ",
    ):
        assert codec.STATE.decode(codec.STATE.encode(message), content_type) == message


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (codec.STATE, {"online": 1, "epoch": 1}),
        (codec.STATE, {"online": True, "epoch": -1}),
        (codec.STATE, {"online": True, "epoch": 2**53 + 1}),
        (codec.STATE, {"online": True}),
        (codec.CONTROL, {"type": "dance"}),
        (codec.CONTROL, {"job": "j"}),
        (codec.CONTROL, {"type": "cancel", "job": "a/b"}),
        (codec.CONTROL, {"type": "cancel", "job": "j\n"}),
        (codec.CONTROL, {"type": "cancel", "job": "j" * 65}),
        (codec.RESULT, {"type": "rows", "job": "j", "epoch": 1, "spans": []}),
        (codec.RESULT, {"type": "rows", "job": "j", "epoch": 1, "spans": [[0, 1]]}),
        (codec.RESULT, {"type": "rows", "job": "j", "epoch": 1, "spans": [[0, 0, 1]], "compute_ms": float("nan")}),
        (codec.RESULT, {"type": "rows", "job": "j", "epoch": 1, "spans": [[0, 0, 1]], "compute_ms": float("inf")}),
        (codec.RESULT, {"type": "refusal", "job": "j", "epoch": 1, "reason": "no_mood"}),
    ],
)
def test_fields_out_of_bounds_are_refused(kind: MessageKind[Any], fields: dict[str, Any]) -> None:
    assert refusal_of(kind, msgspec.msgpack.encode(fields), kind.content_type) is WireFault.MALFORMED


def test_endless_nesting_and_huge_promised_lengths_are_refused() -> None:
    for tail in (b"\xa1x" + b"\x91" * 100_000, b"\xa7outputs\xdd\xff\xff\xff\xff", b"\xa1x\xdf\xff\xff\xff\xff"):
        payload = b"\x85\xa4type\xa4rows\xa3job\xa1j\xa5epoch\x01\xa5spans\x91\x93\x00\x00\x01" + tail
        assert refusal_of(codec.RESULT, payload, codec.RESULT.content_type) is WireFault.MALFORMED


def test_tensors_of_a_message_view_its_payload() -> None:
    outputs = encode_tensors({"y": np.arange(1000, dtype=np.float32)})
    payload = np.frombuffer(codec.RESULT.encode(Rows("j", 1, [Span(0, 0, 1000)], outputs)), dtype=np.uint8)
    rows = codec.RESULT.decode(payload.data, codec.RESULT.content_type)
    assert isinstance(rows, Rows)
    assert rows.outputs is not None
    assert np.shares_memory(rows.outputs[0].array(), payload)
