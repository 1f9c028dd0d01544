"""Lines that wait on disk for the server: segment files that are only appended to. Never talks to the server.

A frame is the length of its body and its checksum (CRC-32), each 4 bytes in network order, then the body: whole lines
of line protocol. What was appended is on the disk before anybody hears of it. A segment goes when all of it was taken.
"""

import contextlib
import errno
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final

__all__ = ["SpillLog", "read_frames"]

_HEADER: Final = struct.Struct("!II")
_SUFFIX: Final = ".spill"


def read_frames(data: bytes) -> tuple[list[bytes], int]:
    """The whole frames at the start of a segment, and at which byte they end."""
    bodies, end = [], 0
    while end + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, end)
        body = data[end + _HEADER.size : end + _HEADER.size + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        bodies.append(body)
        end += _HEADER.size + length
    return bodies, end


class SpillLog:
    """First in, first out. May be called in several threads; one of them takes.

    After a crash the segment that was being taken is taken from its start again: lines are safe to write twice.
    """

    def __init__(self, folder: Path, segment_bytes: int = 8 << 20, most_bytes: int = 4 << 30) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._segments: deque[Path] = deque()
        self._sizes: dict[Path, int] = {}
        self._next_number = 0
        self._file: BinaryIO | None = None
        self._frames: deque[bytes] = deque()
        self.lines = 0
        self.oldest_ms: int | None = None
        """When the oldest line that waits was received; None when none waits."""
        self.torn_bytes = 0

    def open(self) -> None:
        """Find what an earlier process left. Raises OSError when the folder can't be used."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._segments = deque(sorted(self._folder.glob(f"*{_SUFFIX}")))
        for path in self._segments:
            bodies = self._load(path)
            self.lines += sum(map(_count, bodies))
            self._sizes[path] = path.stat().st_size
        self._next_number = 1 + max((int(path.stem) for path in self._segments), default=0)
        self._probe()

    def close(self) -> None:
        """Let go of the file; what waits stays."""
        with self._lock:
            self._close_file()

    def append(self, bodies: Sequence[bytes]) -> None:
        """Add bodies, on the disk on return. Raises OSError, and then they are not kept."""
        with self._lock:
            data = b"".join(_HEADER.pack(len(body), zlib.crc32(body)) + body for body in bodies)
            if sum(self._sizes.values()) + len(data) > self._most_bytes:
                raise OSError(errno.ENOSPC, f"it holds {self._most_bytes >> 20} MiB already, its limit")
            path = self._writable()
            assert self._file is not None
            try:
                if not self._sizes[path]:
                    _sync_folder(self._folder)  # which has a new file
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                self._give_up(path)
                raise
            self._sizes[path] += len(data)
            self.lines += sum(map(_count, bodies))
            if self._segments[0] == path:
                self._frames.extend(bodies)
            self._look_at_oldest()

    def first(self, count: int) -> list[bytes]:
        """The oldest bodies, at most so many; they stay until they are `taken`."""
        with self._lock:
            return [self._frames[place] for place in range(min(count, len(self._frames)))]

    def taken(self, count: int) -> None:
        """Forget the oldest bodies."""
        with self._lock:
            self.lines -= sum(_count(self._frames.popleft()) for _ in range(count))
            self._fill()
            self._look_at_oldest()

    def bodies(self) -> Iterator[bytes]:
        """Everything that waits, and of the segment at the head also what was taken from it."""
        with self._lock:
            segments = tuple(self._segments)
        for path in segments:
            try:
                yield from read_frames(path.read_bytes())[0]
            except FileNotFoundError:
                continue  # all of it was taken in the meantime

    def _fill(self) -> None:
        """Drop segments that are done, and read the next one."""
        while not self._frames and self._segments:
            done = self._segments.popleft()
            if self._file is not None and Path(self._file.name) == done:
                self._close_file()
            done.unlink()
            del self._sizes[done]
            if self._segments:
                self._frames.extend(self._load(self._segments[0]))

    def _load(self, path: Path) -> list[bytes]:
        data = path.read_bytes()
        bodies, end = read_frames(data)
        if end < len(data):
            self.torn_bytes += len(data) - end
            if _is_damaged(data[end:]):  # not only broken off, which is how a killed process leaves it
                path.with_suffix(".damaged").write_bytes(data[end:])
        return bodies

    def _writable(self) -> Path:
        if self._file is None or self._file.tell() >= self._segment_bytes:
            self._close_file()
            path = self._folder / f"{self._next_number:08}{_SUFFIX}"
            self._file = path.open("xb")
            self._next_number += 1
            self._segments.append(path)
            self._sizes[path] = 0
        return Path(self._file.name)

    def _give_up(self, path: Path) -> None:
        """After a write that failed: cut off what it left, and start another segment next time."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # it may try the write again
                file.close()
            os.truncate(path, self._sizes[path])
        if not self._sizes[path]:
            self._segments.remove(path)
            del self._sizes[path]
            path.unlink()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _probe(self) -> None:
        """The first segment's frames in memory, and a write to see that one can."""
        probe = self._folder / "probe"
        probe.write_bytes(b"?")
        probe.unlink()
        if self._segments:
            self._frames.extend(read_frames(self._segments[0].read_bytes())[0])
            self._fill()
        self._look_at_oldest()

    def _look_at_oldest(self) -> None:
        self.oldest_ms = _received_ms(self._frames[0]) if self._frames else None


def _count(body: bytes) -> int:
    return body.count(b"\n") + 1


def _received_ms(body: bytes) -> int | None:
    time_ns = body.split(b"\n", 1)[0].rsplit(b" ", 1)[-1]
    return int(time_ns) // 1_000_000 if time_ns.isdigit() else None


def _is_damaged(rest: bytes) -> bool:
    return len(rest) >= _HEADER.size and len(rest) >= _HEADER.size + _HEADER.unpack_from(rest)[0]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
