"""Hours of an owner's policy as people write them, such as `Mon-Fri 22:00-06:00`. Pure."""

import re

from fleet_wire.policy import QUARTER_MINUTES, Hours
from idlewheel.errors import BadInput

__all__ = ["format_hours", "parse_hours"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TIMES = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", re.ASCII)


def parse_hours(text: str) -> Hours:
    """Hours of `DAYS HH:MM-HH:MM`; days are names, ranges or lists of them, or left out for all. Raises BadInput."""
    days, _, times = text.strip().rpartition(" ")
    found = _TIMES.fullmatch(times)
    if found is None:
        raise BadInput(f"{text!r} are no hours: write them like Mon-Fri 22:00-06:00")
    start, stop = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if start >= 24 * 60 or stop > 24 * 60 or start % QUARTER_MINUTES or stop % QUARTER_MINUTES:
        raise BadInput(f"{times!r}: times are quarters of an hour from 00:00 to 24:00")
    return Hours(_parse_days(days) if days else list(range(7)), start, stop)


def _parse_days(text: str) -> list[int]:
    days: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        start, stop = _day(first), _day(last or first)
        days += [day % 7 for day in range(start, stop + 1 if stop >= start else stop + 8)]
    return sorted(set(days))


def _day(name: str) -> int:
    try:
        return _DAYS.index(name.strip().capitalize()[:3])
    except ValueError:
        raise BadInput(f"{name!r} is no day: write Mon, Tue, Wed, Thu, Fri, Sat or Sun") from None


def format_hours(hours: Hours) -> str:
    """The same text, with every day named."""
    days = ",".join(_DAYS[day] for day in hours.days)
    return f"{days} {_clock(hours.start_minute)}-{_clock(hours.stop_minute)}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
