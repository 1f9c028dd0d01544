"""A control group (cgroups v2) that holds the worker to its allotment. Decides nothing.

The folder's parent was delegated to the agent and has no process of its own, as with systemd's `Delegate=yes` and
`DelegateSubgroup=agent`. The agent prepares the group, each worker enters it by itself.
"""

import os
from pathlib import Path
from typing import Final

from vehicle_agent.allotment import Allotment

__all__ = ["enter_cgroup", "prepare_cgroup"]

_PERIOD_US: Final = 100_000
_CONTROLLERS: Final = "+cpu +memory"


def prepare_cgroup(folder: Path, allotment: Allotment) -> None:
    """Make the group and set its bounds. Raise OSError where there are no such groups, or they are not ours."""
    control = folder.parent / "cgroup.subtree_control"
    if not {"cpu", "memory"} <= set(control.read_text(encoding="ascii").split()):
        control.write_text(_CONTROLLERS, encoding="ascii")
    folder.mkdir(exist_ok=True)
    _set(folder / "memory.max", str(allotment.memory_bytes))
    quota_us = round(allotment.busy_share * allotment.threads * _PERIOD_US)
    _set(folder / "cpu.max", f"{quota_us if allotment.busy_share < 1 else 'max'} {_PERIOD_US}")


def enter_cgroup(folder: Path) -> None:
    """Put this process into the group. Raise OSError."""
    _set(folder / "cgroup.procs", str(os.getpid()))


def _set(file: Path, value: str) -> None:
    with file.open("r+", encoding="ascii") as opened:  # never made by us: where it is missing, nothing would be bound
        opened.write(value)
