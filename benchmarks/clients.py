"""The clients of `benchmarks.mqtt_clients` as lines of the common table, those that receive beside their floor."""

from typing import Any, Final

from benchmarks.figures import Figure, Plan
from benchmarks.mqtt_clients import RECEIVE, measure_all

GROUP: Final = "mqtt clients"
_FLOOR: Final = next(iter(RECEIVE))


async def measure(plan: Plan) -> list[Figure]:
    rows = await measure_all(10_000 if plan.quick else 50_000)
    floor = next((row["per_s"] for row in rows if row["client"] == _FLOOR and "per_s" in row), None)
    return [_figure(row, floor if row["direction"] == "receive" and row["client"] != _FLOOR else None) for row in rows]


def _figure(row: dict[str, Any], floor: float | None) -> Figure:
    name = f"{row['direction']}, {row['client']}"
    if "failed" in row:
        return Figure(GROUP, name, "messages/s", note=f"failed, or not installed: {row['failed']}")
    note = f"{row['cpu_us']:.1f} µs of processor each, {row['rss_mb']:.0f} MB at most"
    return Figure(GROUP, name, "messages/s", row["per_s"], floor, "" if floor is None else _FLOOR, note=note)
