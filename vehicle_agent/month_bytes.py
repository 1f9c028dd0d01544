"""How many bytes went over the car's link in this calendar month (UTC), kept on the disk. Decides nothing by it."""

import time
from pathlib import Path

from vehicle_agent.disk import write_whole

__all__ = ["MonthBytes"]

_AHEAD_BYTES = 1 << 20


class MonthBytes:
    """A count that begins again with each month.

    The disk is up to 1 MiB ahead of the count, so that it is written now and then only, and an agent that is killed
    counts on from too much, never from too little.
    """

    def __init__(self, path: Path, month: str, count: int) -> None:
        self._path = path
        self._month = month
        self._count = self._on_disk = count

    @classmethod
    def open(cls, path: Path) -> "MonthBytes":
        """Read what was counted before."""
        try:
            month, count = path.read_text(encoding="ascii").split()
            return cls(path, month, int(count))
        except (FileNotFoundError, ValueError):  # nothing, or not what we wrote
            return cls(path, "", 0)

    def add(self, count: int, now_ms: int) -> int:
        """Count bytes; return the month's."""
        month = time.strftime("%Y-%m", time.gmtime(now_ms / 1000))
        if month > self._month:  # a clock that is set back must not end the month
            self._month, self._count, self._on_disk = month, 0, -1
        self._count += count
        if self._count > self._on_disk:
            self._write(self._count + _AHEAD_BYTES)
        return self._count

    def close(self) -> None:
        """Bring the disk down to what was counted."""
        if self._month:
            self._write(self._count)

    def _write(self, count: int) -> None:
        self._on_disk = count
        write_whole(self._path, f"{self._month} {count}".encode())
