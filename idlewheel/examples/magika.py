"""Recognises the types of real files with the model of the `magika` package (Apache-2.0), on files of this Python.

Knows how a row is made from a file's bytes; the package's own code is not used, so that only its data must be there.
"""

import json
import os
import random
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import numpy as np

from fleet_wire.tensors import Array
from idlewheel.examples.example import Example, ExampleRows

__all__ = ["ACCEPTED_LABELS", "MAGIKA", "file_features"]

_MODEL: Final = "standard_v3_3"
_BLOCK: Final = 4096
_SIDE: Final = 1024
_PADDING: Final = 256
# The model is not meant for files with fewer bytes than this, blanks at the start not counted.
_LEAST_BYTES: Final = 8
# Site-packages is a root of its own; the folders for tests hold files that are broken on purpose.
_SKIPPED_FOLDERS: Final = frozenset({"site-packages", "test", "tests", "testing"})

# Labels of the model that agree with a file's extension; files with any other extension are not judged. Nor are .txt
# files: the name says no more than that there is text in them, which may be a table, a licence or a configuration.
ACCEPTED_LABELS: Final[dict[str, frozenset[str]]] = {
    extension: frozenset(labels.split())
    for extension, labels in {
        ".bat": "batch",
        ".bz2": "bzip",
        ".c": "c",
        ".cc": "cpp",
        ".cpp": "cpp",
        ".css": "css",
        ".csv": "csv",
        ".dll": "pebin",
        ".dylib": "macho",
        ".exe": "pebin",
        ".f": "fortran",
        ".f90": "fortran",
        ".gif": "gif",
        ".gz": "gzip",
        ".h": "c cpp",
        ".html": "html",
        ".ico": "ico",
        ".ini": "ini",
        ".jpg": "jpeg",
        ".js": "javascript",
        ".json": "json jsonl",
        ".md": "markdown",
        ".npy": "npy",
        ".npz": "npz zip",
        ".onnx": "onnx",
        ".pem": "pem crt",
        ".pkl": "pickle",
        ".png": "png",
        ".proto": "proto",
        ".py": "python",
        ".pyc": "pythonbytecode",
        ".pyd": "pebin",
        ".pyi": "python",
        ".rst": "rst",
        ".sh": "shell",
        ".so": "elf macho",
        ".svg": "svg",
        ".tar": "tar",
        ".tcl": "tcl",
        ".toml": "toml",
        ".wav": "wav",
        ".whl": "zip",
        ".xml": "xml",
        ".xz": "xz",
        ".yaml": "yaml",
        ".yml": "yaml",
        ".zip": "zip",
    }.items()
}


def file_features(path: Path) -> Array | None:
    """A row of 2,048 int32: the first and the last 1,024 bytes, blanks stripped and padded; None for a tiny file.

    Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(_BLOCK)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BLOCK))
        tail = file.read(_BLOCK)
    first, last = head.lstrip()[:_SIDE], tail.rstrip()[-_SIDE:]
    if len(first) < _LEAST_BYTES:
        return None
    row = np.full(2 * _SIDE, _PADDING, dtype=np.int32)
    row[: len(first)] = np.frombuffer(first, dtype=np.uint8)
    row[2 * _SIDE - len(last) :] = np.frombuffer(last, dtype=np.uint8)
    return row


def _asset(name: str) -> Traversable:
    return resources.files("magika") / "models" / _MODEL / name


def _model() -> bytes:
    return _asset("model.onnx").read_bytes()


@cache
def _labels() -> list[str]:
    labels: list[str] = json.loads(_asset("config.min.json").read_text())["target_labels_space"]
    return labels


def _rows(limit: int, seed: int) -> ExampleRows:
    """Up to `limit` files, of as many types as there are: every extension gives one in turn, as long as it has any."""
    features: list[Array] = []
    titles: list[str] = []
    accepted: list[frozenset[str]] = []
    for root, path in _files_in_turn(random.Random(seed)):
        if len(features) == limit:
            break
        try:
            row = file_features(path)
        except OSError:  # gone since it was listed, or not ours to read
            continue
        if row is not None:
            features.append(row)
            titles.append(str(path.relative_to(root)))
            accepted.append(ACCEPTED_LABELS.get(path.suffix.lower(), frozenset()))
    order = random.Random(seed).sample(range(len(features)), len(features))
    return ExampleRows(
        inputs={"bytes": np.array([features[index] for index in order], dtype=np.int32).reshape(-1, 2 * _SIDE)},
        titles=[titles[index] for index in order],
        accepted=[accepted[index] for index in order],
    )


def _files_in_turn(draw: random.Random) -> Iterator[tuple[Path, Path]]:
    by_extension: dict[str, list[tuple[Path, Path]]] = {}
    for root in sorted({Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")}):
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
            for name in sorted(files):
                path = Path(folder, name)
                by_extension.setdefault(path.suffix.lower(), []).append((root, path))
    piles = [by_extension[extension] for extension in sorted(by_extension)]
    for pile in piles:
        draw.shuffle(pile)
    while piles:
        for pile in piles:
            yield pile.pop()
        piles = [pile for pile in piles if pile]


def _answers(outputs: dict[str, Array]) -> list[str]:
    (scores,) = outputs.values()
    labels = _labels()
    return [labels[index] for index in scores.argmax(axis=1)]


def _picture(_rows: ExampleRows, _row: int) -> list[str]:
    return []


MAGIKA: Final = Example(
    name="magika",
    description="recognises the types of this Python's own files",
    attribution="model: Google's Magika, Apache-2.0, from the package `magika`",
    default_rows=2000,
    compared_with="the file's extension",
    model=_model,
    rows=_rows,
    answers=_answers,
    picture=_picture,
)
