"""What happens to a deployment, and when, from a seed. Pure: the same seed is the same plan, on every machine."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

__all__ = ["LINK_KINDS", "MESSAGE_KINDS", "Fault", "Kind", "Load", "Plan", "plan_of"]


class Kind(StrEnum):
    """What is done to a target."""

    KILL = "kill"  # SIGKILL, and a new start after a while
    PAUSE = "pause"  # SIGSTOP, and SIGCONT
    CUT = "cut"  # connections are reset and refused
    DELAY = "delay"  # every piece comes later
    LOSS = "loss"  # nothing passes for a while, then connections are reset, as by a network that loses packets
    HALF_OPEN = "half-open"  # connections are accepted, and what is sent goes nowhere
    DUPLICATE = "duplicate"  # a PUBLISH comes twice
    REORDER = "reorder"  # a PUBLISH comes behind the next one of another topic
    HOLD = "hold"  # a PUBLISH comes much later
    TRUNCATE = "truncate"  # the end of a payload is missing, in a packet that is well formed
    CORRUPT = "corrupt"  # bytes of a payload are others
    BREAK = "break"  # a packet says a length that is not its own
    CLOCK = "clock"  # the wall clock of a process is set
    DISK = "disk"  # no file can grow
    SLOW_DISK = "slow disk"  # what is written and synced takes longer
    LEAVE = "leave"  # the cable is pulled, and later put in again
    REVOKE = "revoke"  # the owner withdraws the consent
    LIE = "lie"  # a car answers wrongly, in some of its rows


LINK_KINDS: Final = (Kind.CUT, Kind.DELAY, Kind.LOSS, Kind.HALF_OPEN)
MESSAGE_KINDS: Final = (Kind.DUPLICATE, Kind.REORDER, Kind.HOLD, Kind.TRUNCATE, Kind.CORRUPT, Kind.BREAK)
_WINDOW_S: Final = 6.0
_FAULTS: Final = (4, 7)
_ROWS: Final = {"slow": (300, 800), "digits": (3_000, 20_000), "wide": (20, 80)}
_CARS_WITH_LIARS: Final = 4
_ALL: Final = 100  # percent


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done at `at_s` for `for_s`.

    `amount` is what the kind makes of it: how many messages, ms, or percent of the rows. A lie that begins at 0 begins
    before the first job, and one for 0 s has no end.
    """

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0
    amount: int = 0
    direction: str = ""

    def __str__(self) -> str:
        how = "".join(
            [f" {self.amount}" if self.amount else "", f" {self.direction}" if self.direction else ""]
            + ([f" for {self.for_s:g} s"] if self.for_s else [])
        )
        return f"{self.at_s:g} s: {self.kind} {self.target}{how}"


@dataclass(frozen=True, slots=True)
class Load:
    """A job that is submitted at `at_s` after the first one is under way; the first one at 0. `verify` is its rule."""

    at_s: float
    model: str
    rows: int
    verify: str = "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run is made of."""

    seed: int
    cars: int
    store: str
    ledger: str
    broker_keeps: bool
    loads: tuple[Load, ...]
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> frozenset[Kind]:
        """What kinds of faults it has."""
        return frozenset(fault.kind for fault in self.faults)

    @property
    def liars(self) -> frozenset[str]:
        """Cars that answer wrongly at some time."""
        return frozenset(fault.target for fault in self.faults if fault.kind is Kind.LIE)

    @property
    def never_honest(self) -> frozenset[str]:
        """Those that answer every row wrongly, from the first to the last."""
        always = (0.0, 0.0, _ALL)
        lies = (fault for fault in self.faults if fault.kind is Kind.LIE)
        return frozenset(lie.target for lie in lies if (lie.at_s, lie.for_s, lie.amount) == always)

    @property
    def stepped_ms(self) -> int:
        """How far the coordinator's clock is set in all."""
        return sum(
            abs(fault.amount) for fault in self.faults if (fault.kind, fault.target) == (Kind.CLOCK, "coordinator")
        )


