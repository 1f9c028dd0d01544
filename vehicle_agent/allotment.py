"""What the worker may use of the car, by its owner's policy and its maker's settings. Pure: applies nothing."""

from dataclasses import dataclass

__all__ = ["Allotment", "busy_share"]

_LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Allotment:
    """`busy_share` is the part of the time in which its threads may compute, `memory_bytes` what it may allocate."""

    threads: int
    niceness: int = 0
    memory_bytes: int = 1 << 62
    busy_share: float = 1.0

    def __str__(self) -> str:
        share = "" if self.busy_share == 1 else f", computing {self.busy_share:.0%} of the time"
        return f"threads {self.threads}, niceness {self.niceness}, {self.memory_bytes / 1e9:.1f} GB at most{share}"


def busy_share(full_power_w: float, power_cap_w: float | None) -> float:
    """The part of the time in which it may compute, so that what it draws on average is under the owner's cap.

    Never less than a tenth: the car then draws more than the cap and is not eligible at all.
    """
    if power_cap_w is None or full_power_w <= power_cap_w:
        return 1.0
    return max(_LEAST_SHARE, power_cap_w / full_power_w)
