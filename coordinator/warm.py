"""Which cars have which model already. Only keeps, and only for models that are asked for."""

from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView

__all__ = ["WarmModels"]

_MODELS_KEPT = 64


@dataclass(slots=True)
class WarmModels:
    """One flag a car and model; a car has a model when its caps name it or rows of it came from there."""

    fleet: FleetView
    _warm: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def of(self, model: str) -> NDArray[np.bool_]:
        """For every known car whether it has this model; shape [vehicles]."""
        flags = self._warm.get(model)
        if flags is None:
            flags = np.array([model in models for models in self.fleet.models], dtype=np.bool_)
        if len(flags) < len(self.fleet):
            flags = np.concatenate([flags, np.zeros(len(self.fleet.unwilling) - len(flags), dtype=np.bool_)])
        self._warm[model] = flags
        return flags[: len(self.fleet)]

    def has(self, row: int, model: str) -> bool:
        """Whether one car has this model."""
        return bool(self.of(model)[row])

    def computed(self, row: int, model: str) -> None:
        """Rows came from a car."""
        self.of(model)[row] = True

    def caps_changed(self, row: int) -> None:
        """A car said anew what it holds."""
        for model in self._warm:
            self.of(model)[row] = model in self.fleet.models[row]

    def prepare(self, model: str, needed: Container[str]) -> None:
        """Look once through all caps, so that no pass has to; of models that no job needs, only some are kept."""
        if len(self._warm) >= _MODELS_KEPT:
            self._warm = {model: flags for model, flags in self._warm.items() if model in needed}
        self.of(model)
