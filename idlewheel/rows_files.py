"""Rows in files: reads .npy and .npz, writes results as either. Of Python objects it reads strings and no others."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from fleet_wire.tensors import Array
from idlewheel.errors import BadInput
from idlewheel.text_arrays import read_text_array

__all__ = ["as_rows", "check_output", "load_rows", "save_rows"]

_NPY = b"\x93NUMPY"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def load_rows(path: Path) -> Array | dict[str, Array]:
    """One array of a .npy file, or the named arrays of a .npz file. Raises BadInput, which names the file."""
    with _explained(path):
        with path.open("rb") as file:
            magic = file.read(len(_NPY))
        if magic == _NPY:
            return as_rows(str(path), _load_array(path))
        if magic.startswith(_ZIP):
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: _load_member(archive, name) for name in archive.files}
            if not arrays:
                raise BadInput(f"{path} has no arrays in it")
            return {name: as_rows(f"{path}: {name!r}", array) for name, array in arrays.items()}
    raise BadInput(f"{path} is neither a .npy nor a .npz file: make one with numpy.save or numpy.savez")


def _load_array(path: Path) -> Array:
    try:
        # Mapped, so that rows larger than memory can be sent.
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if not _wants_pickle(error):
            raise
        with path.open("rb") as file:
            return read_text_array(file)
    return array


def _load_member(archive: np.lib.npyio.NpzFile, name: str) -> object:
    try:
        return archive[name]
    except ValueError as error:
        if not _wants_pickle(error):
            raise
        assert archive.zip is not None
        with archive.zip.open(f"{name}.npy") as file:
            return read_text_array(file)


def _wants_pickle(error: ValueError) -> bool:
    return "allow_pickle" in str(error) or "Python objects" in str(error)


def as_rows(label: str, rows: object) -> Array:
    """An array that can be sent: bytes become text, and what has no rows is refused. Raises BadInput with `label`."""
    if isinstance(rows, bytes):  # a member of a zip file that is no array
        raise BadInput(f"{label} is no array")
    try:
        array: Array = np.asarray(rows)
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
    except (ValueError, TypeError) as error:
        raise BadInput(f"{label} cannot be sent: {error}") from None
    if array.ndim == 0:
        raise BadInput(f"{label} is a single value: rows need a first axis")
    return array


def check_output(path: Path) -> None:
    """See before any work is done that results could be written to `path`. Raises BadInput."""
    if path.suffix not in {".npy", ".npz"}:
        raise BadInput(f"{path} must end in .npz (any outputs) or .npy (one output)")
    if path.is_dir():
        raise BadInput(f"{path} is a folder")
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent} is no folder: make it first")


def save_rows(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write outputs under their names to a .npz, or the only one to a .npy; whole, or not at all. Raises BadInput."""
    check_output(path)
    if path.suffix == ".npy" and len(outputs) != 1:
        raise BadInput(f"{path} can hold one output and there are {len(outputs)} ({', '.join(outputs)}): use .npz")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if path.suffix == ".npy":
            with unfinished.open("wb") as file:
                _write_array(file, *outputs.values())
        else:
            # numpy.savez can't: it has parameters of its own named "file" and "args".
            with zipfile.ZipFile(unfinished, "w") as archive:
                for name, output in outputs.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        _write_array(member, output)
        unfinished.replace(path)
    except OSError as error:
        raise BadInput(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _write_array(file: IO[bytes], array: Array) -> None:
    plain = array.astype(np.str_) if array.dtype.kind == "O" else array
    np.lib.format.write_array(file, plain, allow_pickle=False)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        text = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read: {text}") from None
