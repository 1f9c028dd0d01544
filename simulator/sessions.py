"""The sample of real charging sessions that ships with the package, as one trace a user. Never changes it.

Origin and licence (CC BY 4.0) stand in simulator/data/SOURCE.md; show `ATTRIBUTION` wherever the data is shown.
"""

import csv
import gzip
import io
from datetime import UTC, datetime
from functools import cache
from importlib import resources

from simulator.traces import CarTrace, PlugIn

__all__ = ["ATTRIBUTION", "MORNINGS_MS", "load_traces", "local_ms"]

ATTRIBUTION = "charging sessions: Å. L. Sørensen (2024), doi 10.5281/zenodo.13896176, CC BY 4.0, sampled"
# The authors have no estimate for some sessions.
_UNKNOWN_CHARGE_PERCENT = 50.0
_DAY_MS = 24 * 3_600_000


def local_ms(text: str) -> int:
    """Milliseconds of a local time (ISO, no offset) in the traces' calendar."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


# 06:15 on the working days of the sample.
MORNINGS_MS: tuple[int, ...] = tuple(local_ms("2020-01-06T06:15") + day * _DAY_MS for day in range(26) if day % 7 < 5)


@cache
def load_traces() -> tuple[CarTrace, ...]:
    """All users of the sample, in the file's order."""
    data = (resources.files("simulator") / "data" / "sessions.csv.gz").read_bytes()
    rows: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(gzip.decompress(data).decode())):
        rows.setdefault(row["user"], []).append(row)
    return tuple(_trace(sessions) for sessions in rows.values())


def _trace(rows: list[dict[str, str]]) -> CarTrace:
    plug_ins = tuple(
        PlugIn(
            local_ms(row["plugin_local"]),
            local_ms(row["plugout_local"]),
            float(row["charge_start_percent"] or _UNKNOWN_CHARGE_PERCENT),
        )
        for row in rows
    )
    return CarTrace(plug_ins, battery_kwh=float(rows[0]["battery_kwh"]), charging_kw=float(rows[0]["charging_kw"]))
