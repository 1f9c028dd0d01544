"""Runs a program of ours whose wall clock is as far off as a file says, in milliseconds: a clock that somebody sets.

`python -m tests.system.chaos.clock FILE MODULE ARGUMENTS…`. It replaces Python's functions before the program is
imported, so that the program needs no setting for it. Time that only passes (monotonic) stays right, as on a machine.
"""

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_EVERY_S = 0.05


def shifted(file: Path, real_ns: Callable[[], int], passed_s: Callable[[], float]) -> Callable[[], int]:
    """The clock that is off; it looks into the file now and then, for it is asked often."""
    off_ns, looked_s = 0, -1.0

    def time_ns() -> int:
        nonlocal off_ns, looked_s
        now_s = passed_s()
        if now_s - looked_s > _LOOK_EVERY_S:
            off_ns, looked_s = int(file.read_text() or "0") * 1_000_000, now_s
        return real_ns() + off_ns

    return time_ns


if __name__ == "__main__":
    _, clock, module, *rest = sys.argv
    time.time_ns = shifted(Path(clock), time.time_ns, time.monotonic)
    time.time = lambda: time.time_ns() / 1e9
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
