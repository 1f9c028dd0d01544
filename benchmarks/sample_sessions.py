"""Makes simulator/data/sessions.csv.gz from the full table of charging sessions.

Run `python -m benchmarks.sample_sessions DIR`: DIR holds `sessions.csv.gz` and `users.csv`, whose origin stands in
simulator/data/SOURCE.md. Never downloads them.
"""

import csv
import gzip
import io
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

FIRST = datetime(2020, 1, 6)  # noqa: DTZ001 - local times without an offset, as in the source
END = datetime(2020, 2, 1)  # noqa: DTZ001
MORNING = timedelta(hours=6, minutes=15)
LEAST_MORNINGS = 5
TARGET = Path(__file__).parent.parent / "simulator" / "data" / "sessions.csv.gz"

Session = tuple[datetime, datetime, str]


def main(directory: Path) -> None:
    with (directory / "users.csv").open() as file:
        users = {row["user_id"]: row for row in csv.DictReader(file) if row["battery_kwh_est"]}
    sessions = read_sessions(directory / "sessions.csv.gz")
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["user", "plugin_local", "plugout_local", "charge_start_percent", "charging_kw", "battery_kwh"])
    chosen = sorted(user for user in sessions if user in users and is_regular(sessions[user]))
    for number, user in enumerate(chosen, 1):
        power, battery = (float(users[user][name]) for name in ("charging_power_kw_est", "battery_kwh_est"))
        for start, stop, charge in sessions[user]:
            minutes = [time.isoformat(timespec="minutes") for time in (start, stop)]
            out.writerow([number, *minutes, charge and round(float(charge)), round(power, 1), round(battery, 1)])
    # Without a time stamp, so that the same input makes the same bytes.
    TARGET.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    print(f"{len(chosen)} users, {text.getvalue().count(chr(10)) - 1} sessions, {TARGET.stat().st_size} bytes")


def read_sessions(file: Path) -> dict[str, list[Session]]:
    sessions: dict[str, list[Session]] = {}
    with gzip.open(file, "rt") as rows:
        for row in csv.DictReader(rows):
            if row["flag"] not in {"ok", "low_energy"}:
                continue
            start, stop = (datetime.fromisoformat(row[name]) for name in ("plugin_local", "plugout_local"))
            if stop > FIRST and start < END and stop > start:
                sessions.setdefault(row["user_id"], []).append((start, stop, row["soc_start_pct_est"]))
    return {user: sorted(rows) for user, rows in sessions.items()}


def is_regular(sessions: list[Session]) -> bool:
    """Whether one car plugs in here, and often stands there in the morning of a working day."""
    if any(after[0] <= before[1] for before, after in pairwise(sessions)):
        return False
    days = [FIRST + timedelta(days=number) for number in range((END - FIRST).days)]
    mornings = [day + MORNING for day in days if day.weekday() < 5]
    return sum(any(s[0] <= morning < s[1] for s in sessions) for morning in mornings) >= LEAST_MORNINGS


if __name__ == "__main__":
    main(Path(sys.argv[1]))
