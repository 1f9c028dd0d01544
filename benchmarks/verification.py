"""Cars that lie: how many of their rows count in the end under each rule of verification, and what finding out costs.

`python -m benchmarks.verification --json OUT [--quick]` drives the coordinator's core itself, in virtual time, with a
fleet that answers by a known truth. Jobs of quorum have fewer rows, as each row of theirs is computed several times.
Exit code 1 when `adaptive` misses what is promised of it, or an honest car is convicted.
"""

import argparse
import heapq
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.commands import AddAnswer, AddRows, Command, EndJob, FindOut, KeepConduct, SendControl, SendTask
from coordinator.core import Core
from coordinator.events import (
    BOOLEAN_SIGNALS,
    NUMBER_SIGNALS,
    JobSubmitted,
    ModelAdded,
    PolicySet,
    RowsKnown,
    RowsReceived,
    TelemetryBatch,
    Tick,
    VehicleCaps,
    VehicleState,
)
from coordinator.model import Job, LeaseRecord, Model
from coordinator.rules.verification import agreement
from fleet_wire.api import JobTerms, TensorSpec, Tolerance, Verification
from fleet_wire.messages import Cancel, Caps, Rows, Span, State
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Tensor, decode_tensors, encode_tensors

TOLERANCES: Final = {"y": Tolerance(absolute=1e-6, relative=1e-3)}
RULES: Final = {
    "none": Verification(),
    "canaries": Verification("canaries", tolerances=TOLERANCES),
    "adaptive": Verification("adaptive", tolerances=TOLERANCES),
    "quorum 2": Verification("quorum", quorum=2, tolerances=TOLERANCES),
    "quorum 3": Verification("quorum", quorum=3, tolerances=TOLERANCES),
}
BAD_SHARES: Final = (0.01, 0.05, 0.1)
SUBTLE_SHARE: Final = 0.03
"""Of its rows that a subtle or a colluding car answers wrongly."""
BEYOND: Final = 2.5e-3
"""How far a subtle car is beside the truth, in parts of it: the tolerance is 1e-3."""
NOISE: Final = 2e-5
"""By how much the numbers of honest cars differ."""
PROMISED_WRONG: Final = 1e-4
PROMISED_REDUNDANCY: Final = 1.15
_VALUES: Final = 2
_NOW_MS: Final = 1_790_000_000_000
_ROW_MS: Final = 20.0
_ROUND_MS: Final = 200
_TELEMETRY_MS: Final = 20_000
_ENGINES: Final = ("1.20", "1.21")  # versions of the runtime: two equivalence classes
_MODEL: Final = Model("a" * 64, 1, (TensorSpec("x", "float", [None, 1]),), (TensorSpec("y", "float", [None, 2]),), None)
_SPECS: Final = _MODEL.outputs

Values = NDArray[np.float32]
RowNumbers = NDArray[np.int64]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Tensor]).decode


@dataclass(frozen=True, slots=True)
class Outcome:
    """One job. `redundancy` is how many rows were computed anywhere, the coordinator's own included, for each of it.

    `wrong_rows_streamed` counts every wrong row that a client which follows the stream was ever shown;
    `wrong_rows_accepted` those that stand in the final result.
    """

    rule: str
    attack: str
    bad_share: float
    job: int
    cars: int
    rows: int
    wrong_rows_accepted: int
    wrong_rows_streamed: int
    rows_retracted: int
    redundancy: float
    rows_of_the_coordinator: int
    cars_bad: int
    cars_convicted: int
    honest_cars_convicted: int
    virtual_s: float
    processor_s: float


# Lies ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Gang:
    """The bad cars, who know of each other what they were given and what they answered."""

    attack: str
    quorum: int
    truth: Values
    rng: np.random.Generator
    holders: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    answers: dict[int, Values] = field(default_factory=dict)

    def given(self, vehicle: str, rows: Iterable[int]) -> None:
        if self.attack == "colluding":
            for row in rows:
                self.holders[row].add(vehicle)

    def answer(self, rows: RowNumbers, layers: RowNumbers) -> Values:
        """What a bad car says of these rows; `layers` is how many other cars are to compute the same row before it."""
        values = self.truth[rows].copy()
        match self.attack:
            case "random":
                values = self.rng.normal(size=values.shape).astype(np.float32)
            case "constant":
                values[:] = 1.0
            case "subtle":
                values[self.rng.random(len(rows)) < SUBTLE_SHARE] *= np.float32(1 + BEYOND)
            case "colluding":
                for place, (row, layer) in enumerate(zip(rows.tolist(), layers.tolist(), strict=True)):
                    values[place] = self._agreed(row, layer)
        return values

    def _agreed(self, row: int, layer: int) -> Values:
        """All say the same of a row. They lie when enough of them hold it to outvote anybody; they are honest when it
        looks like a check: more than one of them was given it, or somebody else had it before.
        """
        if row not in self.answers:
            together = len(self.holders[row])
            wins = together >= self.quorum > 1
            risks = together == 1 and layer == 0 and self.rng.random() < SUBTLE_SHARE
            self.answers[row] = self.truth[row] * np.float32(1 + BEYOND if wins or risks else 1)
        return self.answers[row]


