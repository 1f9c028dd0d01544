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
        assert 2 <= plan.cars <= 3
        assert plan.loads[0].at_s == 0


def test_every_kind_and_every_target_comes() -> None:
    faults = [fault for seed in MANY for fault in plan_of(seed).faults]
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.target.partition("/")[2] or fault.target for fault in faults} == {
        *("broker", "http", "worker"),
        *("coordinator", "store", "ledger", "car-2", "car-3"),
    }


def test_the_seeds_that_every_test_run_has_are_of_every_kind() -> None:
    assert {kind for seed in SEEDS for kind in plan_of(seed).kinds} == set(Kind)
