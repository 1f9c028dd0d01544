"""Agreement is symmetric, trust never means more checks, and checks are drawn evenly."""

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from numpy.typing import NDArray

from coordinator.rules.verification import VerificationLimits, agreement, check_share, chosen, worst_share
from fleet_wire.api import Tolerance

LIMITS = VerificationLimits()
SECRET = bytes(range(32))
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
KINDS = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.bool_, np.complex64])
TOLERANCES = st.builds(Tolerance, st.floats(0, 10), st.floats(0, 1)) | st.none()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two arrays of one type and shape, of which some values are the same."""
    kind, shape = draw(KINDS), draw(SHAPES)
    ours, theirs = draw(hnp.arrays(kind, shape)), draw(hnp.arrays(kind, shape))
    return ours, np.where(draw(hnp.arrays(np.bool_, shape)), ours, theirs)


@given(pairs(), TOLERANCES, st.booleans())
def test_agreement_is_symmetric_and_reflexive(
    pair: tuple[NDArray[Any], NDArray[Any]], tolerance: Tolerance | None, same_class: bool
) -> None:
    ours, theirs = ({"y": each} for each in pair)
    tolerances = {} if tolerance is None else {"y": tolerance}
    there = agreement(ours, theirs, tolerances, same_class=same_class)
    assert len(there) == len(pair[0])
    assert there.tolist() == agreement(theirs, ours, tolerances, same_class=same_class).tolist()
    assert agreement(ours, ours, tolerances, same_class=same_class).all()


@given(pairs())
def test_who_agrees_within_a_class_agrees_across_classes(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
    ours, theirs = ({"y": each} for each in pair)
    within = agreement(ours, theirs, {}, same_class=True)
    assert not np.any(within & ~agreement(ours, theirs, {}, same_class=False))


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_no_constant_share_of_lies_gets_more_through_than_the_worst(passed: int, lies: float) -> None:
    assert lies * (1 - lies) ** passed <= worst_share(passed) + 1e-12


@given(st.integers(0, 10_000), st.floats(1e-6, 0.1))
def test_more_trust_and_a_looser_target_never_mean_more_checks(passed: int, wrong_share: float) -> None:
    share = check_share(passed, wrong_share, LIMITS)
    assert LIMITS.floor <= check_share(passed + 1, wrong_share, LIMITS) <= share <= LIMITS.most
    assert check_share(passed, min(0.1, 2 * wrong_share), LIMITS) <= share


@given(
    st.lists(st.integers(0, 2**53), max_size=40).map(lambda rows: np.array(rows, dtype=np.int64)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_row_is_chosen_whatever_it_comes_with_and_with_every_larger_share(
    rows: NDArray[np.int64], one: float, other: float
) -> None:
    less, more = sorted((one, other))
    picked = chosen(SECRET, "job", "car", rows, less)
    assert not np.any(picked & ~chosen(SECRET, "job", "car", rows, more))
    alone = [bool(chosen(SECRET, "job", "car", rows[place : place + 1], less)[0]) for place in range(len(rows))]
    assert picked.tolist() == alone
    assert chosen(SECRET, "job", "car", rows, 1.0).all()
    assert not chosen(SECRET, "job", "car", rows, 0.0).any()


def test_as_many_are_chosen_as_were_asked_for() -> None:
    rows = np.arange(100_000, dtype=np.int64)
    for share in (0.02, 0.5):
        found = np.count_nonzero(chosen(SECRET, "job", "car", rows, share))
        assert abs(found - 100_000 * share) < 5 * (100_000 * share * (1 - share)) ** 0.5
