"""Telemetry into InfluxDB by the coordinator's store, beside the fastest plain writer on the same server.

The plain writer sends bytes that were prepared before its clock started, on two connections, in requests of either size
of which the server takes more. The store gets columns, as ingest makes them, must encode and send them, and know that
they are kept.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Final

import httpx
import numpy as np

from benchmarks.figures import Figure, Plan, at_least, listed, middle
from coordinator.adapters.influx_lines import LineEncoder, joined
from coordinator.adapters.influx_server import InfluxAddress
from coordinator.adapters.influx_store import InfluxStore
from coordinator.daemon import THREAD_SWITCH_S
from coordinator.events import TelemetryBatch
from tests.influx import VERSIONS, InfluxProcess, find_influxd

GROUP: Final = "influx"
VEHICLES: Final = 1_000
LINES_AT_ONCE: Final = (5_000, 10_000)
BATCHES_AT_ONCE: Final = 30  # as many documents as may wait for the store
NUMBERS: Final = (
    "charge_percent",
    "battery_temperature_c",
    "battery_power_w",
    "cabin_temperature_c",
    "link_rate_mbps",
    "compute_temperature_c",
    "compute_power_w",
)
FLAGS: Final = ("moving", "plugged", "charging")


async def measure(plan: Plan) -> list[Figure]:
    rounds = 100 if plan.quick else 300
    sys.setswitchinterval(THREAD_SWITCH_S)  # as in the coordinator
    figures = []
    for version in VERSIONS:
        name = f"InfluxDB {version}, {rounds * VEHICLES:,} documents of 10 signals"
        program = find_influxd(version)
        if program is None:
            figures.append(Figure(GROUP, name, "documents/s", note="not installed (tests/install_servers.sh)"))
            continue
        folder = plan.directory / version
        folder.mkdir()
        server = InfluxProcess(program, folder)
        server.start()
        try:
            ours: list[float] = []
            plain: dict[int, list[float]] = {lines: [] for lines in LINES_AT_ONCE}
            for run in range(max(plan.runs, 2)):
                # In turn first: a server still compacts what came before.
                for lines in (0, *LINES_AT_ONCE) if run % 2 else (*LINES_AT_ONCE, 0):
                    if lines:
                        database = f"plain{lines}_{run}"
                        plain[lines].append(await asyncio.to_thread(_plain, server, database, rounds, lines))
                    else:
                        spill = folder / f"spill{run}"
                        ours.append(await asyncio.to_thread(_ours, server, f"ours{run}", rounds, spill))
        finally:
            server.kill()
        best = max(LINES_AT_ONCE, key=lambda lines: middle(plain[lines]))
        note = f"{listed(ours)}; plain " + "; ".join(f"{listed(each)} by {lines:,}" for lines, each in plain.items())
        figure = Figure(
            GROUP, name, "documents/s", middle(ours), middle(plain[best]), f"bytes, {best:,} lines", note=note
        )
        figures.append(at_least(0.8, figure))
    return figures


def _batches(rounds: int) -> Iterator[TelemetryBatch]:
    rng = np.random.default_rng(3)
    ids = np.array([f"car-{number:05}" for number in range(VEHICLES)], dtype=object)
    for seq in range(rounds):
        now_ms = 1_790_000_000_000 + seq * 10_000
        yield TelemetryBatch(
            vehicle=ids,
            received_ms=np.full(VEHICLES, now_ms),
            ts_ms=np.full(VEHICLES, now_ms - 50),
            epoch=np.full(VEHICLES, 3),
            seq=np.full(VEHICLES, seq),
            snapshot=np.zeros(VEHICLES, dtype=np.bool_),
            refusal=np.full(VEHICLES, None, dtype=object),
            signals={
                **{name: rng.integers(0, 2, VEHICLES, dtype=np.int8) for name in FLAGS},
                **{name: np.round(rng.uniform(0, 100, VEHICLES), 1) for name in NUMBERS},
            },
        )


def _plain(server: InfluxProcess, database: str, rounds: int, lines_at_once: int) -> float:
    server.query(f'CREATE DATABASE "{database}"')
    encoder = LineEncoder(lambda _: "north")
    lines = [line for batch in _batches(rounds) for line in encoder.encode(batch)]
    bodies = [joined(lines[start : start + lines_at_once]) for start in range(0, len(lines), lines_at_once)]
    with httpx.Client(base_url=server.http, timeout=60) as client, ThreadPoolExecutor(2) as connections:

        def send(body: bytes) -> None:
            client.post("/write", params={"db": database}, content=body).raise_for_status()

        begun_s = time.perf_counter()
        list(connections.map(send, bodies))
        return len(lines) / (time.perf_counter() - begun_s)


def _ours(server: InfluxProcess, database: str, rounds: int, spill: Path) -> float:
    store = InfluxStore(InfluxAddress.parse(server.url(database)), spill, lambda _: "north", Random(1))
    store.open()
    batches = list(_batches(rounds))
    begun_s = time.perf_counter()
    for start in range(0, rounds, BATCHES_AT_ONCE):
        store.append(batches[start : start + BATCHES_AT_ONCE])
    per_s = rounds * VEHICLES / (time.perf_counter() - begun_s)
    written = store.status().counters["lines_written"]
    store.close()
    assert written == rounds * VEHICLES, "some of it went to disk"
    found = server.query("SELECT count(seq) FROM vehicle_state", database)
    assert found[0]["values"][0][1] == rounds * VEHICLES  # type: ignore[index]
    return per_s
