"""What a child process that a hostile model may take over is given of this machine: no secrets, and bounded memory.

Never imports onnx or onnxruntime: the parent needs its half of this, too.
"""

import os
import resource
import sys
from contextlib import suppress
from typing import Final

__all__ = ["bare_environment", "confine"]

_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")  # and no more: what is secret stays here
_SPACE_BYTES: Final = 4 << 30
_COPIES: Final = 6  # of the model's bytes, while it is parsed and loaded


def bare_environment() -> dict[str, str]:
    """The environment of such a child, to be given by its parent."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def confine(model_bytes: int) -> None:
    """Bound this process, which is to load a model of this size: its memory, and that it writes no file."""
    space = _SPACE_BYTES + _COPIES * model_bytes
    for kind, limit in {resource.RLIMIT_AS: space, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}.items():
        with suppress(ValueError, OSError):  # not every system has every limit
            resource.setrlimit(kind, (limit, limit))
