"""Prices as people write them, in the currency, to the integer micro-units that are counted in. Pure."""

from math import isfinite
from typing import Final

from idlewheel.errors import BadInput

__all__ = ["MICRO", "micro"]

MICRO: Final = 1_000_000


def micro(value: float) -> int:
    """The nearest whole micro-unit."""
    if not isfinite(value):
        raise BadInput(f"{value} is not an amount")
    return round(value * MICRO)
