"""How a job is to be verified, from what people write: `adaptive`, `quorum:3`, `scores=1e-3:0.01`. Only parses."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from fleet_wire.api import Verification
from idlewheel.errors import BadInput

__all__ = ["parsed_tolerances", "parsed_verification"]

_RULES: Final = "none, canaries, adaptive, or quorum:N with N from 2 to 5"
_FAULTS: Final = {  # of what msgspec finds, by field
    "quorum": f"the rule is one of {_RULES}",
    "canary_share": "`canary_share` is above 0 and 0.5 at most: the share of rows that the coordinator computes itself",
    "wrong_share": "`wrong_share` is from 0.000001 to 0.1: the share of wrong rows that may be accepted",
    "tolerances": "a tolerance is 0 or more in absolute terms and from 0 to 1 relative, for at most 64 outputs",
}


def parsed_verification(
    verify: str,
    tolerances: Mapping[str, tuple[float, float]] | None = None,
    wrong_share: float | None = None,
    canary_share: float | None = None,
) -> Verification:
    """The terms that a rule such as `quorum:3` and tolerances (absolute, relative) by output mean. Raises BadInput."""
    rule, colon, count = verify.partition(":")
    if rule not in {"none", "canaries", "adaptive", "quorum"} or (rule == "quorum") != (colon == ":"):
        raise BadInput(f"{verify!r} is no rule of verification: give {_RULES}")
    if wrong_share is not None and rule != "adaptive":
        raise BadInput(f"`wrong_share` is the target of the rule adaptive, and {verify!r} has none")
    if canary_share is not None and rule != "canaries":
        raise BadInput(f"`canary_share` belongs to the rule canaries, not to {verify!r}")
    if tolerances and rule == "none":
        raise BadInput("a tolerance says when answers agree, and without a rule nothing is compared: give one, too")
    document: dict[str, object] = {"rule": rule}
    if colon:
        document["quorum"] = int(count) if count.isdecimal() else count
    if wrong_share is not None:
        document["wrong_share"] = wrong_share
    if canary_share is not None:
        document["canary_share"] = canary_share
    if tolerances:
        document["tolerances"] = {
            output: {"absolute": absolute, "relative": relative} for output, (absolute, relative) in tolerances.items()
        }
    try:
        return msgspec.convert(document, Verification)
    except msgspec.ValidationError as error:
        fault = next((text for name, text in _FAULTS.items() if f"$.{name}" in str(error)), str(error))
        raise BadInput(f"the job can't be verified so: {fault}") from None


def parsed_tolerances(texts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Tolerances by output from `OUTPUT=ABSOLUTE:RELATIVE`. Raises BadInput."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        output, _, numbers = text.rpartition("=")
        absolute, colon, relative = numbers.partition(":")
        try:
            pair = float(absolute), float(relative)
        except ValueError:
            pair = math.nan, math.nan
        if not output or not colon or not all(math.isfinite(each) for each in pair):
            raise BadInput(f"{text!r} is no tolerance: give OUTPUT=ABSOLUTE:RELATIVE, as in scores=0.001:0.01")
        if output in found:
            raise BadInput(f"there are two tolerances for output {output!r}")
        found[output] = pair
    return found
