"""Reads handwritten digits: a 39 KB network and 1,797 pictures that ship with the package.

Origin and licences stand in data/SOURCE.md; benchmarks/make_digits.py makes both files.
"""

import io
from importlib import resources
from typing import Final

import numpy as np

from fleet_wire.tensors import Array
from idlewheel.examples.example import Example, ExampleRows

__all__ = ["DIGITS"]

_SIDE: Final = 8
_DARK: Final = 8  # of 16 shades
_HALVES: Final = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


def _data(name: str) -> bytes:
    return (resources.files("idlewheel.examples") / "data" / name).read_bytes()


def _model() -> bytes:
    return _data("digits.onnx")


def _rows(limit: int, seed: int) -> ExampleRows:
    with np.load(io.BytesIO(_data("digits.npz"))) as file:
        pixels, labels = file["pixels"], file["labels"]
    order = np.resize(np.random.default_rng(seed).permutation(len(labels)), limit)
    return ExampleRows(
        inputs={"X": pixels[order].astype(np.float32)},
        titles=[f"digit {number}" for number in order],
        accepted=[frozenset({str(label)}) for label in labels[order]],
    )


def _answers(outputs: dict[str, Array]) -> list[str]:
    return [str(label) for label in outputs["label"].tolist()]


def _picture(rows: ExampleRows, row: int) -> list[str]:
    """Four lines of eight characters: two pixels a character, one above the other."""
    dark = rows.inputs["X"][row].reshape(_SIDE, _SIDE) >= _DARK
    return [
        "".join(_HALVES[bool(up), bool(low)] for up, low in zip(*pair, strict=True))
        for pair in zip(dark[::2], dark[1::2], strict=True)
    ]


DIGITS: Final = Example(
    name="digits",
    description="reads handwritten digits with a small network",
    attribution="digits: E. Alpaydin and C. Kaynak (1998), UCI, CC BY 4.0, by way of scikit-learn (BSD 3-Clause)",
    default_rows=50_000,
    compared_with="what the writer meant",
    model=_model,
    rows=_rows,
    answers=_answers,
    picture=_picture,
)
