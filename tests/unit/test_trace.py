"""Trace context is read as level 1 of the standard demands, carried on verbatim, and lets nothing else through."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_wire.trace import TraceContext, new_trace, parse_trace, trace_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_what_is_read_is_said_again() -> None:
    context = parse_trace(PARENT, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    assert context == TraceContext(TRACE, SPAN, True, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    assert context.properties == (("traceparent", PARENT), ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"))
    assert parse_trace(f"00-{TRACE}-{SPAN}-00").properties == (("traceparent", f"00-{TRACE}-{SPAN}-00"),)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT[:-1],
        f"{PARENT}-more",  # version 00 has nothing more
        f"{PARENT} ",
        f"{PARENT}\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"01-{TRACE}-{SPAN}-01-{'x' * 600}",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_a_malformed_parent_is_refused(parent: str) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        parse_trace(parent)


@pytest.mark.parametrize("parent", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-09-what-the-future-will-be-like"])
def test_a_later_version_is_read_as_far_as_ours_goes(parent: str) -> None:
    assert parse_trace(parent).traceparent == PARENT


@pytest.mark.parametrize(
    "state",
    [
        "a",
        "A=1",
        "=1",
        "a=",
        "a=1,a=2",
        "a=\x07",
        "a=b=c",
        "a=ü",
        f"a={'x' * 520}",
        ",".join(f"k{n}=1" for n in range(33)),
    ],
)
def test_a_state_that_breaks_the_rules_is_left_out_and_harms_nothing(state: str) -> None:
    assert parse_trace(PARENT, state) == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "state", ["", "a=1", "tenant@vendor=x y", "a=1, b=2,,c=3", ",".join(f"k{n}=1" for n in range(32))]
)
def test_a_state_within_the_rules_is_carried_verbatim(state: str) -> None:
    assert parse_trace(PARENT, state).state == state


def test_properties_of_a_message_name_at_most_one_trace() -> None:
    assert trace_of([]) is None
    assert trace_of([("tracestate", "a=1")]) is None
    assert trace_of([("other", "x"), ("traceparent", PARENT)]) == TraceContext(TRACE, SPAN, True)
    state = [("tracestate", "a=1"), ("tracestate", "b=2")]
    assert trace_of([("traceparent", PARENT), *state]) == TraceContext(TRACE, SPAN, True, "a=1,b=2")
    with pytest.raises(ValueError, match="more than one"):
        trace_of([("traceparent", PARENT), ("traceparent", PARENT)])


def test_ids_come_from_the_given_chance_and_are_never_zero() -> None:
    assert new_trace(random.Random(1)) == new_trace(random.Random(1))
    assert new_trace(random.Random(1)) != new_trace(random.Random(2))

    class Zero:
        def getrandbits(self, k: int, /) -> int:
            return 0

    assert parse_trace(new_trace(Zero()).traceparent) == new_trace(Zero())


@given(st.integers(), st.booleans(), st.sampled_from(["", "a=1,b=2"]))
def test_a_child_is_another_span_of_the_same_trace(seed: int, sampled: bool, state: str) -> None:
    rng = random.Random(seed)
    parent = TraceContext(TRACE, SPAN, sampled, state)
    child = parent.child(rng)
    assert child.span_id != parent.span_id
    assert child == TraceContext(TRACE, child.span_id, sampled, state)
    assert trace_of(child.properties) == child


@given(st.text(), st.text())
def test_no_text_raises_anything_but_a_value_error(parent: str, state: str) -> None:
    try:
        context = parse_trace(parent, state)
    except ValueError:
        return
    assert parse_trace(context.traceparent, context.state) == context


@given(st.text())
def test_no_state_spoils_a_good_parent(state: str) -> None:
    context = parse_trace(PARENT, state)
    assert context.state in ("", state)
    assert context.traceparent == PARENT
