"""Calendar months of the fleet's local time, by which statements are made. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

__all__ = ["Month", "month_of"]


@dataclass(frozen=True, slots=True)
class Month:
    """A month as a number (202611), from `start_ms` until `stop_ms` (excluded)."""

    number: int
    start_ms: int
    stop_ms: int

    def __contains__(self, time_ms: int) -> bool:
        return self.start_ms <= time_ms < self.stop_ms


def month_of(time_ms: int, zone: ZoneInfo) -> Month:
    """The local month that a time lies in."""
    start = datetime.fromtimestamp(time_ms / 1000, zone).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0, fold=0
    )
    stop = (start + timedelta(days=31)).replace(day=1)
    return Month(start.year * 100 + start.month, _unix_ms(start), _unix_ms(stop))


def _unix_ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
