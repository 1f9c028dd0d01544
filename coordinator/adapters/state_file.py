"""One file that is replaced as a whole: after a kill at any moment it holds what was written last, or before that."""

import os
from pathlib import Path

from coordinator.errors import StoreUnavailable

__all__ = ["StateFile"]


class StateFile:
    """Blocking: to be called outside the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """What was written last; None when nothing was yet. Raises StoreUnavailable."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable("state_unavailable", f"{self.path}: {error.strerror}") from error

    def write(self, data: bytes) -> None:
        """Replace what was written, durable on return. Raises StoreUnavailable, and then the old state stays."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreUnavailable("state_unavailable", f"{self.path}: {error.strerror}") from error
