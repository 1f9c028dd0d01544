"""Looks at an InfluxDB server as an operator would before pointing a coordinator at it. Changes nothing there."""

from dataclasses import dataclass

from coordinator.adapters.influx_server import InfluxAddress, InfluxError, InfluxServer, ServerGone

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it will do, and what it is, or what to do about it."""

    name: str
    ok: bool
    text: str


def examine(address: InfluxAddress, timeout_s: float = 5.0) -> list[Finding]:
    """What there is and what is missing; ends at the first thing without which nothing else can be seen."""
    server = InfluxServer(address, timeout_s)
    findings: list[Finding] = []
    try:
        version = server.version()
        # Built from source, 1.8 says "unknown".
        known = "a server" if not version else "InfluxDB" if version == "unknown" else f"InfluxDB {version}"
        findings.append(Finding("server", ok=True, text=f"{known} answers at {address.url}"))
        databases = server.databases()
        findings.append(Finding("access", ok=True, text="it lets us ask in InfluxQL"))
        findings.append(_database(address, databases, version))
        findings.append(_write(has_v2_write=server.has_v2_write()))
        findings.append(_retention(version))
    except ServerGone as error:
        hint = "is InfluxDB up there, and are scheme, host and port of the URL right?"
        findings.append(Finding("access" if findings else "server", ok=False, text=f"{error}: {hint}"))
    except InfluxError as error:
        hint = "" if version else "; and it does not say that it is InfluxDB: are host and port of the URL right?"
        findings.append(Finding("access", ok=False, text=f"{error}{hint}"))
    finally:
        server.close()
    return findings


def _database(address: InfluxAddress, databases: list[str], version: str) -> Finding:
    name = address.database
    if name in databases:
        return Finding("database", ok=True, text=f"{name} is there")
    if version.startswith("2"):
        how = f"`influx bucket create -n {name}`, then `influx v1 dbrp create --default` for it"
    else:
        how = f"the coordinator makes it if it may; else `influx -execute 'CREATE DATABASE \"{name}\"'`"
    return Finding("database", ok=False, text=f"{name} is missing: {how}")


def _write(*, has_v2_write: bool) -> Finding:
    how = "/api/v2/write, by influxdb-client" if has_v2_write else "/write, as before 1.8"
    return Finding("write", ok=True, text=f"telemetry goes to {how}")


def _retention(version: str) -> Finding:
    if version.startswith("3"):
        text = "3.x deletes nothing on request: set the database's retention yourself (raw 90 days, rollups two years)"
        return Finding("retention", ok=False, text=text)
    return Finding("retention", ok=True, text="the coordinator rolls up hours, and deletes documents after 90 days")
