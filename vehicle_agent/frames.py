"""What the agent and its worker process say to each other: length-prefixed MessagePack. Never crosses a machine."""

from typing import Final

import msgspec
from msgspec import Struct

from fleet_wire.tensors import Tensor

__all__ = [
    "PREFIX_BYTES",
    "UNWATCHED",
    "Answer",
    "Load",
    "Loaded",
    "Order",
    "Raised",
    "Ran",
    "RunBatch",
    "Unusable",
    "frame_of",
]

PREFIX_BYTES: Final = 4
UNWATCHED: Final = 75  # exit code of a worker that has heard no beat for too long


class Load(Struct, frozen=True, tag=True):
    """Load a model's file, after letting go of others."""

    digest: str
    path: str
    unload: list[str]


class RunBatch(Struct, frozen=True, tag=True):
    """Compute a batch of rows with a loaded model."""

    digest: str
    rows: int
    inputs: list[Tensor]


class Loaded(Struct, frozen=True, tag=True):
    """A model is ready; `batch_rows` is its fixed batch."""

    digest: str
    batch_rows: int | None


class Unusable(Struct, frozen=True, tag=True):
    """A model can't be loaded, or has not the form of rows in, rows out."""

    digest: str
    error: str


class Ran(Struct, frozen=True, tag=True):
    """The outputs of the oldest batch, how long it took, and for how much of that the processor was ours."""

    outputs: list[Tensor]
    compute_ms: float
    processor_ms: float


class Raised(Struct, frozen=True, tag=True):
    """The oldest batch failed; `by_row` says that some of its rows may be innocent."""

    error: str
    by_row: bool


Order = Load | RunBatch
Answer = Loaded | Unusable | Ran | Raised

_encode = msgspec.msgpack.Encoder().encode_into


def frame_of(message: Order | Answer) -> bytearray:
    """A message with its length in front."""
    frame = bytearray()
    _encode(message, frame, PREFIX_BYTES)
    frame[:PREFIX_BYTES] = (len(frame) - PREFIX_BYTES).to_bytes(PREFIX_BYTES, "little")
    return frame
