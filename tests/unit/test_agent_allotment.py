"""What a worker may use: its share of the time by the owner's cap, and the control group that holds it to that."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet_wire.policy import LEAST_MEMORY_BYTES, OwnerPolicy
from tests.property.owner_policies import owner_policies
from vehicle_agent.allotment import Allotment, allotted, busy_share
from vehicle_agent.cgroup import enter_cgroup, prepare_cgroup


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """The worker's group in what looks like a delegated folder; the system would make its files."""
    (tmp_path / "cgroup.subtree_control").write_text("")
    worker = tmp_path / "worker"
    worker.mkdir()
    for name in ("memory.max", "cpu.max", "cgroup.procs"):
        (worker / name).touch()
    return worker


def test_without_a_cap_or_under_it_all_of_the_time_is_the_workers() -> None:
    assert busy_share(25.0, None) == busy_share(25.0, 25.0) == busy_share(0.0, 1.0) == 1.0


@given(st.floats(1, 1e5), st.floats(1e-3, 1e5))
def test_the_share_draws_no_more_than_the_cap_or_is_a_tenth(full_w: float, cap_w: float) -> None:
    share = busy_share(full_w, cap_w)
    assert 0.1 <= share <= 1
    assert share == 0.1 or share * full_w <= cap_w * (1 + 1e-9)


@given(
    st.builds(Allotment, st.integers(1, 256), st.integers(0, 19), st.integers(LEAST_MEMORY_BYTES, 1 << 40)),
    st.none() | owner_policies,
)
def test_of_what_maker_and_owner_allow_the_stricter_holds(maker: Allotment, policy: OwnerPolicy | None) -> None:
    given = allotted(maker, 100.0, policy)
    bounds = (None, None, None) if policy is None else (policy.threads, policy.niceness, policy.memory_bytes)
    threads, niceness, memory_bytes = bounds
    assert given.memory_bytes == min(maker.memory_bytes, memory_bytes or maker.memory_bytes)
    assert given.niceness == max(maker.niceness, niceness or 0)
    assert 1 <= given.threads <= min(maker.threads, threads or maker.threads)
    assert given.threads in {maker.threads, threads} or given.threads == given.memory_bytes // (32 << 20)
    assert given.threads_share == given.threads / maker.threads
    cap_w = None if policy is None else policy.power_cap_w
    assert cap_w is None or given.busy_share == 0.1 or given.power_share * 100.0 <= cap_w * (1 + 1e-9)


def test_under_a_cap_that_fewer_threads_keep_they_compute_all_the_time() -> None:
    policy = OwnerPolicy(1, "ada", ["general"], power_cap_w=50.0, threads=2)
    assert allotted(Allotment(4), 100.0, policy) == Allotment(2, threads_share=0.5)
    assert allotted(Allotment(4), 100.0, replace(policy, threads=3)) == Allotment(3, 0, 1 << 62, 50 / 75, 0.75)


@pytest.mark.parametrize(("share", "quota"), [(0.8, "160000 100000"), (1.0, "max 100000")])
def test_a_group_is_bounded_and_entered(delegated: Path, share: float, quota: str) -> None:
    prepare_cgroup(delegated, Allotment(threads=2, memory_bytes=1 << 30, busy_share=share))
    enter_cgroup(delegated)
    assert (delegated.parent / "cgroup.subtree_control").read_text() == "+cpu +memory"
    found = {name: (delegated / name).read_text() for name in ("memory.max", "cpu.max", "cgroup.procs")}
    assert found == {"memory.max": "1073741824", "cpu.max": quota, "cgroup.procs": str(os.getpid())}


def test_what_is_no_delegated_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="subtree_control"):
        prepare_cgroup(tmp_path / "worker", Allotment(threads=1))
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory")
    with pytest.raises(OSError, match=r"memory\.max"):
        prepare_cgroup(tmp_path / "worker", Allotment(threads=1))


def test_a_real_group_bounds_its_process() -> None:
    """Where the machine has delegated one to whoever runs the tests."""
    root = Path("/sys/fs/cgroup")
    if not {"cpu", "memory"} <= set(_words(root / "cgroup.subtree_control")) or not os.access(root, os.W_OK):
        pytest.skip("cgroups v2 with cpu and memory are not here, or not ours to write")
    group = root / f"idlewheel-test-{os.getpid()}"
    try:
        prepare_cgroup(group, Allotment(threads=1, memory_bytes=1 << 28, busy_share=0.5))
        assert (group / "memory.max").read_text().strip() == str(1 << 28)
        assert (group / "cpu.max").read_text().split() == ["50000", "100000"]
    finally:
        if group.exists():
            group.rmdir()


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
