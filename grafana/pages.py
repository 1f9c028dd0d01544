"""The five dashboards: which questions they answer, and by which figures of the metric catalogue."""

from coordinator.metrics import (
    ECONOMICS,
    FLEET_REASON,
    FLEET_REGION,
    FLEET_STATE,
    JOB_STATE,
    JOB_WASTE,
    SERVICE,
    SERVICE_REFUSAL,
    SERVICE_STORE,
    VEHICLE_STATE,
    VEHICLE_WORK,
)
from grafana.panels import Dashboard, Panel, Threshold
from grafana.queries import Column, Query, latest, mean, per_second, ratio, raw, total, worst

__all__ = ["DASHBOARDS"]

YES_NO = {"0": ("no", "orange"), "1": ("yes", "green")}
NO_YES = {"0": ("no", "text"), "1": ("yes", "blue")}
NONE = "none in this time"


def _now(*columns: Column) -> tuple[Query, ...]:
    return (Query(columns, one_value=True),)


def _over_time(*columns: Column) -> tuple[Query, ...]:
    return (Query(columns),)


def _by(tag: str, column: Column) -> tuple[Query, ...]:
    return (Query((column,), by_tag=tag),)


def _of_vehicle(*columns: Column, one_value: bool = False) -> tuple[Query, ...]:
    return (Query(columns, vehicle=True, one_value=one_value),)


FLEET = Dashboard(
    "idlewheel-fleet",
    "Fleet",
    "How many cars are in which state, why the others get no work, and how many will be there.",
    (
        Panel(
            "Now",
            _now(*(latest(FLEET_STATE, name) for name in ("vehicles", "online", "plugged", "eligible", "working"))),
            kind="stat",
            width=24,
            height=4,
            now=True,
        ),
        Panel(
            "Cars by state",
            _over_time(*(mean(FLEET_STATE, name) for name in ("online", "plugged", "charging", "eligible", "working"))),
            decimals=0,
        ),
        Panel(
            "Cars plugged in, and expected an hour later",
            _over_time(mean(FLEET_STATE, "plugged"), mean(FLEET_STATE, "plugged_in_1h", "expected an hour later")),
            description="By each car's habits and the fleet's: see docs/availability.md.",
            decimals=0,
        ),
        Panel(
            "Why cars get no work",
            _by("reason", mean(FLEET_REASON, "vehicles")),
            description="The first reason for each car; `idlewheel why VEHICLE` explains a single one.",
            stacked=True,
            decimals=0,
        ),
        Panel("Cars that may work, by region", _by("region", mean(FLEET_REGION, "eligible")), stacked=True, decimals=0),
        Panel("Mean charge of connected cars", _over_time(mean(FLEET_STATE, "charge_percent", "charge"))),
    ),
    time_from="now-24h",
)

