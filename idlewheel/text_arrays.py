"""Reads arrays of strings that numpy saved as Python objects. Never runs what a file says: only text comes out."""

import pickle
from typing import IO, Any

import numpy as np

from fleet_wire.tensors import Array

__all__ = ["NotText", "read_text_array"]

# All that numpy needs to put an array of str together again, under its names in numpy 1 and 2.
_ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class NotText(ValueError):
    """The array holds other objects than strings."""


class _TextUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise NotText(f"it has Python objects in it that are no strings, as {module}.{name}")
        return super().find_class(module, name)


def read_text_array(file: IO[bytes]) -> Array:
    """Array of str objects from the bytes of a .npy file. Raises NotText."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header(file)
    try:
        array = _TextUnpickler(file).load()
    except NotText:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises whatever its bytes happen to call
        raise NotText(f"it has Python objects in it that can't be read: {error}") from None
    if not isinstance(array, np.ndarray) or not all(isinstance(each, str) for each in array.reshape(-1)):
        raise NotText("it has Python objects in it that are no strings")
    return array
