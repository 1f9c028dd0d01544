"""From accepted pieces, in any order, to whole outputs in row order. Pure."""

from collections.abc import Iterable

import numpy as np

from coordinator.errors import Rejected
from coordinator.model import Piece
from fleet_wire.tensors import Array

__all__ = ["assemble"]


def assemble(parts: Iterable[tuple[Iterable[Piece], dict[str, Array] | None]], rows: int) -> dict[str, Array]:
    """Put parts together into outputs of `rows` rows each; rows that are in no part are NaN, or zero or empty.

    A later part takes the place of an earlier one; without outputs it takes its rows back.

    Raises Rejected("ragged_outputs") when an axis that the model leaves open came out with different lengths.
    """
    whole: dict[str, Array] = {}
    for pieces, outputs in parts:
        if outputs is None:
            for output in whole.values():
                for piece in pieces:
                    output[piece.start : piece.stop] = _blank((piece.stop - piece.start, *output.shape[1:]), output)
            continue
        for name, output in outputs.items():
            if name not in whole:
                whole[name] = _blank((rows, *output.shape[1:]), output)
            elif whole[name].shape[1:] != output.shape[1:]:
                raise Rejected(
                    "ragged_outputs",
                    f"output {name!r} has rows of shape {list(whole[name].shape[1:])} and {list(output.shape[1:])}, "
                    "so there is no one array of them: read the rows as a stream instead",
                )
            for piece in pieces:
                whole[name][piece.start : piece.stop] = output[piece.offset : piece.offset + piece.stop - piece.start]
    return whole


def _blank(shape: tuple[int, ...], like: Array) -> Array:
    """What rows are that are not there."""
    if like.dtype.kind == "O":
        return np.full(shape, "", dtype=object)
    return np.full(shape, np.nan if np.issubdtype(like.dtype, np.inexact) else 0, dtype=like.dtype)
