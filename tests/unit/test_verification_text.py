"""What people write to have a job verified, and the one line that says what is wrong with it."""

from typing import Any

import pytest

from fleet_wire.api import Tolerance, Verification
from idlewheel.errors import BadInput
from idlewheel.verification_text import parsed_tolerances, parsed_verification


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("none",), Verification()),
        (("canaries", None, None, 0.1), Verification("canaries", canary_share=0.1)),
        (("quorum:3",), Verification("quorum", quorum=3)),
        (
            ("adaptive", {"a=b": (1e-3, 0.01)}, 1e-3),
            Verification("adaptive", wrong_share=1e-3, tolerances={"a=b": Tolerance(1e-3, 0.01)}),
        ),
    ],
)
def test_rules_as_they_are_written(given: tuple[Any, ...], meant: Verification) -> None:
    assert parsed_verification(*given) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("trust",),
            "'trust' is no rule of verification: give none, canaries, adaptive, or quorum:N with N from 2 to 5",
        ),
        (("quorum",), "'quorum' is no rule"),
        (("adaptive:3",), "'adaptive:3' is no rule"),
        (("quorum:1",), "the rule is one of"),
        (("quorum:6",), "the rule is one of"),
        (("quorum:many",), "the rule is one of"),
        (("canaries", None, 1e-3), "`wrong_share` is the target of the rule adaptive"),
        (("adaptive", None, 0.5), "`wrong_share` is from 0.000001 to 0.1"),
        (("adaptive", None, None, 0.1), "`canary_share` belongs to the rule canaries"),
        (("canaries", None, None, 0.6), "`canary_share` is above 0 and 0.5 at most"),
        (("none", {"y": (1.0, 0.0)}), "without a rule nothing is compared"),
        (("adaptive", {"y": (-1.0, 0.0)}), "a tolerance is 0 or more"),
        (("adaptive", {"y": (0.0, 1.5)}), "a tolerance is 0 or more"),
        (("adaptive", {f"y{number}": (0.0, 0.0) for number in range(65)}), "at most 64 outputs"),
    ],
)
def test_what_is_no_rule(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        parsed_verification(*given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tolerances_as_they_are_written() -> None:
    assert parsed_tolerances([]) == {}
    assert parsed_tolerances(["scores=0.001:0.01", "a=b=0:1e-2"]) == {"scores": (0.001, 0.01), "a=b": (0.0, 0.01)}


@pytest.mark.parametrize("text", ["scores", "scores=1", "=1:1", "scores=a:b", "scores=nan:0", "scores=1:inf", "s=1:"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(BadInput, match="give OUTPUT=ABSOLUTE:RELATIVE"):
        parsed_tolerances([text])


def test_two_tolerances_for_one_output_are_refused() -> None:
    with pytest.raises(BadInput, match="two tolerances for output 'y'"):
        parsed_tolerances(["y=1:1", "y=1:0.5"])
