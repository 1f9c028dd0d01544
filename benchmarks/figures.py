"""Figures and how they print: one table, each figure beside what it is held against. Measures nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

__all__ = ["Figure", "Plan", "at_least", "below", "listed", "middle", "report", "table"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. `runs` of each figure are taken, one after another with what stands beside it."""

    quick: bool
    runs: int
    directory: Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `value` None: not measured, and `note` says why.

    `beside` is the floor, the direct run, a peer or the limit that the value is held against, in the same unit.
    `met` None: nothing is asked.
    """

    group: str
    name: str
    unit: str
    value: float | None = None
    beside: float | None = None
    beside_name: str = ""
    required: str = ""
    met: bool | None = None
    note: str = ""


def middle(values: Sequence[float]) -> float:
    """Median of the runs: single figures on shared cores vary up to threefold."""
    return float(median(values))


def listed(values: Sequence[float]) -> str:
    """The single runs, for the note."""
    return "runs " + " / ".join(map(_number, values))


def at_least(part: float, figure: Figure) -> Figure:
    """The figure, held to a part of what stands beside it."""
    assert figure.value is not None
    assert figure.beside is not None
    return replace(figure, required=f"at least {part:.0%}", met=figure.value >= part * figure.beside)


def below(limit: float, figure: Figure) -> Figure:
    """The figure, held to an upper limit in its own unit."""
    assert figure.value is not None
    return replace(figure, required=f"under {limit:g} {figure.unit}", met=figure.value < limit)


def report(figures: Sequence[Figure], file: Path | None) -> int:
    """Print the table, write the figures to a file as a list of objects, and return 1 when a requirement was missed."""
    print(table(figures))
    if file is not None:
        file.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return 1 if any(figure.met is False for figure in figures) else 0


def table(figures: Sequence[Figure]) -> str:
    """The table in Markdown, which reads in a terminal too."""
    head = ["group", "what", "figure", "beside it", "share", "required", "met", "note"]
    rows = [head, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = [
        "| " + " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|---|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(figure: Figure) -> list[str]:
    value, beside = figure.value, figure.beside
    return [
        figure.group,
        figure.name,
        "-" if value is None else f"{_number(value)} {figure.unit}",
        "" if beside is None else f"{figure.beside_name} {_number(beside)}",
        "" if value is None or not beside else f"{value / beside:.0%}",
        figure.required,
        {True: "yes", False: "NO", None: ""}[figure.met],
        figure.note,
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
