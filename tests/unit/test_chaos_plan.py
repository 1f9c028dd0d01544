"""Plans of the fault harness: the same for the same seed, within bounds, and of every kind over some seeds."""

from tests.system.chaos.plan import Kind, plan_of
from tests.system.test_chaos import SEEDS

MANY = range(1000, 1200)


def test_a_seed_replays() -> None:
    assert [plan_of(seed) for seed in MANY] == [plan_of(seed) for seed in MANY]
    assert len({plan_of(seed).faults for seed in MANY}) == len(MANY)


def test_plans_leave_one_car_alone_and_end_in_time() -> None:
    for plan in map(plan_of, MANY):
        assert [fault.at_s for fault in plan.faults] == sorted(fault.at_s for fault in plan.faults)
        assert all(fault.at_s + fault.for_s < 10 for fault in plan.faults)
        assert not [fault for fault in plan.faults if fault.target.startswith("car-1")]
        assert 2 <= plan.cars <= 4
        assert plan.loads[0].at_s == 0


def test_jobs_can_end_without_the_cars_that_are_convicted_and_no_lie_goes_unverified() -> None:
    for plan in map(plan_of, MANY):
        gone = plan.liars | {fault.target for fault in plan.faults if fault.kind is Kind.REVOKE}
        for load in plan.loads:
            assert int(load.verify.partition(":")[2] or 1) <= plan.cars - len(gone)
            assert load.verify not in {"none", "canaries"} or not plan.liars
        assert plan.never_honest <= plan.liars


def test_every_rule_comes_with_liars_and_without() -> None:
    plans = [plan_of(seed) for seed in MANY]
    honest = {load.verify for plan in plans if not plan.liars for load in plan.loads}
    assert honest == {"none", "canaries", "adaptive", "quorum:2"}
    assert {load.verify for plan in plans if plan.liars for load in plan.loads} == {
        *("adaptive", "quorum:2", "quorum:3")
    }
    assert any(plan.never_honest for plan in plans)
    assert any(plan.liars - plan.never_honest for plan in plans)


def test_every_kind_and_every_target_comes() -> None:
    faults = [fault for seed in MANY for fault in plan_of(seed).faults]
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.target.partition("/")[2] or fault.target for fault in faults} == {
        *("broker", "http", "worker"),
        *("coordinator", "store", "ledger", "car-2", "car-3", "car-4"),
    }


def test_the_seeds_that_every_test_run_has_are_of_every_kind() -> None:
    assert {kind for seed in SEEDS for kind in plan_of(seed).kinds} == set(Kind)
