"""A large fleet: who may work, one pass of assignment, leases on every chunk that is open, and memory a vehicle."""

import time
import tracemalloc
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np

from benchmarks.figures import Figure, Plan, below, listed, middle
from coordinator.commands import Command, GrantLease
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
from coordinator.fleet_view import FleetView
from coordinator.model import Job, Model
from coordinator.progress import JobProgress
from fleet_wire.api import JobTerms, TensorSpec, Verification
from fleet_wire.messages import Caps, Span, State
from fleet_wire.policy import Hours, OwnerPolicy

GROUP: Final = "scheduling"
VEHICLES: Final = 100_000
JOBS: Final = 100
CHUNKS: Final = 10_000
MODELS: Final = 10
LIMIT_MS: Final = 50.0
LIMIT_BYTES: Final = 1024
VIEWED: Final = 20_000
SCATTERED: Final = 16_000
_CHUNK_ROWS: Final = 8
_NOW_MS: Final = 1_790_000_000_000


async def measure(plan: Plan) -> list[Figure]:
    core = fleet_at_rest()
    one_run(core, "warm")
    runs = [one_run(core, f"run-{number}") for number in range(2 * plan.runs + 1)]
    firsts, wholes = [run.first_ms for run in runs], [run.whole_ms for run in runs]
    first = Figure(
        GROUP,
        f"eligibility of {VEHICLES:,} vehicles and one pass over {CHUNKS:,} open chunks of {JOBS} jobs",
        "ms",
        middle(firsts),
        note=f"{listed(firsts)}; processor time {fmean(run.first_cpu_ms for run in runs):.0f} ms; leases"
        f" {runs[-1].first_leases:,} chunks, where a pass ends, with all records and commands",
    )
    whole = Figure(
        GROUP,
        f"all {CHUNKS:,} chunks leased, in {runs[-1].passes} passes",
        "ms",
        middle(wholes),
        note=listed(wholes),
    )
    looks = [run.reasons_ms for run in runs]
    return [
        below(LIMIT_MS, first),
        Figure(GROUP, f"of it eligibility of {VEHICLES:,} vehicles", "ms", middle(looks), note=listed(looks)),
        whole,
        _scattered(plan.runs),
        below(LIMIT_BYTES, Figure(GROUP, f"fleet view of {VIEWED:,} vehicles, memory a vehicle", "B", view_bytes())),
    ]


def _scattered(runs: int) -> Figure:
    """With half as many rows it should take half as long."""
    times, halves = [[scattered_ms(rows) for _ in range(runs)] for rows in (SCATTERED, SCATTERED // 2)]
    name = f"every other of {SCATTERED:,} rows to be checked: looked for by the car that computed them, and another"
    return Figure(GROUP, name, "ms", middle(times), note=f"{listed(times)}; half as many rows: {middle(halves):.0f} ms")


def scattered_ms(rows: int) -> float:
    """How long it takes to look for rows to check, of which none, and then all, are for a car."""
    terms = JobTerms(verification=Verification("adaptive"))
    progress = JobProgress.fresh(Job("checked", "", f"{0:064x}", "b" * 64, rows, 64, terms, _NOW_MS))
    with progress.taking("author", _somebody) as taking:
        taking.chunks(rows)
    progress.accept([Span(0, 0, rows)])
    progress.cars["author"] = 0
    progress.answered[:rows] = 0
    progress.reopen(np.arange(rows, 2 * rows, 2))
    before = time.perf_counter()
    with progress.taking("author", _somebody) as taking:
        assert not taking.chunks(1)
    with progress.taking("other", _somebody) as taking:
        taken = 0
        while chunks := taking.chunks(_CHUNK_ROWS):
            taken += len(chunks)
    after = time.perf_counter()
    assert taken == rows // 2
    return (after - before) * 1000


def _somebody(failed_at: Collection[str]) -> bool:
    return len(failed_at) < VEHICLES


@dataclass(frozen=True, slots=True)
class Run:
    """Times of eligibility, of it and the first pass, and of all passes until every chunk is leased."""

    reasons_ms: float
    first_ms: float
    first_cpu_ms: float
    first_leases: int
    whole_ms: float
    passes: int


def one_run(core: Core, name: str) -> Run:
    """Submit jobs and time what follows."""
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
    granted = [leases(core.assign(_NOW_MS))]
    first, first_processor = time.perf_counter(), time.process_time()
    while sum(granted) < CHUNKS:
        granted.append(leases(core.assign(_NOW_MS)))
        assert granted[-1], f"{sum(granted)} chunks were leased"
    after = time.perf_counter()
    for job in jobs:
        core.handle(JobCancelled(job.id), _NOW_MS)
    return Run(
        reasons_ms=(looked - before) * 1000,
        first_ms=(first - before) * 1000,
        first_cpu_ms=(first_processor - processor) * 1000,
        first_leases=granted[0],
        whole_ms=(after - before) * 1000,
        passes=len(granted),
    )


def leases(commands: list[Command]) -> int:
    return sum(isinstance(command, GrantLease) for command in commands)


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


def view_bytes() -> float:
    """Bytes a vehicle of a fleet view in which each has a policy of its own, with hours, and three of ten models."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    fleet = FleetView()
    for number in range(VIEWED):
        vehicle = f"car-{number:06d}"
        models = [f"{(number + each) % MODELS:064x}" for each in range(3)]
        hours = [Hours([0, 1, 2, 3, 4], 22 * 60, 6 * 60)]
        fleet.set_state(vehicle, State(online=True, epoch=1))
        fleet.set_caps(vehicle, Caps(1, "1", "", "", "", 1, 4, 1, models=models))
        fleet.set_policy(vehicle, OwnerPolicy(version=1, owner=f"owner-{number}", purposes=["general"], hours=hours))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / VIEWED


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
