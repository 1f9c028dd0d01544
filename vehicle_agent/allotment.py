"""What the worker may use of the car: the stricter of what its maker and its owner allow. Pure: applies nothing."""

from dataclasses import dataclass

from fleet_wire.policy import OwnerPolicy

__all__ = ["Allotment", "allotted", "busy_share"]

_LEAST_SHARE = 0.1
_THREAD_BYTES = 32 << 20  # its stack and what it needs to be of use: more threads than that leave no room for a model


@dataclass(frozen=True, slots=True)
class Allotment:
    """`busy_share` is the part of the time in which its threads may compute, `memory_bytes` what it may allocate.

    `threads_share` is the part that its threads are of all that the car's maker allows.
    """

    threads: int
    niceness: int = 0
    memory_bytes: int = 1 << 62
    busy_share: float = 1.0
    threads_share: float = 1.0

    def __str__(self) -> str:
        share = "" if self.busy_share == 1 else f", computing {self.busy_share:.0%} of the time"
        return f"threads {self.threads}, niceness {self.niceness}, {self.memory_bytes / 1e9:.1f} GB at most{share}"

    @property
    def power_share(self) -> float:
        """The part of the power of all threads, computing all the time, that it may draw."""
        return self.busy_share * self.threads_share


def allotted(maker: Allotment, full_power_w: float, policy: OwnerPolicy | None) -> Allotment:
    """What its owner's policy leaves of what the maker allows, whose threads draw `full_power_w` together."""
    memory_bytes, threads, niceness, power_cap_w = maker.memory_bytes, maker.threads, maker.niceness, None
    if policy is not None:
        memory_bytes = min(memory_bytes, policy.memory_bytes or memory_bytes)
        threads = min(threads, policy.threads or threads)
        niceness = max(niceness, policy.niceness or 0)
        power_cap_w = policy.power_cap_w
    threads = max(1, min(threads, memory_bytes // _THREAD_BYTES))
    threads_share = threads / maker.threads
    return Allotment(
        threads, niceness, memory_bytes, busy_share(full_power_w * threads_share, power_cap_w), threads_share
    )


def busy_share(full_power_w: float, power_cap_w: float | None) -> float:
    """The part of the time in which it may compute, so that what it draws on average is under the owner's cap.

    Never less than a tenth: the car then draws more than the cap and is not eligible at all.
    """
    if power_cap_w is None or full_power_w <= power_cap_w:
        return 1.0
    return max(_LEAST_SHARE, power_cap_w / full_power_w)
