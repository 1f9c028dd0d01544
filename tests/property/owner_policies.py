"""Owner's policies of every kind, for the property tests. Some of them contradict themselves."""

from hypothesis import strategies as st

from fleet_wire.policy import LEAST_MEMORY_BYTES, QUARTER_MINUTES, Hours, LinkRules, OwnerPolicy

__all__ = ["owner_hours", "owner_policies"]

_counts = st.integers(0, 2**53)
_percents = st.floats(0, 100)

owner_hours = st.builds(
    Hours,
    days=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    start_minute=st.integers(0, 1440 // QUARTER_MINUTES - 1).map(lambda quarter: quarter * QUARTER_MINUTES),
    stop_minute=st.integers(0, 1440 // QUARTER_MINUTES).map(lambda quarter: quarter * QUARTER_MINUTES),
)
owner_policies = st.builds(
    OwnerPolicy,
    version=st.integers(1, 2**53),
    owner=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    purposes=st.lists(st.sampled_from(["general", "research", "own-use"]), max_size=4),
    revoked=st.booleans(),
    timezone=st.sampled_from(["UTC", "Europe/Oslo", "America/St_Johns"]),
    hours=st.lists(owner_hours, max_size=4),
    charge_floor_percent=_percents,
    departure_charge_percent=st.none() | _percents,
    price_ceiling_micro_per_kwh=st.none() | _counts,
    charge_coincident_only=st.booleans(),
    link=st.builds(
        LinkRules, metered_allowed=st.booleans(), least_mbps=st.floats(0, 1e6), month_bytes=st.none() | _counts
    ),
    power_cap_w=st.none() | st.floats(0, 1e5, exclude_min=True),
    least_pay_micro_per_h=_counts,
    threads=st.none() | st.integers(1, 4096),
    niceness=st.none() | st.integers(0, 19),
    memory_bytes=st.none() | st.integers(LEAST_MEMORY_BYTES, 2**53),
)