JOBS = Dashboard(
    "idlewheel-jobs",
    "Jobs",
    "How fast work goes, what waits, whether it will be late, and what of it was for nothing.",
    (
        Panel(
            "Now",
            _now(
                latest(JOB_STATE, "running", "jobs running"),
                latest(JOB_STATE, "rows_waiting"),
                latest(JOB_STATE, "leases", "open leases"),
            ),
            kind="stat",
            height=4,
            now=True,
        ),
        Panel(
            "Latest job after its deadline",
            _now(latest(JOB_STATE, "lateness_s", "expected lateness")),
            kind="stat",
            width=6,
            height=4,
            now=True,
            thresholds=(Threshold(1, "orange"), Threshold(600, "red")),
        ),
        Panel(
            "Jobs that ended in this time",
            _now(*(total(JOB_STATE, name) for name in ("done", "failed", "cancelled"))),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel("Rows a second", _over_time(per_second(JOB_STATE, "rows", unit="row per second"))),
        Panel(
            "Backlog",
            _over_time(mean(JOB_STATE, "rows_waiting"), mean(JOB_STATE, "rows_leased")),
            description="`idlewheel why --job JOB` says why rows of a job wait.",
            stacked=True,
            decimals=0,
        ),
        Panel(
            "Leases",
            _over_time(total(JOB_STATE, "leases_granted", "granted"), total(JOB_STATE, "leases_expired", "expired")),
            description="More than a few that expire are cars that fall silent: look at the broker and the network.",
            bars=True,
            decimals=0,
        ),
        Panel(
            "Lateness and age",
            _over_time(
                worst(JOB_STATE, "lateness_s", "expected lateness"), worst(JOB_STATE, "oldest_s", "age of oldest job")
            ),
            description="`idlewheel jobs` names the job. One that reaches its deadline ends as failed.",
        ),
        Panel(
            "Rows leased again, by cause",
            _by("cause", total(JOB_WASTE, "rows_released")),
            description="`released` and `lost` are cars that left; that is no failure. `expired` went silent.",
            stacked=True,
            bars=True,
            decimals=0,
            nothing=NONE,
        ),
        Panel(
            "Computing time for nothing, by cause",
            _by("cause", total(JOB_WASTE, "compute_ms")),
            stacked=True,
            bars=True,
            nothing=NONE,
        ),
    ),
)

EARNED = total(VEHICLE_WORK, "pay_micro", "earned", scale="/ 1000000", unit="currency")
VEHICLE = Dashboard(
    "idlewheel-vehicle",
    "Vehicle",
    "One car: its state, power, temperature, link, work and earnings.",
    (
        Panel(
            "Charge",
            _of_vehicle(latest(VEHICLE_STATE, "charge_percent", "charge"), one_value=True),
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Rows in this time",
            _of_vehicle(total(VEHICLE_WORK, "rows"), one_value=True),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel(
            "Energy in this time",
            _of_vehicle(total(VEHICLE_WORK, "energy_mwh", "energy", scale="/ 1000", unit="watt-hour"), one_value=True),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel(
            "Earned in this time",
            _of_vehicle(EARNED, one_value=True),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
            decimals=4,
        ),
        Panel(
            "State",
            (
                *_of_vehicle(*(latest(VEHICLE_STATE, name) for name in ("plugged", "charging", "moving"))),
                # Told only when it changes.
                Query((latest(VEHICLE_WORK, "eligible"),), vehicle=True, fill="previous"),
            ),
            kind="state-timeline",
            mappings=NO_YES,
        ),
        Panel(
            "Why it gets no work",
            (Query((raw(VEHICLE_WORK, "reason"), raw(VEHICLE_WORK, "leases")), vehicle=True, limit=50),),
            kind="table",
            description="The latest first; written when anything changed.",
        ),
        Panel(
            "Power",
            _of_vehicle(
                latest(VEHICLE_STATE, "battery_power_w", "battery"),
                latest(VEHICLE_STATE, "compute_power_w", "compute"),
            ),
        ),
        Panel(
            "Temperature",
            _of_vehicle(
                *(latest(VEHICLE_STATE, f"{part}_temperature_c", part) for part in ("battery", "compute", "cabin"))
            ),
        ),
        Panel("Speed of its link", _of_vehicle(latest(VEHICLE_STATE, "link_rate_mbps", "rate"))),
        Panel("What its link carried in the month", _of_vehicle(latest(VEHICLE_STATE, "link_month_bytes", "carried"))),
        Panel("Rows", _of_vehicle(total(VEHICLE_WORK, "rows")), bars=True, decimals=0, nothing=NONE),
        Panel("Earned", _of_vehicle(EARNED), bars=True, nothing=NONE),
    ),
    time_from="now-24h",
    variables={"vehicle": f'SHOW TAG VALUES FROM "{VEHICLE_STATE.name}" WITH KEY = "vehicle"'},
)

ECONOMY = Dashboard(
    "idlewheel-economics",
    "Economics",
    "What rows take and cost, what owners get, and what energy was for nothing.",
    (
        Panel("Rows", _now(total(ECONOMICS, "rows")), kind="stat", width=6, height=4, nothing="0"),
        Panel(
            "Energy above what cars would have used",
            _now(total(ECONOMICS, "energy_mwh", "energy", scale="/ 1000", unit="watt-hour")),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel(
            "Energy for nothing",
            _now(total(ECONOMICS, "wasted_energy_mwh", "wasted", scale="/ 1000", unit="watt-hour")),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel(
            "Paid to owners",
            _now(total(ECONOMICS, "pay_micro", "pay", scale="/ 1000000", unit="currency")),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
            decimals=2,
        ),
        Panel(
            "Energy for a million rows",
            # A milliwatt-hour a row is a kilowatt-hour a million rows, and a micro-unit a row is a unit a million.
            (Query((ratio(ECONOMICS, "energy_mwh", "rows", "energy", "kilowatt-hour"),), when="rows"),),
            description="Above what the cars would have used anyway: see docs/energy-and-pay.md.",
        ),
        Panel(
            "Cost and pay for a million rows",
            (
                Query(
                    (
                        ratio(ECONOMICS, "energy_cost_micro", "rows", "cost of energy", "currency"),
                        ratio(ECONOMICS, "pay_micro", "rows", "pay", "currency"),
                    ),
                    when="rows",
                ),
            ),
            description="The cost of energy is refunded: it is part of the pay. All rows, whatever their model.",
        ),
        Panel(
            "Energy",
            _over_time(
                total(ECONOMICS, "energy_mwh", "accepted rows", scale="/ 1000", unit="watt-hour"),
                total(ECONOMICS, "wasted_energy_mwh", "for nothing", scale="/ 1000", unit="watt-hour"),
            ),
            stacked=True,
            bars=True,
        ),
        Panel(
            "Energy for nothing, by cause",
            _by("cause", total(JOB_WASTE, "energy_mwh", scale="/ 1000", unit="watt-hour")),
            stacked=True,
            bars=True,
            nothing=NONE,
        ),
    ),
    time_from="now-7d",
)

SERVICE_PAGE = Dashboard(
    "idlewheel-service",
    "Service",
    "Whether the coordinator keeps up: what comes in, how long it waits, and what is refused.",
    (
        Panel(
            "Broker connected",
            _now(latest(SERVICE, "connected")),
            kind="stat",
            width=6,
            height=4,
            now=True,
            mappings=YES_NO,
        ),
        Panel(
            "Oldest telemetry not stored yet",
            _now(latest(SERVICE, "store_lag_ms", "lag")),
            kind="stat",
            width=6,
            height=4,
            now=True,
            thresholds=(Threshold(10_000, "orange"), Threshold(60_000, "red")),
        ),
        Panel(
            "Events that wait for the core",
            _now(latest(SERVICE, "events_waiting", "events")),
            kind="stat",
            width=6,
            height=4,
            now=True,
            thresholds=(Threshold(4_096, "orange"), Threshold(8_192, "red")),
        ),
        Panel(
            "Refused in this time",
            _now(total(SERVICE_REFUSAL, "refused")),
            kind="stat",
            width=6,
            height=4,
            nothing="0",
        ),
        Panel(
            "Ingest",
            _over_time(
                per_second(SERVICE, "telemetry", unit="per second"), per_second(SERVICE, "messages", unit="per second")
            ),
        ),
        Panel(
            "Time to the acknowledgement",
            (
                Query(
                    (
                        ratio(SERVICE, "telemetry_wait_ms", "telemetry", "telemetry, mean", "millisecond"),
                        worst(SERVICE, "telemetry_wait_worst_ms", "telemetry, worst"),
                    ),
                    when="telemetry",
                ),
                Query(
                    (
                        ratio(SERVICE, "messages_wait_ms", "messages", "results, mean", "millisecond"),
                        worst(SERVICE, "messages_wait_worst_ms", "results, worst"),
                    ),
                    when="messages",
                ),
            ),
            description="Telemetry waits for the store, results for the ledger.",
            thresholds=(Threshold(10_000, "red"),),
        ),
        Panel("Store lag", _over_time(worst(SERVICE, "store_lag_ms", "oldest telemetry not stored"))),
        Panel("Telemetry on disk", _over_time(worst(SERVICE, "store_waiting", "lines that wait for the store"))),
        Panel(
            "Commits of the ledger",
            (
                Query(
                    (
                        ratio(SERVICE, "commits_ms", "commits", "mean", "millisecond"),
                        worst(SERVICE, "commit_worst_ms", "worst"),
                    ),
                    when="commits",
                ),
            ),
            description="Results are acknowledged after a commit, so that all work waits for a slow one.",
            thresholds=(Threshold(1_000, "red"),),
        ),
        Panel(
            "Refused, by reason",
            _by("reason", total(SERVICE_REFUSAL, "refused")),
            description="A few are usual: requests with mistakes, cars that begin to leave while a task is under way.",
            stacked=True,
            bars=True,
            decimals=0,
            nothing=NONE,
        ),
        Panel("Telemetry store, by event", _by("event", total(SERVICE_STORE, "events")), bars=True, decimals=0),
    ),
)

DASHBOARDS = (FLEET, JOBS, VEHICLE, ECONOMY, SERVICE_PAGE)
