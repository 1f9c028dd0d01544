"""Eligibility and one pass of assignment over a large fleet: who may work, and leases on every chunk that is open."""

import time
from statistics import fmean
from typing import Final

import numpy as np

from benchmarks.figures import Figure, Plan, below, listed, middle
from coordinator.commands import GrantLease
from coordinator.core import Core
from coordinator.events import (
    BOOLEAN_SIGNALS,
    NUMBER_SIGNALS,
    JobCancelled,
    JobSubmitted,
    ModelAdded,
    PolicySet,
    TelemetryBatch,
    VehicleCaps,
    VehicleState,
)
from coordinator.model import Job, Model
from fleet_wire.api import JobTerms, TensorSpec
from fleet_wire.messages import Caps, State
from fleet_wire.policy import OwnerPolicy

GROUP: Final = "scheduling"
VEHICLES: Final = 100_000
JOBS: Final = 100
CHUNKS: Final = 10_000
MODELS: Final = 10
LIMIT_MS: Final = 50.0
_CHUNK_ROWS: Final = 8
_NOW_MS: Final = 1_790_000_000_000


async def measure(plan: Plan) -> list[Figure]:
    core = fleet_at_rest()
    for number in range(3):  # warms the caches of this process, not the cars
        one_pass(core, f"warm-{number}")
    reasons_ms, pass_ms, cpu_ms = [], [], []
    for number in range(2 * plan.runs + 1):
        looked_ms, took_ms, processor_ms = one_pass(core, f"run-{number}")
        reasons_ms.append(looked_ms)
        pass_ms.append(took_ms)
        cpu_ms.append(processor_ms)
    whole = Figure(
        GROUP,
        f"eligibility of {VEHICLES:,} vehicles and one pass that leases {CHUNKS:,} chunks of {JOBS} jobs",
        "ms",
        middle(pass_ms),
        note=f"{listed(pass_ms)}; processor time {fmean(cpu_ms):.0f} ms; with all records and commands",
    )
    return [
        below(LIMIT_MS, whole),
        Figure(GROUP, f"of it eligibility of {VEHICLES:,} vehicles", "ms", middle(reasons_ms), note=listed(reasons_ms)),
    ]


def one_pass(core: Core, name: str) -> tuple[float, float, float]:
    """Submit jobs and time what follows; returns milliseconds for eligibility, for all, and of processor time."""
    models = sorted(core.models)
    jobs = [
        Job(
            id=f"{name}-{number}",
            name="",
            model=models[number % MODELS],
            inputs="b" * 64,
            rows=CHUNKS // JOBS * _CHUNK_ROWS,
            row_bytes=64,
            terms=JobTerms(chunk_rows=_CHUNK_ROWS, priority=number % 3),
            created_ms=_NOW_MS,
        )
        for number in range(JOBS)
    ]
    for job in jobs:
        core.handle(JobSubmitted(job), _NOW_MS)
    core.handle(telemetry(core.fleet.ids[:1], seq=int(core.fleet.column["seq"][0]) + 1), _NOW_MS)
    before, processor = time.perf_counter(), time.process_time()
    core.reasons(_NOW_MS)
    looked = time.perf_counter()
    commands = core.assign(_NOW_MS)
    after, processor_after = time.perf_counter(), time.process_time()
    granted = sum(isinstance(command, GrantLease) for command in commands)
    assert granted == CHUNKS, f"{granted} chunks were leased"
    for job in jobs:
        core.handle(JobCancelled(job.id), _NOW_MS)
    return (looked - before) * 1000, (after - before) * 1000, (processor_after - processor) * 1000


def fleet_at_rest() -> Core:
    """A core that knows a fleet in which every car may work; a tenth of it has each model."""
    core = Core()
    models = [
        Model(f"{number:064x}", 1_000_000, (TensorSpec("x", "float", [None, 16]),), (), None)
        for number in range(MODELS)
    ]
    vehicles = [f"car-{number:06d}" for number in range(VEHICLES)]
    policy = OwnerPolicy(version=1, owner="bench", purposes=["general"])
    for model in models:
        core.handle(ModelAdded(model), _NOW_MS)
    for number, vehicle in enumerate(vehicles):
        cached = [models[number % MODELS].digest]
        core.handle(VehicleState(vehicle, State(online=True, epoch=1)), _NOW_MS)
        core.handle(PolicySet(vehicle, policy, "benchmark"), _NOW_MS)
        core.handle(VehicleCaps(vehicle, Caps(1, "1", "", "", "", 1, 4, 1, models=cached)), _NOW_MS)
    core.handle(telemetry(vehicles, seq=1), _NOW_MS)
    for model in models:
        core.speeds.learn(vehicles[0], model.digest, 20.0)
    return core


def telemetry(vehicles: list[str], seq: int) -> TelemetryBatch:
    """Full snapshots of cars that may work, not all alike."""
    count = len(vehicles)
    random = np.random.default_rng(1)
    values: dict[str, float] = dict.fromkeys(BOOLEAN_SIGNALS, 0) | dict.fromkeys(NUMBER_SIGNALS, 20.0)
    values |= {"plugged": 1, "opted_in": 1, "departure_charge_percent": 10.0, "departure_ms": float("nan")}
    signals = {name: np.full(count, values[name], dtype="i1") for name in BOOLEAN_SIGNALS}
    signals |= {name: np.full(count, values[name], dtype="f8") for name in NUMBER_SIGNALS}
    signals["charging"] = random.integers(0, 2, count).astype("i1")
    signals["charge_percent"] = random.uniform(60, 100, count)
    return TelemetryBatch(
        vehicle=np.array(vehicles, dtype=object),
        received_ms=np.full(count, _NOW_MS, dtype=np.int64),
        ts_ms=np.full(count, _NOW_MS, dtype=np.int64),
        epoch=np.ones(count, dtype=np.int64),
        seq=np.full(count, seq, dtype=np.int64),
        snapshot=np.ones(count, dtype=np.bool_),
        refusal=np.array([""] * count, dtype=object),
        signals=signals,
    )
