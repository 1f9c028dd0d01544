"""What a built-in example is: a model, rows for it, and how its answers read. Never runs the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet_wire.tensors import Array

__all__ = ["Example", "ExampleRows", "count_agreement"]


@dataclass(frozen=True, slots=True)
class ExampleRows:
    """Rows by input name; for each its title, and the answers that count as right (none: it is not judged)."""

    inputs: dict[str, Array]
    titles: list[str]
    accepted: list[frozenset[str]]

    def __len__(self) -> int:
        return len(self.titles)


@dataclass(frozen=True, slots=True)
class Example:
    """A model with its licence, `rows(limit, seed)`, and `answers`, which reads one answer a row from the outputs.

    `picture` draws a row for a terminal, line by line; no lines where there is nothing to see.
    """

    name: str
    description: str
    attribution: str
    default_rows: int
    compared_with: str
    model: Callable[[], bytes]
    rows: Callable[[int, int], ExampleRows]
    answers: Callable[[dict[str, Array]], list[str]]
    picture: Callable[[ExampleRows, int], list[str]]


def count_agreement(rows: ExampleRows, answers: Sequence[str]) -> tuple[int, int]:
    """How many answers are among those accepted, and how many rows are judged at all."""
    judged = [(answer, accepted) for answer, accepted in zip(answers, rows.accepted, strict=True) if accepted]
    return sum(answer in accepted for answer, accepted in judged), len(judged)
