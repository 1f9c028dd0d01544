"""How well the availability model foresees cars that it has not seen, and months: `python -m benchmarks.availability`.

Charging sessions are played through the production model in order of time. Users are held out in turn: the fleet's
part of the model never sees them, their own history is learned as they go, as in production. Beside it stand two
baselines that know as much of the other users: the share that stayed by hour of week (`fleet_mean`), and one share for
all hours, which is to have no model (`none`). Nobody knows what is to come, nor, with months held out, what came since
the month began.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.availability_plot import calibration_svg
from benchmarks.charging_sessions import BadTable, Car, read_table
from coordinator.availability import Availability, AvailabilityTerms
from coordinator.hazard import MINUTE_MS, week_quarter

MINUTES = (1, 5, 15, 60)
FOLDS = 5
ENOUGH = 0.95
NAMES = ("model", "fleet_mean", "none")
ATTRIBUTION = "charging sessions: Å. L. Sørensen (2024), doi 10.5281/zenodo.13896176, CC BY 4.0"
_ROOT = Path(__file__).resolve().parent.parent
_SHARED = _ROOT.parent / "shared" / "data" / "norway" / "sessions.csv.gz"
_SAMPLE = _ROOT / "simulator" / "data" / "sessions.csv.gz"
# Minutes between two looks at the fleet, without a factor in common with an hour: all its minutes have their turn.
_STEPS = (7, 11, 23, 47)
_MOST_LOOKS = 15_000
_BASELINE_WEIGHT = 20.0
_LEAST_CHANCE = 1e-6
_CALIBRATION_EDGES = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])

Chances = dict[str, NDArray[np.float64]]  # by name, shape [len(MINUTES), looks]


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks at plugged-in cars: when, for how many minutes it stayed, and the chances given, shape [minutes, looks]."""

    fold: NDArray[np.int64]
    at_ms: NDArray[np.int64]
    left_min: NDArray[np.float64]
    online: NDArray[np.float64]
    month_before: NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.availability", description=__doc__)
    parser.add_argument("--sessions", type=Path, metavar="FILE", help="CSV of charging sessions, gzipped or not")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here too")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="write the calibration as an SVG plot here")
    given = parser.parse_args(arguments)
    path = given.sessions or (_SHARED if _SHARED.exists() else _SAMPLE)
    try:
        table = read_table(path)
        looks = play(table.cars)
    except BadTable as error:
        print(error, file=sys.stderr)
        return 2
    figures = {
        "source": path.name
        if given.sessions
        else f"{path.name} ({'shared' if path == _SHARED else 'built-in sample'})",
        "attribution": ATTRIBUTION if path.resolve() in {_SHARED, _SAMPLE} else "",
        "users": len({car.user for car in table.cars}),
        "cars": len(table.cars),
        "sessions": table.used,
        "left_out": dict(table.left_out),
        "first_unreadable": table.first_unreadable,
        **evaluate(looks),
    }
    print(text(figures))
    try:
        if given.json is not None:
            given.json.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
        if given.plot is not None:
            given.plot.write_text(calibration_svg(figures["calibration"]))
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


# Playing ------------------------------------------------------------------------------------------------------------


