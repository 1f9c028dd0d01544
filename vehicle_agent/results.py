"""Computed rows gathered into messages that fit a packet. Pure; never sends anything."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fleet_wire.messages import Rows, Span
from fleet_wire.tensors import Array, dtype_name, encode_tensors, tensor_bytes

__all__ = ["NJ_PER_MWH", "ByReference", "Gathered", "message_bytes"]

NJ_PER_MWH = 3_600_000_000

_SPAN_BYTES = 32  # a span never takes more: three integers of up to nine bytes, and heads
_HEAD_BYTES = 256
_TENSOR_BYTES = 256


@dataclass(frozen=True, slots=True, eq=False)
class ByReference:
    """Rows whose outputs are too large for a message: they are stored as a blob first and `rows` names it then."""

    rows: Rows
    outputs: dict[str, Array]


@dataclass(slots=True)
class Gathered:
    """Rows of one job that are computed and not yet sent. Energy is in whole nanojoules, so that sums are exact."""

    since_ms: int
    spans: list[Span] = field(default_factory=list)
    outputs: list[dict[str, Array]] = field(default_factory=list)
    bytes_held: int = 0
    compute_ms: float = 0.0
    energy_nj: int = 0

    def add(self, spans: list[Span], outputs: dict[str, Array], *, compute_ms: float, energy_nj: int) -> None:
        """Append rows."""
        self.spans += spans
        self.outputs.append(outputs)
        self.bytes_held += message_bytes(spans, outputs)
        self.compute_ms += compute_ms
        self.energy_nj += energy_nj

    def takes(self, outputs: dict[str, Array]) -> bool:
        """Say whether rows with these outputs can follow: a model may give another shape to each batch."""
        last = self.outputs[-1]
        return last.keys() == outputs.keys() and all(
            last[name].shape[1:] == array.shape[1:] and last[name].dtype == array.dtype
            for name, array in outputs.items()
        )

    def messages(self, job: str, epoch: int, max_bytes: int, spare_nj: int) -> list[Rows | ByReference]:
        """All that was gathered, in as few messages as fit; `spare_nj` is the energy too small to be told yet.

        When a single row does not fit, all travel as one blob.
        """
        outputs = _joined(self.outputs)
        count = sum(span.stop - span.start for span in self.spans)
        sizes = _row_sizes(outputs, count, self.spans)
        room = max_bytes - _HEAD_BYTES - _TENSOR_BYTES * len(outputs)
        if sizes.max(initial=0) > room:
            whole_mwh = (self.energy_nj + spare_nj) // NJ_PER_MWH
            whole = Rows(job, epoch, self.spans, compute_ms=self.compute_ms, energy_mwh=whole_mwh)
            return [ByReference(whole, outputs)]
        messages: list[Rows | ByReference] = []
        told = 0
        for start, stop, spans in _cut(self.spans, _bounds(sizes, room)):
            whole_mwh = (self.energy_nj * stop // count + spare_nj) // NJ_PER_MWH
            messages.append(
                Rows(
                    job,
                    epoch,
                    spans,
                    encode_tensors({name: array[start:stop] for name, array in outputs.items()}),
                    compute_ms=self.compute_ms * (stop - start) / count,
                    energy_mwh=whole_mwh - told,
                )
            )
            told = whole_mwh
        return messages


def message_bytes(spans: list[Span], outputs: dict[str, Array]) -> int:
    """About how many bytes these rows take in a message; never less than they do, except for the head."""
    fixed = sum(tensor_bytes(dtype_name(a), a.shape) for a in outputs.values() if a.dtype != object)
    text = sum(int(_text_sizes(array).sum()) for array in outputs.values() if array.dtype == object)
    return fixed + text + _SPAN_BYTES * len(spans)


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _text_sizes(array: Array) -> NDArray[np.int64]:
    """Bytes that each row of strings takes, offsets included."""
    rows = array.reshape(len(array), -1).tolist()
    return np.array([sum(len(text.encode()) + 8 for text in row) for row in rows], dtype=np.int64)


def _row_sizes(outputs: dict[str, Array], rows: int, spans: list[Span]) -> NDArray[np.int64]:
    """Bytes that each row takes in a message, with the span that begins at it."""
    sizes = np.zeros(rows, dtype=np.int64)
    begins = np.cumsum([0, *(span.stop - span.start for span in spans[:-1])])
    sizes[begins] = _SPAN_BYTES
    for array in outputs.values():
        if array.dtype == object:
            sizes += _text_sizes(array)
        else:
            sizes += -(-tensor_bytes(dtype_name(array), array.shape) // rows)
    return sizes


def _bounds(sizes: NDArray[np.int64], room: int) -> list[int]:
    """Row numbers at which to cut so that each part takes at most `room`."""
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(int(np.searchsorted(ends, before + room, side="right")))
    return bounds


def _cut(spans: list[Span], bounds: list[int]) -> Iterator[tuple[int, int, list[Span]]]:
    """Each part's first and last row (excluded) among all rows, with its spans."""
    left = iter(spans)
    span: Span | None = None
    for start, stop in pairwise(bounds):
        part: list[Span] = []
        room = stop - start
        while room:
            span = span or next(left)
            taken = min(room, span.stop - span.start)
            part.append(Span(span.chunk, span.start, span.start + taken))
            span = Span(span.chunk, span.start + taken, span.stop) if span.start + taken < span.stop else None
            room -= taken
        yield start, stop, part
