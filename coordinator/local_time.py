"""The timezones that this machine knows, and how far they are ahead of UTC. Never decides by them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["find_timezone", "utc_offsets_ms"]


def find_timezone(name: str) -> ZoneInfo | None:
    """A timezone by its IANA name; None when this machine knows none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a name may look like a path, and be one of a folder
        return None


def utc_offsets_ms(names: Iterable[str], now_ms: int) -> dict[str, int]:
    """Milliseconds that each timezone is ahead of UTC at this moment; what is not known is left out."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    zones = ((name, find_timezone(name)) for name in names)
    ahead = ((name, now.astimezone(zone).utcoffset()) for name, zone in zones if zone is not None)
    return {name: round(offset.total_seconds() * 1000) for name, offset in ahead if offset is not None}
