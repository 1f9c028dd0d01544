"""Watches over a running worker from a thread of its own, so that a busy event loop delays no kill.

It looks at the car many times a second and kills the worker as soon as the car says so. While it looks it also sends
the worker beats, without which the worker ends itself: nothing computes unless somebody looks at the car. A worker that
somebody has stopped (SIGSTOP) is killed soon, as its rows would wait for it until their deadline.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["Guard"]

_LOOK_S: Final = 0.02
_BEAT_S: Final = 0.25
_STOPPED_BEATS: Final = 2


class Guard:
    """Of one worker. `must_stop` and `on_kill` are called in its thread; `beats` is a pipe's end that it closes."""

    def __init__(
        self, process: subprocess.Popen[bytes], beats: int, must_stop: Callable[[], bool], on_kill: Callable[[], object]
    ) -> None:
        self.has_killed = False
        self._process = process
        self._beats = beats
        self._must_stop = must_stop
        self._on_kill = on_kill
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def kill(self) -> None:
        """Kill the worker now; the thread buries it and ends."""
        self._process.kill()
        self._is_over.set()

    @property
    def is_alive(self) -> bool:
        """The worker may not be gone yet."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until the worker is gone."""
        self._thread.join(timeout_s)

    def _watch(self) -> None:
        try:
            beat_s, stopped = 0.0, 0
            while not self._is_over.wait(_LOOK_S):
                if self._must_stop():
                    self.has_killed = True
                    self._process.kill()
                    with contextlib.suppress(RuntimeError):  # the agent's loop has ended
                        self._on_kill()
                    break
                if time.monotonic() - beat_s >= _BEAT_S:
                    beat_s = time.monotonic()
                    stopped = stopped + 1 if _is_stopped(self._process.pid) else 0
                    if stopped >= _STOPPED_BEATS:
                        self._process.kill()
                        break
                    with contextlib.suppress(OSError):  # it stands still and the pipe is full, or it is gone
                        os.write(self._beats, b".")
        finally:
            os.close(self._beats)
            self._process.wait()


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process; never where /proc does not say."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state == b"T"