def play(cars: Sequence[Car]) -> Looks:
    """Look at all cars while they are plugged in. Raises BadTable when there is no moment to look at."""
    users = sorted({car.user for car in cars})
    folds = min(FOLDS, len(users))
    drawn = np.random.default_rng(1).permutation(len(users)) % folds
    fold_of = dict(zip(users, drawn.tolist(), strict=True))
    folds_of_cars = np.array([fold_of[car.user] for car in cars])
    span_min = sum(stop - start for start, stop in _covered(cars)) / MINUTE_MS
    step_min = next((step for step in _STEPS if span_min / step <= _MOST_LOOKS), _STEPS[-1])
    play_one = partial(_play_fold, cars, folds_of_cars, step_min)
    if span_min / step_min < 2_000:
        parts = [play_one(fold) for fold in range(folds)]
    else:
        with ProcessPoolExecutor(min(folds, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(play_one, range(folds)))
    rows = [row for part in parts for row in part]
    if not rows:
        raise BadTable("no car is plugged in for long enough to be looked at")
    fold, at_ms, left_min, online, month_before = zip(*rows, strict=True)
    return Looks(*(np.concatenate(part, axis=-1) for part in (fold, at_ms, left_min, online, month_before)))


def _covered(cars: Iterable[Car]) -> list[tuple[int, int]]:
    """Times in which any car is plugged in."""
    covered: list[tuple[int, int]] = []
    for start, stop in sorted(span for car in cars for span in car.spans):
        if covered and start <= covered[-1][1]:
            covered[-1] = (covered[-1][0], max(stop, covered[-1][1]))
        else:
            covered.append((start, stop))
    return covered


def _play_fold(cars: Sequence[Car], folds: NDArray[np.int64], step_min: int, fold: int) -> list[tuple[Any, ...]]:
    """Everything in order of time, with the users of one fold held out of the fleet's part and looked at."""
    model = Availability(AvailabilityTerms(), teaching=folds != fold)
    model.make_room(len(cars))
    held_out = folds == fold
    rows, at_ms, plugged, stops = _events(cars)
    stop_of = np.zeros(len(cars), dtype=np.int64)
    seen: list[tuple[Any, ...]] = []
    frozen, month, place = copy.deepcopy(model), None, 0
    for now_ms in _looking_times(cars, step_min):
        upto = int(np.searchsorted(at_ms, now_ms, side="right"))
        for cut in _without_repeats(rows, place, upto):
            model.observe(rows[cut], at_ms[cut], plugged[cut])
            frozen.observe(rows[cut], at_ms[cut], plugged[cut])
            stop_of[rows[cut][plugged[cut]]] = stops[cut][plugged[cut]]
        place = upto
        here = np.flatnonzero(stop_of > now_ms)
        model.observe(here, np.full(len(here), now_ms), np.ones(len(here), dtype=np.bool_))
        model.advance(now_ms)
        this_month = _month(np.array([now_ms]))[0]
        if this_month != month:  # all that is known before the month begins
            frozen, month = copy.deepcopy(model), this_month
            frozen.learns = False
        asked = here[held_out[here]]
        if len(asked):
            left_min = (stop_of[asked] - now_ms) / MINUTE_MS
            chances = [
                np.stack([which.stay_probability(asked, now_ms, minutes) for minutes in MINUTES])
                for which in (model, frozen)
            ]
            seen.append((np.full(len(asked), fold), np.full(len(asked), now_ms), left_min, *chances))
    return seen


def _events(cars: Sequence[Car]) -> tuple[NDArray[Any], ...]:
    events = [
        (at_ms, row, plugged, stop)
        for row, car in enumerate(cars)
        for start, stop in car.spans
        for at_ms, plugged in ((start, True), (stop, False))
    ]
    # An end before a beginning at the same moment.
    events.sort(key=lambda event: (event[0], event[2]))
    at_ms, rows, plugged, stops = zip(*events, strict=True)
    return np.array(rows), np.array(at_ms), np.array(plugged), np.array(stops)


def _looking_times(cars: Sequence[Car], step_min: int) -> Iterable[int]:
    """Half past a minute, because the table's times are whole ones; nothing is looked at while no car is there."""
    now_ms = 0
    for start, stop in _covered(cars):
        now_ms = max(now_ms, start // MINUTE_MS * MINUTE_MS + MINUTE_MS // 2)
        while now_ms < stop:
            yield now_ms
            now_ms += step_min * MINUTE_MS


def _without_repeats(rows: NDArray[np.int64], start: int, stop: int) -> Iterable[slice]:
    """Runs of events in which no car comes twice."""
    seen: set[int] = set()
    for place in range(start, stop):
        if rows[place] in seen:
            yield slice(start, place)
            start, seen = place, set()
        seen.add(int(rows[place]))
    if start < stop:
        yield slice(start, stop)


# Judging ------------------------------------------------------------------------------------------------------------


def evaluate(looks: Looks) -> dict[str, Any]:
    stayed = np.stack([looks.left_min >= minutes for minutes in MINUTES])
    months_ms = looks.at_ms.astype("datetime64[ms]").astype("datetime64[M]").astype("datetime64[ms]").astype(np.int64)
    chances: Chances = {"model": looks.online, **_baselines(looks, stayed, looks.at_ms)}
    frozen: Chances = {"model": looks.month_before, **_baselines(looks, stayed, months_ms)}
    quarter = week_quarter(looks.at_ms)
    apart = {
        "july": _month(looks.at_ms) % 12 == 6,
        "weekday_07": (quarter < 5 * 96) & (quarter % 96 // 4 == 7),
    }
    return {
        "looks": len(looks.at_ms),
        **_scores(chances, stayed),
        "months_held_out": _scores(frozen, stayed),
        "apart": {
            name: {
                "looks": int(mask.sum()),
                **_scores(_only(chances, mask), stayed[:, mask]),
                "months_held_out": _scores(_only(frozen, mask), stayed[:, mask]),
                **_chunk_figures(chances, looks.left_min, mask),
            }
            for name, mask in apart.items()
            if mask.any()
        },
        **_chunk_figures(chances, looks.left_min, np.ones(len(looks.at_ms), dtype=np.bool_)),
        "calibration": _calibration(looks.online[-1], stayed[-1]),
    }


def _only(chances: Chances, mask: NDArray[np.bool_]) -> Chances:
    return {name: values[:, mask] for name, values in chances.items()}


def _month(at_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Months since January 1970."""
    return at_ms.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)


def _baselines(looks: Looks, stayed: NDArray[np.bool_], known_until_ms: NDArray[np.int64]) -> Chances:
    """Shares of the looks at the other folds' users until a moment for each look: in its hour of week, and in all."""
    hour = week_quarter(looks.at_ms) // 4
    hazard = AvailabilityTerms().hazard.leave_per_minute
    prior = np.exp(-hazard * np.array(MINUTES))[:, None]
    found = {name: np.empty(stayed.shape) for name in NAMES[1:]}
    for fold in np.unique(looks.fold):
        here, others = looks.fold == fold, looks.fold != fold
        kept, count = _until(looks.at_ms[others], stayed[:, others], known_until_ms[here])
        none = (kept + prior) / (count + 1)
        found["none"][:, here] = none
        for each in np.unique(hour[here]):
            asked = here & (hour == each)
            told = others & (hour == each)
            kept, count = _until(looks.at_ms[told], stayed[:, told], known_until_ms[asked])
            all_hours = none[:, hour[here] == each]
            found["fleet_mean"][:, asked] = (kept + _BASELINE_WEIGHT * all_hours) / (count + _BASELINE_WEIGHT)
    return found


def _until(
    at_ms: NDArray[np.int64], stayed: NDArray[np.bool_], until_ms: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How many stayed, and of how many looks that was known, before each moment; shape [minutes, moments]."""
    order = np.argsort(at_ms, kind="stable")
    kept = np.concatenate([np.zeros((len(MINUTES), 1)), np.cumsum(stayed[:, order], axis=1)], axis=1)
    # Whether a car stays for an hour is known an hour later.
    known_ms = (at_ms[order] + minutes * MINUTE_MS for minutes in MINUTES)
    count = np.stack([np.searchsorted(each, until_ms) for each in known_ms])
    return np.take_along_axis(kept, count, axis=1), count


def _scores(chances: Chances, stayed: NDArray[np.bool_]) -> dict[str, Any]:
    brier = {name: np.mean((values - stayed) ** 2, axis=1) for name, values in chances.items()}
    loss = {}
    for name, values in chances.items():
        bounded = np.clip(values, _LEAST_CHANCE, 1 - _LEAST_CHANCE)
        loss[name] = -np.mean(np.log(np.where(stayed, bounded, 1 - bounded)), axis=1)
    return {
        "brier": {name: float(values.mean()) for name, values in brier.items()},
        "log_loss": {name: float(values.mean()) for name, values in loss.items()},
        "brier_by_minutes": _by_minutes(brier),
        "log_loss_by_minutes": _by_minutes(loss),
    }


def _by_minutes(values: Chances) -> dict[str, dict[str, float]]:
    return {
        str(minutes): {name: float(each[place]) for name, each in values.items()}
        for place, minutes in enumerate(MINUTES)
    }


def _chunk_figures(chances: Chances, left_min: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A car gets a chunk when its chance to end it is ENOUGH; the baselines give as many, to their best cars."""
    figures: dict[str, Any] = {"on_time": {}, "lost": {}, "given": {}, "beside": {name: {} for name in NAMES[1:]}}
    left_min = left_min[mask]
    shuffled = np.random.default_rng(2).permutation(len(left_min))  # among equal chances, chance decides
    for place, minutes in enumerate(MINUTES):
        model = chances["model"][place, mask]
        given = np.flatnonzero(model >= ENOUGH)
        on_time, lost = _chunks(left_min[given], minutes)
        figures["on_time"][str(minutes)], figures["lost"][str(minutes)] = on_time, lost
        figures["given"][str(minutes)] = len(given) / len(model)
        for name in NAMES[1:]:
            best = shuffled[np.argsort(-chances[name][place, mask][shuffled], kind="stable")[: len(given)]]
            on_time, lost = _chunks(left_min[best], minutes)
            figures["beside"][name][str(minutes)] = {"on_time": on_time, "lost": lost}
    return figures


def _chunks(left_min: NDArray[np.float64], minutes: int) -> tuple[float | None, float | None]:
    """Share of chunks that end before the car leaves, and share of the time computed that is lost with the others."""
    if not len(left_min):
        return None, None
    ends = left_min >= minutes
    computed = np.minimum(left_min, minutes)
    return float(ends.mean()), float(computed[~ends].sum() / computed.sum())


def _calibration(stays: NDArray[np.float64], stayed: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Foreseen and true share that leaves within the longest time, by what was foreseen."""
    leaves = 1 - stays
    bins = np.clip(np.searchsorted(_CALIBRATION_EDGES, leaves, side="right") - 1, 0, len(_CALIBRATION_EDGES) - 2)
    return [
        {
            "looks": int((bins == place).sum()),
            "foreseen": float(leaves[bins == place].mean()),
            "left": float(1 - stayed[bins == place].mean()),
        }
        for place in np.unique(bins)
    ]


# Showing ------------------------------------------------------------------------------------------------------------


def text(figures: dict[str, Any]) -> str:
    left_out = ", ".join(f"{count} {why}" for why, count in sorted(figures["left_out"].items())) or "none"
    if figures["first_unreadable"]:
        left_out += f" ({figures['first_unreadable']})"
    lines = [
        f"{figures['source']}: {figures['sessions']} sessions of {figures['users']} users ({figures['cars']} cars), "
        f"rows left out: {left_out}; {figures['looks']} looks at plugged-in cars",
        figures["attribution"],
        "",
        "Will it stay plugged in? Users held out; Brier score and log loss, lower is better",
        *_score_table(figures),
        "",
        "The same with months held out too: what was known before the month began",
        *_score_table(figures["months_held_out"]),
    ]
    names = {"july": "July", "weekday_07": "Working days, 07:00 to 08:00"}
    for name, part in figures["apart"].items():
        lines += ["", f"{names[name]} ({part['looks']} looks)", *_score_table(part)]
        lines += ["", f"{names[name]}, months held out too", *_score_table(part["months_held_out"])]
    lines += ["", f"Chunks, given where the chance to end them is {ENOUGH:.0%} or more; baselines give as many"]
    lines += _chunk_table(figures)
    for name, part in figures["apart"].items():
        lines += ["", f"Chunks: {names[name]}", *_chunk_table(part)]
    lines += ["", f"Calibration: leaves within {MINUTES[-1]} minutes", "| looks | foreseen | left |", "|---|---|---|"]
    lines += [f"| {row['looks']} | {row['foreseen']:.1%} | {row['left']:.1%} |" for row in figures["calibration"]]
    return "\n".join(lines)


def _score_table(scores: dict[str, Any]) -> list[str]:
    rows = [(f"{minutes} min", scores["brier_by_minutes"][str(minutes)], scores["log_loss_by_minutes"][str(minutes)])
            for minutes in MINUTES]  # fmt: skip
    rows.append(("mean", scores["brier"], scores["log_loss"]))
    head = "| | " + " | ".join(f"{score}: {name}" for score in ("Brier", "log loss") for name in NAMES) + " |"
    return [
        head,
        "|---" * 7 + "|",
        *(
            f"| {label} | " + " | ".join(f"{score[name]:.5f}" for score in (brier, loss) for name in NAMES) + " |"
            for label, brier, loss in rows
        ),
    ]


def _chunk_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        "| chunk | moments used | " + " | ".join(f"on time: {name}" for name in NAMES)
        + " | " + " | ".join(f"work lost: {name}" for name in NAMES) + " |",
        "|---" * 8 + "|",
    ]  # fmt: skip
    for minutes in map(str, MINUTES):
        beside = [figures["beside"][name][minutes] for name in NAMES[1:]]
        on_time = [figures["on_time"][minutes], *(each["on_time"] for each in beside)]
        lost = [figures["lost"][minutes], *(each["lost"] for each in beside)]
        shown = ["-" if value is None else f"{value:.2%}" for value in (*on_time, *lost)]
        lines.append(f"| {minutes} min | {figures['given'][minutes]:.1%} | " + " | ".join(shown) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
