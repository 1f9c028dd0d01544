"""Built-in examples: real models with real rows. Nothing is downloaded; see each one's attribution."""

from typing import Final

from idlewheel.examples.digits import DIGITS
from idlewheel.examples.example import Example, ExampleRows, count_agreement
from idlewheel.examples.magika import MAGIKA

__all__ = ["EXAMPLES", "Example", "ExampleRows", "count_agreement"]

EXAMPLES: Final = {example.name: example for example in (MAGIKA, DIGITS)}
