"""Agreement and how often a car is checked: cases computed by hand."""

from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from coordinator.rules.verification import (
    VerificationLimits,
    agreement,
    check_share,
    chosen,
    conviction_ms,
    is_trusted,
    least_of,
    worst_share,
)
from fleet_wire.api import JobTerms, Tolerance, Verification

LIMITS = VerificationLimits()
SECRET = bytes(range(32))
NAN, INF = float("nan"), float("inf")


def agrees(ours: Any, theirs: Any, tolerance: Tolerance | None = None, *, same_class: bool = True) -> list[bool]:
    tolerances = {} if tolerance is None else {"y": tolerance}
    return agreement({"y": np.asarray(ours)}, {"y": np.asarray(theirs)}, tolerances, same_class=same_class).tolist()


# Agreement ----------------------------------------------------------------------------------------------------------


def test_a_stated_tolerance_is_held_to_at_both_sides() -> None:
    allowed = Tolerance(absolute=0.5, relative=0.25)  # of the larger: 0.5 + 0.25 * 8 = 2.5
    assert agrees([8.0, 8.0, 5.5, 5.25, -8.0, 8.0], [5.5, 5.25, 8.0, 8.0, -5.5, -8.0], allowed) == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert agrees([1.0, 2.0], [1.0, 2.0000001], Tolerance()) == [True, False]


def test_without_one_it_is_tight_within_a_class_and_wide_across() -> None:
    one = np.ones(4)  # float64: relative 1e-4 and absolute 1e-6, its roundings are nothing beside them
    other = one + np.array([1.00e-4, 1.02e-4, 2.00e-2, 2.05e-2])
    assert agrees(one, other) == [True, False, False, False]
    assert agrees(one, other, same_class=False) == [True, True, True, False]


def test_across_classes_it_is_a_part_of_the_largest_value_of_the_row() -> None:
    ours = np.array([[10.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    assert agrees(ours, ours + np.array([[0.0, 0.19], [0.0, 0.19], [0.21, 0.0]]), same_class=False) == [
        True,
        False,
        False,
    ]
    assert agrees([0.0, 0.001], [0.01, 0.002], same_class=False) == [False, False]


def test_what_rounding_leaves_of_a_sum_of_large_values_is_no_disagreement() -> None:
    ours = np.array([[1000.0, 0.001], [1.0, 0.001]], dtype=np.float32)
    assert agrees(ours, ours + np.array([0.0, 0.005], dtype=np.float32)) == [True, False]


def test_a_narrow_type_may_differ_by_its_own_roundings() -> None:
    ours = np.array([1.0], dtype=np.float16)
    assert agrees(ours, np.nextafter(ours, np.float16(2))) == [True]
    assert agrees(ours, ours + np.float16(0.01)) == [False]
    assert agrees(ours.astype(ml_dtypes.bfloat16), np.array([1.0078125], dtype=ml_dtypes.bfloat16)) == [True]


def test_nan_and_infinities_agree_with_themselves_only() -> None:
    ours = [NAN, INF, -INF, INF, NAN, 1.0, INF]
    theirs = [NAN, INF, -INF, -INF, 1.0, NAN, 1e308]
    assert agrees(ours, theirs, Tolerance(1e300, 1.0)) == [True, True, True, False, False, False, False]


def test_a_row_agrees_when_every_value_of_it_does() -> None:
    assert agrees([[1.0, 2.0], [1.0, NAN]], [[1.0, 2.1], [1.0, NAN]]) == [False, True]
    assert agrees(np.zeros((2, 0)), np.zeros((2, 0))) == [True, True]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([2**53, 2**53]), np.array([2**53, 2**53 + 1])),
        (np.array([True, False]), np.array([True, True])),
        (np.array(["a", "b"], dtype=object), np.array(["a", "B"], dtype=object)),
        (np.array([1, 2], dtype=ml_dtypes.int4), np.array([1, 3], dtype=ml_dtypes.int4)),
    ],
)
def test_integers_truth_values_and_text_are_exact(ours: Any, theirs: Any) -> None:
    assert agrees(ours, theirs, Tolerance(1e300, 1.0)) == [True, False]