def plan_of(seed: int) -> Plan:
    """The plan of a seed. One car is never killed, unplugged, asked to stop or made to lie, so that jobs can end.

    Where cars lie all jobs are verified, for nobody promises anything else, and by a quorum only of as many cars as are
    left in the end: a car that was convicted gets no work for a day.
    """
    rng = Random(seed)
    kinds = rng.sample(list(Kind), rng.randint(*_FAULTS))
    cars = _CARS_WITH_LIARS if Kind.LIE in kinds else rng.randint(2, 3)
    unsorted = [_fault(kind, cars, rng) for kind in kinds if kind is not Kind.LIE]
    if Kind.LIE in kinds:
        unsorted += [_lie(f"car-{car}", rng) for car in rng.sample(range(2, cars + 1), rng.randint(1, 2))]
    faults = tuple(sorted(unsorted, key=lambda fault: fault.at_s))
    gone = {fault.target for fault in faults if fault.kind in {Kind.LIE, Kind.REVOKE}}
    quorums = [f"quorum:{count}" for count in range(2, cars - len(gone) + 1)]
    rules = ["adaptive", *quorums] if Kind.LIE in kinds else [*["none"] * 3, "canaries", "adaptive", *quorums[:1]]
    loads = (
        _load(0.0, "slow", rng.randrange(2_000, 3_000), rng.choice(rules)),
        _load(round(rng.uniform(1.0, 2.5), 1), *_model(["digits", "wide"], rng), rng.choice(rules)),
        _load(round(rng.uniform(3.0, 4.5), 1), *_model(["slow", "digits", "wide"], rng), rng.choice(rules)),
    )
    store = "influx" if any(fault.target == "store" for fault in faults) else "duckdb"
    ledger = "postgres" if any(fault.target == "ledger" for fault in faults) else "sqlite"
    return Plan(seed, cars, store, ledger, rng.random() < 0.7, loads, faults)


def _model(models: list[str], rng: Random) -> tuple[str, int]:
    model = rng.choice(models)
    return model, rng.randrange(*_ROWS[model])


def _load(at_s: float, model: str, rows: int, verify: str) -> Load:
    """Fewer rows where each is computed several times, and few that are large: the ledger keeps all answers."""
    copies = int(verify.partition(":")[2] or 1)
    return Load(at_s, model, rows // (4 if model == "wide" and verify != "none" else copies), verify)


def _lie(car: str, rng: Random) -> Fault:
    """Half of the liars were never honest; the others turn bad, for good or for a while, in all rows or in some."""
    if rng.random() < 0.5:
        return Fault(0.0, Kind.LIE, car, amount=_ALL)
    at_s, for_s = round(rng.uniform(0.5, _WINDOW_S), 1), rng.choice([0.0, 0.0, 1.5])
    return Fault(at_s, Kind.LIE, car, for_s, amount=rng.choice([_ALL, 30]))


def _fault(kind: Kind, cars: int, rng: Random) -> Fault:  # noqa: C901 - one case a kind
    at_s = round(rng.uniform(0.5, _WINDOW_S), 1)
    car = f"car-{rng.randint(2, cars)}"
    link = rng.choice([f"{car}/broker", f"{car}/broker", f"{car}/http", "coordinator/broker"])
    mqtt = rng.choice([f"{car}/broker", f"{car}/broker", "coordinator/broker"])
    for_s = round(rng.uniform(0.3, 2.5), 1)
    direction = rng.choice(["up", "down"])
    match kind:
        case Kind.KILL | Kind.PAUSE:
            target = rng.choice([car, f"{car}/worker", "coordinator", "coordinator", "broker", "store", "ledger"])
            return Fault(at_s, kind, target, for_s)
        case Kind.CUT | Kind.LOSS | Kind.HALF_OPEN:
            return Fault(at_s, kind, link, for_s)
        case Kind.DELAY:
            return Fault(at_s, kind, link, for_s, amount=rng.choice([20, 100, 300]))
        case Kind.HOLD:
            return Fault(at_s, kind, mqtt, for_s, amount=rng.randint(1, 5), direction=direction)
        case Kind.DUPLICATE | Kind.REORDER | Kind.TRUNCATE | Kind.CORRUPT:
            return Fault(at_s, kind, mqtt, amount=rng.randint(1, 10), direction=direction)
        case Kind.BREAK:
            return Fault(at_s, kind, mqtt, amount=1, direction=direction)
        case Kind.CLOCK if rng.random() < 0.5:
            # Forward only so far that it has caught up soon after it is set right: what else helps is a restart.
            return Fault(at_s, kind, "coordinator", for_s, amount=rng.choice([-3_600_000, -60_000, -2_000, 2_000]))
        case Kind.CLOCK:
            step_ms = rng.choice([-1, 1]) * rng.choice([2_000, 60_000, 3_600_000])
            return Fault(at_s, kind, car, for_s, amount=step_ms)
        case Kind.DISK:
            return Fault(at_s, kind, rng.choice([car, "coordinator"]), for_s)
        case Kind.SLOW_DISK:
            target = rng.choice([car, "coordinator", "coordinator", "ledger", "ledger", "store"])
            return Fault(at_s, kind, target, for_s + 1.0, amount=rng.choice([50, 150, 500]))
        case Kind.LEAVE:
            return Fault(at_s, kind, car, for_s)
        case Kind.REVOKE:
            return Fault(at_s, kind, car)
