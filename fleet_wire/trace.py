"""W3C Trace Context, level 1: `traceparent` and `tracestate` read and written. Pure: chance is passed in.

Over MQTT both travel as user properties of a PUBLISH, over HTTP as headers, all lower case. The ids say nothing of a
person, and nothing of ours is ever put into `tracestate`: what a client sent there is carried on as it is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

__all__ = ["Chance", "Span", "TraceContext", "new_trace", "parse_trace", "trace_of"]

_PARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)
_PARENT_CHARS = 512
_STATE_CHARS = 512
_STATE_MEMBERS = 32
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII
)
_SAMPLED = 1


class Chance(Protocol):
    """What ids are drawn from, such as `random.Random`."""

    def getrandbits(self, k: int, /) -> int:
        """A number of `k` random bits."""


class TraceContext(Struct, frozen=True):
    """One span as others are told of it: ids in lower-case hexadecimal (32 and 16 digits), `tracestate` as it came."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def child(self, random: Chance) -> "TraceContext":
        """A new span of the same trace."""
        return TraceContext(self.trace_id, _new_id(random, 16), self.sampled, self.state)

    @property
    def traceparent(self) -> str:
        """What says it to the next hop."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def properties(self) -> tuple[tuple[str, str], ...]:
        """The user properties of a PUBLISH that tell it."""
        parent = ("traceparent", self.traceparent)
        return (parent, ("tracestate", self.state)) if self.state else (parent,)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that was done, from `start_ms` to `end_ms` in milliseconds since 1970; `parent` is None for the first.

    `attributes` name jobs, vehicles and counts, never a person.
    """

    name: str
    context: TraceContext
    parent: TraceContext | None
    start_ms: float
    end_ms: float
    attributes: dict[str, str | int | float]


def new_trace(random: Chance) -> TraceContext:
    """The first span of a trace."""
    return TraceContext(_new_id(random, 32), _new_id(random, 16), sampled=True)


def parse_trace(traceparent: str, tracestate: str = "") -> TraceContext:
    """Read what the hop before sent. Raise ValueError for a `traceparent` that must be ignored.

    A version that is not known yet is read as far as this one goes. A `tracestate` that breaks the rules, or that is
    longer than has to be carried, is left out and harms nothing.
    """
    found = _PARENT.fullmatch(traceparent) if len(traceparent) <= _PARENT_CHARS else None
    if found is None:
        raise ValueError("malformed traceparent")
    version, trace_id, span_id, flags, more = found.groups()
    if more and version == "00":
        raise ValueError("malformed traceparent")
    state = tracestate if tracestate and _valid(tracestate) else ""
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state)


def trace_of(properties: Iterable[tuple[str, str]]) -> TraceContext | None:
    """The trace that a PUBLISH belongs to; None when it names none. Raise ValueError when it must be ignored."""
    parents = [value for name, value in properties if name == "traceparent"]
    if not parents:
        return None
    if len(parents) > 1:
        raise ValueError("more than one traceparent")
    return parse_trace(parents[0], ",".join(value for name, value in properties if name == "tracestate"))


def _valid(state: str) -> bool:
    if len(state) > _STATE_CHARS:
        return False
    members = [member.strip(" \t") for member in state.split(",")]
    keys = [member.partition("=")[0] for member in members if member]
    return (
        len(keys) <= _STATE_MEMBERS
        and len(set(keys)) == len(keys)
        and all(_MEMBER.fullmatch(member) for member in members if member)
    )


def _new_id(random: Chance, digits: int) -> str:
    """A number that is not zero, which the standard keeps for what is not valid."""
    return f"{max(1, random.getrandbits(4 * digits)):0{digits}x}"
