"""The owner's policy and consent as one versioned document, and what makes one contradict itself. Never asks a clock.

It is retained on the vehicle's policy topic, kept in the coordinator's ledger with its history, and applied by both
sides on their own; the vehicle has the last word.
"""

from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "LEAST_MEMORY_BYTES",
    "QUARTER_MINUTES",
    "WEEK_QUARTERS",
    "Hours",
    "LinkRules",
    "OwnerPolicy",
    "allowed_quarters",
    "policy_faults",
]

QUARTER_MINUTES = 15
WEEK_QUARTERS = 7 * 24 * 60 // QUARTER_MINUTES
_DAY_QUARTERS = 24 * 60 // QUARTER_MINUTES
LEAST_MEMORY_BYTES = 256_000_000  # an inference runtime with the smallest model takes half of it

Purpose = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}$(?!\n)")]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Hours(Struct, frozen=True):
    """Hours in which the car may work, on some days of the owner's local week (0 is Monday).

    `stop_minute` is excluded. Where it is not after `start_minute`, the hours go on past midnight.
    """

    days: Annotated[list[Annotated[int, Meta(ge=0, le=6)]], Meta(min_length=1, max_length=7)]
    start_minute: Annotated[int, Meta(ge=0, lt=1440, multiple_of=QUARTER_MINUTES)]
    stop_minute: Annotated[int, Meta(ge=0, le=1440, multiple_of=QUARTER_MINUTES)]


class LinkRules(Struct, frozen=True):
    """Which links may carry work: metered ones or not, how fast at least, and how many bytes a calendar month (UTC)."""

    metered_allowed: bool = False
    least_mbps: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    month_bytes: Count | None = None


class OwnerPolicy(Struct, frozen=True):
    """What one owner agreed to for one vehicle. Nothing set means no limit; no purpose means no work.

    `version` grows with every change and is what tasks rely on. `power_cap_w` bounds what computing may draw;
    `least_pay_micro_per_h` is the fee for an hour of computing, on top of the energy, below which the car stays idle;
    `departure_charge_percent` is the charge promised for the next departure where the car itself does not say.
    `threads`, `niceness` and `memory_bytes` bound the process that computes; where the car has its own bounds, the
    stricter ones hold.
    """

    version: Annotated[int, Meta(ge=1, le=1 << 53)]
    owner: Identifier
    purposes: Annotated[list[Purpose], Meta(max_length=32)]
    revoked: bool = False
    timezone: Annotated[str, Meta(max_length=64, description="IANA name")] = "UTC"
    hours: Annotated[list[Hours], Meta(max_length=64)] = []
    charge_floor_percent: Percent = 30.0
    departure_charge_percent: Percent | None = None
    price_ceiling_micro_per_kwh: Count | None = None
    charge_coincident_only: bool = False
    link: LinkRules = LinkRules()
    power_cap_w: Annotated[float, Meta(gt=0, le=1e5)] | None = None
    least_pay_micro_per_h: Count = 0
    threads: Annotated[int, Meta(ge=1, le=4096)] | None = None
    niceness: Annotated[int, Meta(ge=0, le=19)] | None = None
    memory_bytes: Annotated[int, Meta(ge=LEAST_MEMORY_BYTES, le=1 << 53)] | None = None


def allowed_quarters(policy: OwnerPolicy) -> bytes:
    """One byte a quarter of the local week from Monday 00:00, 1 where the car may work; all of them without hours."""
    if not policy.hours:
        return b"\x01" * WEEK_QUARTERS
    allowed = bytearray(WEEK_QUARTERS)
    for hours in policy.hours:
        first = hours.start_minute // QUARTER_MINUTES
        length = (hours.stop_minute // QUARTER_MINUTES - first) % _DAY_QUARTERS or _DAY_QUARTERS
        for day in hours.days:
            for quarter in range(day * _DAY_QUARTERS + first, day * _DAY_QUARTERS + first + length):
                allowed[quarter % WEEK_QUARTERS] = 1
    return bytes(allowed)


def policy_faults(policy: OwnerPolicy) -> list[str]:
    """Say what contradicts itself, a line each; empty when nothing does."""
    faults = []
    if len(set(policy.purposes)) < len(policy.purposes):
        faults.append("a purpose is named twice")
    if policy.revoked and policy.purposes:
        faults.append("it is revoked and still names purposes")
    if not policy.revoked and not policy.purposes:
        faults.append("it names no purpose: revoke it, or say what for")
    if policy.link.month_bytes == 0:
        faults.append("its link may carry no byte a month, so that no work can be sent")
    promised = policy.departure_charge_percent
    if promised is not None and promised < policy.charge_floor_percent:
        faults.append(
            f"it promises {promised:g} % for the departure and keeps at least {policy.charge_floor_percent:g} %"
        )
    if any(len(set(hours.days)) < len(hours.days) for hours in policy.hours):
        faults.append("its hours name a day twice")
    return faults
