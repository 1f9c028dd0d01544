"""How many bytes went over the car's link in this calendar month (UTC), kept on the disk. Decides nothing by it.

What can't be read back counts as more than any budget until the month ends, for it is the owner who would pay.
"""

import logging
import re
import time
from collections import Counter
from pathlib import Path

from vehicle_agent.disk import write_whole

__all__ = ["MonthBytes"]

_log = logging.getLogger(__name__)
_AHEAD_BYTES = 1 << 20
_SPENT_BYTES = 1 << 53  # the most that a budget can be
_WRITTEN = re.compile(rb"(\d{4}-\d\d) (\d{1,16})")


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
    def open(cls, path: Path, counters: Counter[str]) -> "MonthBytes":
        """Read what was counted before."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(path, "", 0)
        except OSError as error:
            data = str(error).encode()
        written = _WRITTEN.fullmatch(data)
        if written is not None:
            return cls(path, written[1].decode(), int(written[2]))
        counters["month_bytes_unreadable"] += 1
        _log.warning("%s can't be read (%r): its month's bytes count as spent until the next one", path, data[:100])
        return cls(path, "", _SPENT_BYTES)

    def add(self, count: int, now_ms: int) -> int:
        """Count bytes; return the month's."""
        month = time.strftime("%Y-%m", time.gmtime(now_ms / 1000))
        if month > self._month:  # a clock that is set back must not end the month
            self._count = 0 if self._month else self._count
            self._month, self._on_disk = month, -1
        self._count = min(self._count + count, _SPENT_BYTES)
        if self._count > self._on_disk:
            self._write(self._count + _AHEAD_BYTES)
        return self._count

    def close(self) -> None:
        """Bring the disk down to what was counted; one that is full stays ahead."""
        if self._month:
            try:
                self._write(self._count)
            except OSError as error:
                _log.warning("%s can't be written: %s", self._path, error)

    def _write(self, count: int) -> None:
        self._on_disk = count
        write_whole(self._path, f"{self._month} {count}".encode())