# The fleet ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Car:
    """A car computes its leases one after the other; `noise` is what its runtime makes of a number."""

    vehicle: str
    noise: float
    bad: bool
    free_ms: float = 0.0
    dropped: set[tuple[str, int]] = field(default_factory=set)


class Fleet:
    """A core, cars, and the coordinator's own computing, in virtual time."""

    def __init__(self, cars: int, bad_share: float, seed: int) -> None:
        self.core = Core(secret=random.Random(seed).randbytes(32))
        self.now_ms = float(_NOW_MS)
        self.rng = np.random.default_rng(seed)
        bad = set(self.rng.permutation(cars)[: round(cars * bad_share)].tolist())
        self.cars = {
            f"car-{number:04d}": Car(f"car-{number:04d}", NOISE * (number % 7 - 3) / 3, number in bad)
            for number in range(cars)
        }
        self.convicted: set[str] = set()
        self._telemetry_ms, self._seq = float(_NOW_MS), 1
        self._due: list[tuple[float, int, str, LeaseRecord]] = []
        self._numbers = count()
        self._handle(ModelAdded(_MODEL))
        policy = OwnerPolicy(version=1, owner="bench", purposes=["general"])
        for number, vehicle in enumerate(self.cars):
            engine = _ENGINES[number % len(_ENGINES)]
            self._handle(PolicySet(vehicle, policy, "bench"))
            self._handle(VehicleState(vehicle, State(online=True, epoch=1)))
            self._handle(VehicleCaps(vehicle, Caps(1, "1", "x86_64", "CPU", engine, 1, 16, 1, models=[_MODEL.digest])))
        self._handle(telemetry(list(self.cars), 1, int(self.now_ms)))

    def _handle(self, event: Any) -> list[Command]:
        return self.core.handle(event, int(self.now_ms))

    def run(self, name: str, rows: int, rule: str, attack: str) -> "Court":
        """One job from its submission to its end."""
        terms = RULES[rule]
        truth = self.rng.normal(size=(rows, _VALUES)).astype(np.float32)
        court = Court(truth, Gang(attack, terms.quorum if terms.rule == "quorum" else 1, truth, self.rng))
        now_ms = int(self.now_ms)
        job = Job(name, "", _MODEL.digest, "b" * 64, rows, 16, JobTerms(verification=terms), created_ms=now_ms)
        commands = self._handle(JobSubmitted(job))
        while not court.ended:
            for command in [*commands, *self.core.assign(int(self.now_ms))]:
                self._carry_out(command, court)
            self.now_ms += _ROUND_MS
            commands = self._handle(Tick())
            for found in court.take_asked():
                payload = _encode(encode_tensors({"y": truth[list(found.rows)]}))
                commands += self._handle(RowsKnown(found.job, found.rows, payload))
            done: dict[str, list[LeaseRecord]] = defaultdict(list)
            while self._due and self._due[0][0] <= self.now_ms:
                _, _, vehicle, lease = heapq.heappop(self._due)
                if (lease.job, lease.chunk) not in self.cars[vehicle].dropped:
                    done[vehicle].append(lease)
            for vehicle, leases in done.items():
                commands += self._answer(self.cars[vehicle], leases, court)
            if self.now_ms - self._telemetry_ms > _TELEMETRY_MS:
                self._telemetry_ms, self._seq = self.now_ms, self._seq + 1
                commands += self._handle(telemetry(list(self.cars), self._seq, int(self.now_ms)))
        return court

    def _carry_out(self, command: Command, court: "Court") -> None:
        match command:
            case SendTask(vehicle=vehicle, leases=leases):
                car = self.cars[vehicle]
                car.free_ms = max(car.free_ms, self.now_ms)
                for lease in leases:
                    car.free_ms += _ROW_MS * (lease.stop - lease.start)
                    heapq.heappush(self._due, (car.free_ms, next(self._numbers), vehicle, lease))
                    if car.bad:
                        court.gang.given(vehicle, (slot % len(court.truth) for slot in range(lease.start, lease.stop)))
            case SendControl(vehicle, Cancel(job=job, chunks=chunks)):
                self.cars[vehicle].dropped |= {(job, chunk) for chunk in chunks}
            case KeepConduct(conduct) if conduct.convictions:
                self.convicted.add(conduct.vehicle)
            case _:
                court.hear(command)

    def _answer(self, car: Car, leases: list[LeaseRecord], court: "Court") -> list[Command]:
        """One message with all that a car has computed in a round."""
        slots = np.concatenate([np.arange(lease.start, lease.stop) for lease in leases])
        rows, layers = slots % len(court.truth), slots // len(court.truth)
        values = court.gang.answer(rows, layers) if car.bad else court.truth[rows]
        outputs = encode_tensors({"y": values * np.float32(1 + car.noise)})
        court.computed += len(slots)
        spans = [Span(lease.chunk, lease.start, lease.stop) for lease in leases]
        said = Rows(leases[0].job, 1, spans, None, None, compute_ms=_ROW_MS * len(slots), energy_mwh=0)
        specs = tuple(TensorSpec(each.name, each.dtype, list(each.shape)) for each in outputs)
        return self._handle(RowsReceived(car.vehicle, said, specs, _encode(outputs)))


