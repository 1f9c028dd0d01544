"""What a row of a model takes, at each car and in the whole fleet, as results say. Measures; never decides."""

from dataclasses import dataclass, field

__all__ = ["Speeds"]

_WEIGHT = 0.3


@dataclass(slots=True)
class Speeds:
    """Moving averages in milliseconds a row; of each car by model, the last one measured at the end."""

    _row_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    _model_row_ms: dict[str, float] = field(default_factory=dict)

    def learn(self, vehicle: str, model: str, row_ms: float) -> None:
        """Take in what rows of a result took."""
        own = self._row_ms.setdefault(vehicle, {})
        before = own.pop(model, row_ms)
        own[model] = before + _WEIGHT * (row_ms - before)
        common = self._model_row_ms.get(model, row_ms)
        self._model_row_ms[model] = common + _WEIGHT * (row_ms - common)

    def forget(self, vehicle: str) -> None:
        """Begin anew with a car that may be faster or slower from now on."""
        self._row_ms.pop(vehicle, None)

    def expected_row_ms(self, vehicle: str, model: str) -> float | None:
        """What a row should take at this car: its own measure, else the fleet's, else None."""
        own = self._row_ms.get(vehicle, {})
        return own.get(model, self._model_row_ms.get(model))

    def model_row_ms(self, model: str) -> float | None:
        """What a row of a model takes in this fleet, as measured lately; None before the first result."""
        return self._model_row_ms.get(model)

    def rows_per_s(self, vehicle: str) -> float | None:
        """The speed measured last at a vehicle, whatever the model; None before its first result."""
        row_ms = next(reversed(self._row_ms.get(vehicle, {}).values()), None)
        return 1000 / row_ms if row_ms else None
