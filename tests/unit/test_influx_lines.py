"""Line protocol: what is encoded comes back, and nothing that a vehicle says can end a line, a tag or a field."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.adapters.influx_lines import LineEncoder, batch_of, joined, parse_lines, point_line
from coordinator.errors import StoreUnavailable
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS
from coordinator.metrics import VEHICLE_STATE, MetricPoint

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, (1 << 53) - 1)
DOCUMENTS = st.fixed_dictionaries(
    {
        "vehicle": st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
        "time_ns": st.integers(0, 1 << 42).map(lambda ms: ms * 1_000_000),
        "ts_ms": COUNTS,
        "epoch": COUNTS,
        "seq": COUNTS,
        "snapshot": st.integers(0, 1),
    },
    optional={
        **dict.fromkeys(BOOLEAN_SIGNALS, st.integers(0, 1)),
        **dict.fromkeys(NUMBER_SIGNALS, NUMBERS),
        "refusal": st.text(max_size=64),
    },
)


def encoder(region: str = "") -> LineEncoder:
    return LineEncoder(lambda vehicle: region)


def printable(text: str) -> str:
    return "".join(" " if ord(character) < 32 or ord(character) == 127 else character for character in text)


@given(st.lists(DOCUMENTS, max_size=20), st.text(max_size=20))
def test_documents_come_back_as_they_were(documents: list[dict[str, object]], region: str) -> None:
    documents.sort(key=lambda each: int(str(each["time_ns"])))  # as they are received
    lines = encoder(region).encode(batch_of(documents))
    assert len(joined(lines).split(b"\n")) == max(len(documents), 1)
    found = list(parse_lines(joined(lines)))
    times = [(each["vehicle"], each.pop("time_ns")) for each in found]
    assert len(set(times)) == len(documents)
    for (_, time_ns), document in zip(times, documents, strict=True):
        assert time_ns // 1_000_000 == document.pop("time_ns") // 1_000_000  # type: ignore[operator]
        if "refusal" in document:
            document["refusal"] = printable(str(document["refusal"])).encode("utf-8", "replace").decode()
    assert found == documents


def test_a_line_is_what_the_server_expects() -> None:
    document = {"vehicle": "v1", "time_ns": 5_000_000, "ts_ms": 4, "epoch": 1, "seq": 7, "snapshot": 0}
    batch = batch_of([{**document, "plugged": 1, "charge_percent": 40.0, "refusal": 'a "b" \\ \n'}])
    assert encoder("eu west,1=\\\n").encode(batch) == [
        r"vehicle_state,region=eu\ west\,1\=/\ ,vehicle=v1 "
        r'ts_ms=4i,epoch=1i,seq=7i,snapshot=0i,plugged=1i,charge_percent=40.0,refusal="a \"b\" \\  " 5000007'
    ]


def test_what_comes_after_a_later_document_is_kept_apart() -> None:
    lines = encoder().encode(
        batch_of([{"vehicle": "v1", "epoch": 2, "seq": 0}, {"vehicle": "v1", "epoch": 1, "seq": 9}])
    )
    assert [line.split(",")[0] for line in lines] == ["vehicle_state", "vehicle_state_late"]


def test_numbers_that_are_none_are_left_out() -> None:
    batch = batch_of([{"vehicle": "v1", "charge_percent": np.inf}])
    assert "charge_percent" not in encoder().encode(batch)[0]


def test_two_documents_of_a_vehicle_never_have_the_same_time() -> None:
    same = {"vehicle": "v1", "epoch": 1, "seq": 3, "time_ns": 9_000_000}
    encode = encoder().encode
    lines = [*encode(batch_of([same, same])), *encode(batch_of([same, {**same, "epoch": 2}]))]
    assert len({line.rsplit(" ", 1)[1] for line in lines}) == 4


def test_an_id_that_could_end_a_tag_is_refused() -> None:
    for vehicle in ("a b", "a,b=c", "a\nb", "", "ä", None):
        with pytest.raises(StoreUnavailable):
            encoder().check(batch_of([{"vehicle": vehicle or None}]))


def test_every_field_stands_in_the_catalogue() -> None:
    known = {field.name for field in VEHICLE_STATE.fields}
    assert {"ts_ms", "epoch", "seq", "snapshot", "refusal", *BOOLEAN_SIGNALS, *NUMBER_SIGNALS} == known


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_point_is_one_line(tag: str, text: str) -> None:
    line = point_line(MetricPoint("m", 1, {"b": tag, "a": "x"}, {"n": 1, "f": 2.5, "t": text}))
    assert "\n" not in line
    assert "\r" not in line
    assert line.startswith("m,a=x")
    assert line.endswith(" 1000000")