@dataclass(slots=True)
class Court:
    """What a client that follows the stream sees, judged by the truth."""

    truth: Values
    gang: Gang
    seen: Values = field(init=False)
    there: NDArray[np.bool_] = field(init=False)
    payloads: dict[int, bytes] = field(default_factory=dict)
    computed: int = 0
    refereed: int = 0
    retracted: int = 0
    wrong_streamed: int = 0
    ended: bool = False
    _asked: list[FindOut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = np.zeros_like(self.truth)
        self.there = np.zeros(len(self.truth), dtype=np.bool_)

    def hear(self, command: Command) -> None:
        match command:
            case FindOut():
                self._asked.append(command)
                self.refereed += len(command.rows)
            case AddAnswer(answer=answer):
                self.payloads[answer.number] = answer.payload
            case AddRows(rows=entry) if entry.retracted:
                for piece in entry.pieces:
                    self.there[piece.start : piece.stop] = False
                    self.retracted += piece.stop - piece.start
            case AddRows(rows=entry):
                payload = entry.payload if entry.answer is None else self.payloads[entry.answer]
                assert payload is not None
                values = decode_tensors(_decode(payload))["y"]
                for piece in entry.pieces:
                    assert not self.there[piece.start : piece.stop].any(), "a row came twice"
                    self.there[piece.start : piece.stop] = True
                    self.seen[piece.start : piece.stop] = values[piece.offset :][: piece.stop - piece.start]
                    self.wrong_streamed += self.wrong(slice(piece.start, piece.stop))
            case EndJob(state=state, error=error):
                assert state == "done", error
                assert self.there.all(), "the job ended before every row was there"
                self.ended = True
            case _:
                pass

    def take_asked(self) -> list[FindOut]:
        """What the coordinator is to compute itself, since the last time."""
        asked, self._asked = self._asked, []
        return asked

    def wrong(self, rows: slice) -> int:
        """How many of these rows differ from the truth by more than the tolerance."""
        right = agreement({"y": self.seen[rows]}, {"y": self.truth[rows]}, TOLERANCES, same_class=False)
        return int(np.count_nonzero(~right))


def telemetry(vehicles: list[str], seq: int, now_ms: int) -> TelemetryBatch:
    """A snapshot of every car: parked, plugged in and willing."""
    many = len(vehicles)
    values = dict.fromkeys(BOOLEAN_SIGNALS, 0.0) | dict.fromkeys(NUMBER_SIGNALS, 20.0)
    values |= {"plugged": 1, "charging": 1, "opted_in": 1, "charge_percent": 80.0, "departure_ms": np.nan}
    return TelemetryBatch(
        vehicle=np.array(vehicles, dtype=object),
        received_ms=np.full(many, now_ms),
        ts_ms=np.full(many, now_ms),
        epoch=np.ones(many, dtype=np.int64),
        seq=np.full(many, seq),
        snapshot=np.ones(many, dtype=np.bool_),
        refusal=np.array([""] * many, dtype=object),
        signals={name: np.full(many, values[name], dtype="i1") for name in BOOLEAN_SIGNALS}
        | {name: np.full(many, values[name], dtype="f8") for name in NUMBER_SIGNALS},
    )


# The table ----------------------------------------------------------------------------------------------------------


def outcome_of(fleet: Fleet, number: int, rows: int, rule: str, attack: str, bad_share: float) -> Outcome:
    begun_s, begun_ms, before = time.process_time(), fleet.now_ms, set(fleet.convicted)
    court = fleet.run(f"job-{number}", rows, rule, attack)
    bad = {car.vehicle for car in fleet.cars.values() if car.bad}
    convicted = fleet.convicted - before
    return Outcome(
        rule=rule,
        attack=attack,
        bad_share=bad_share,
        job=number,
        cars=len(fleet.cars),
        rows=rows,
        wrong_rows_accepted=court.wrong(slice(None)),
        wrong_rows_streamed=court.wrong_streamed,
        rows_retracted=court.retracted,
        redundancy=round((court.computed + court.refereed) / rows, 4),
        rows_of_the_coordinator=court.refereed,
        cars_bad=len(bad),
        cars_convicted=len(convicted),
        honest_cars_convicted=len(convicted - bad),
        virtual_s=round((fleet.now_ms - begun_ms) / 1000, 1),
        processor_s=round(time.process_time() - begun_s, 2),
    )


HEAD: Final = f"{'rule':<9} {'attack':<10} {'bad':>4} {'job':>3} {'rows':>8} {'wrong':>7} {'shown':>7} {'back':>7} " + (
    f"{'redundancy':>10} {'own':>6} {'convicted':>9} {'honest':>6} {'processor':>9}"
)


def line_of(one: Outcome) -> str:
    return (
        f"{one.rule:<9} {one.attack:<10} {one.bad_share:>4.0%} {one.job:>3} {one.rows:>8,}"
        f" {one.wrong_rows_accepted:>7,} {one.wrong_rows_streamed:>7,} {one.rows_retracted:>7,} {one.redundancy:>10.3f}"
        f" {one.rows_of_the_coordinator:>6,} {one.cars_convicted:>4} of {one.cars_bad:<2}"
        f" {one.honest_cars_convicted:>6} {one.processor_s:>7.1f} s"
    )


def misses(outcomes: Iterable[Outcome]) -> list[str]:
    """What is promised and was not held."""
    faults = []
    for one in outcomes:
        what = f"{one.rule}, {one.attack}, {one.bad_share:.0%} bad, job {one.job}"
        if one.honest_cars_convicted:
            faults.append(f"{what}: {one.honest_cars_convicted} honest cars were convicted")
        if one.rule != "adaptive" or one.bad_share != 0.05:
            continue
        if one.wrong_rows_accepted >= PROMISED_WRONG * one.rows:
            faults.append(f"{what}: {one.wrong_rows_accepted} of {one.rows:,} rows are wrong")
        if one.redundancy > PROMISED_REDUNDANCY:
            faults.append(f"{what}: redundancy {one.redundancy}")
    firsts = {one.attack: one for one in outcomes if one.job == 1 and one.rule == "adaptive" and one.bad_share == 0.05}
    faults += [
        f"the second job of the fleet cost {one.redundancy}, and the first {firsts[one.attack].redundancy}"
        for one in outcomes
        if one.job == 2 and one.redundancy >= firsts[one.attack].redundancy
    ]
    return faults


def measure(
    cars: int, rows: int, quorum_rows: int, bad_shares: Iterable[float], tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Every rule against every attack; then a second job for a fleet that the first has taught to trust."""
    outcomes: list[Outcome] = []

    def keep(one: Outcome) -> None:
        outcomes.append(one)
        tell(one)

    for rule in RULES:
        for attack in ("random", "constant", "subtle", "colluding"):
            for bad_share in bad_shares:
                fleet = Fleet(cars, bad_share, seed=len(outcomes))
                each = quorum_rows if rule.startswith("quorum") else rows
                keep(outcome_of(fleet, 1, each, rule, attack, bad_share))
                if (rule, attack, bad_share) == ("adaptive", "subtle", 0.05):
                    keep(outcome_of(fleet, 2, rows, rule, attack, bad_share))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.verification", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="20 cars and 40,000 rows, 5 %% of the cars bad")
    asked = parser.parse_args()
    cars, rows, quorum_rows, shares = (
        (20, 40_000, 10_000, (0.05,)) if asked.quick else (100, 200_000, 40_000, BAD_SHARES)
    )
    print(HEAD)
    outcomes = measure(cars, rows, quorum_rows, shares, lambda one: print(line_of(one), flush=True))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n", encoding="utf-8")
    faults = misses(outcomes)
    for fault in faults:
        print(f"missed: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
