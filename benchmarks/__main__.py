"""Runs the benchmarks and prints one table: `python -m benchmarks [--only NAME ...] [--quick] [--json FILE]`."""

import argparse
import asyncio
import importlib
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

import psutil

from benchmarks.figures import Figure, Plan, report, table

BENCHMARKS: Final = (
    "dispatch",
    "models",
    "telemetry",
    "influx",
    "idle",
    "scheduling",
    "ledger",
    "preemption",
    "recovery",
    "takeover",
)
BY_NAME_ALONE: Final = {"mqtt_clients": "clients"}


def main() -> int:
    """Measure, print, and return 1 when a requirement was missed or something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*BENCHMARKS, *BY_NAME_ALONE], default=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="one run of each figure instead of three, and less work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too, as a list of objects")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    broken: list[str] = []
    for name in arguments.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="idlewheel-bench-") as folder:
            plan = Plan(arguments.quick, 1 if arguments.quick else 3, Path(folder))
            module = importlib.import_module(f"benchmarks.{BY_NAME_ALONE.get(name, name)}")
            try:
                measured = asyncio.run(module.measure(plan))
            except Exception:  # noqa: BLE001 - the others take minutes, and are not to be lost for this one
                traceback.print_exc()
                broken.append(name)
                continue
        print(table(measured), file=sys.stderr, flush=True)  # of a run that is broken off something should be left
        figures += measured
    print(_machine())
    print()
    missed = report(figures, arguments.json)
    if broken:
        print(f"\nnot measured, see the errors above: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else missed


def _machine() -> str:
    memory_gb = psutil.virtual_memory().total / 1e9
    return (
        f"{time.strftime('%Y-%m-%d')}, {psutil.cpu_count()} shared cores, {memory_gb:.0f} GB, "
        f"Python {platform.python_version()}; generator, broker, coordinator and workers all share them"
    )


if __name__ == "__main__":
    sys.exit(main())