def test_another_shape_type_or_set_of_outputs_is_a_disagreement_in_every_row() -> None:
    assert agrees(np.zeros((2, 3)), np.zeros((2, 4))) == [False, False]
    assert agrees(np.zeros(2), np.zeros(2, dtype=np.float32)) == [False, False]
    assert agrees(np.zeros(2), np.zeros(3)) == [False, False, False]
    assert agreement({"y": np.zeros(2)}, {"z": np.zeros(2)}, {}, same_class=True).tolist() == [False, False]
    both = {"y": np.zeros(2), "z": np.zeros(2)}
    assert agreement({"y": np.zeros(2)}, both, {}, same_class=True).tolist() == [False, False]
    assert agreement(both, {"z": np.zeros(2), "y": np.array([0, 1.0])}, {}, same_class=True).tolist() == [True, False]


# How often a car is checked -----------------------------------------------------------------------------------------


def test_the_worst_share_is_what_the_best_lie_gets_through() -> None:
    assert [worst_share(passed) for passed in (0, 1, 2)] == [1.0, 0.25, 4 / 27]


def test_a_car_is_checked_much_until_its_worst_is_within_the_target_and_a_little_from_then_on() -> None:
    assert check_share(0, 1e-4, LIMITS) == check_share(183, 1e-4, LIMITS) == LIMITS.most
    assert check_share(184, 1e-4, LIMITS) == check_share(10**9, 1e-4, LIMITS) == LIMITS.floor
    assert LIMITS.bad_share * worst_share(184) <= 1e-4 < LIMITS.bad_share * worst_share(183)
    assert check_share(0, 0.06, LIMITS) == LIMITS.floor  # less than the cars that are believed bad could do


def test_a_car_is_trusted_after_so_many_checks() -> None:
    assert [is_trusted(passed, LIMITS) for passed in (0, 15, 16)] == [False, False, True]


def test_a_conviction_costs_a_day_and_twice_as_much_each_time() -> None:
    day = 24 * 3_600_000
    assert [conviction_ms(times, LIMITS) for times in (0, 1, 2, 3, 7, 1000)] == [
        0,
        day,
        2 * day,
        4 * day,
        64 * day,
        64 * day,
    ]


def test_what_is_chosen_depends_on_the_secret_the_job_and_the_vehicle() -> None:
    rows = np.arange(4096)
    ours = chosen(SECRET, "job", "car", rows, 0.5)
    for other in (
        chosen(SECRET[1:], "job", "car", rows, 0.5),
        chosen(SECRET, "other", "car", rows, 0.5),
        chosen(SECRET, "job", "cart", rows, 0.5),
        chosen(SECRET, "job\0car", "", rows, 0.5),
    ):
        assert 0.4 < np.mean(ours == other) < 0.6


def test_the_one_row_to_check_is_the_first_that_a_rising_share_chooses() -> None:
    rows = np.array([5, 900, 17, 17, 3])
    place = least_of(SECRET, "job", "car", rows)
    share = next(share for share in np.linspace(0, 1, 10_001) if chosen(SECRET, "job", "car", rows, share).any())
    assert np.flatnonzero(chosen(SECRET, "job", "car", rows, share))[0] == place


# Terms --------------------------------------------------------------------------------------------------------------


def test_terms_from_before_there_was_verification_still_decode() -> None:
    terms = msgspec.json.decode(b'{"priority":1,"chunk_rows":null,"max_attempts":3}', type=JobTerms)
    assert terms.verification == Verification() == Verification(rule="none")


@pytest.mark.parametrize(
    "document",
    [
        b'{"rule":"trust-me"}',
        b'{"rule":"quorum","quorum":1}',
        b'{"rule":"quorum","quorum":6}',
        b'{"canary_share":0}',
        b'{"canary_share":0.6}',
        b'{"wrong_share":0}',
        b'{"wrong_share":0.2}',
        b'{"tolerances":{"y":{"absolute":-1}}}',
        b'{"tolerances":{"y":{"relative":1.1}}}',
        b'{"tolerances":{"y":{"abolute":1}}}',
        b'{"quorom":3}',
        msgspec.json.encode({"tolerances": {f"y{number}": {} for number in range(65)}}),
    ],
)
def test_terms_out_of_range_are_refused(document: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(document, type=Verification)
