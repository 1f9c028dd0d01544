"""The coordinator's settings, from the environment (`IDLEWHEEL_COORDINATOR_…`). Only values; never acts on them."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["CoordinatorSettings"]


class CoordinatorSettings(BaseSettings):
    """Where the coordinator finds its broker and its data, and where it serves."""

    model_config = SettingsConfigDict(env_prefix="IDLEWHEEL_COORDINATOR_", extra="forbid")

    fleet: str = Field(default="demo", pattern="^[A-Za-z0-9_-]{1,64}$")
    coordinator_id: str = Field(default="coordinator-1", pattern="^[A-Za-z0-9_-]{1,64}$")
    broker_host: str = "127.0.0.1"
    broker_port: int = Field(default=1883, ge=1, le=65535)
    broker_username: str | None = None
    broker_password: SecretStr | None = None
    broker_ca_file: Path | None = None
    broker_cert_file: Path | None = None
    broker_key_file: Path | None = None
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8470, ge=0, le=65535)
    public_http_url: str | None = None
    """Where vehicles reach this HTTP server, when that differs from its own address."""
    data: Path = Path("idlewheel-data")
    store: SecretStr = SecretStr("")
    """influx://[user:password@]host:port/database for telemetry, influxs:// for TLS, `?token=…&org=…` for 2.x; a DuckDB
    file below `data` when empty. `idlewheel store check URL` says what is missing."""
    ledger: SecretStr = SecretStr("")
    """postgresql://[user:password@]host:port/database; a SQLite file below `data` when empty. Coordinators of one
    ledger stand by for each other: see docs/operations.md."""
    ledger_lease_s: float = Field(default=3.0, ge=0.5, le=60)
    """After how long without a sign of life of the coordinator that writes to PostgreSQL another one takes over."""
    blobs_url: str | None = None
    """s3://…, gs://… or az://…, or file:///… for a folder that coordinators share; one below `data` when not set."""
    max_packet_bytes: int = Field(default=128 * 1024, ge=16 * 1024)
    max_received_packet_bytes: int = Field(default=(1 << 20) + (1 << 17), ge=16 * 1024)
    """What is larger ends the connection. Keep it above the broker's own limit: some brokers don't heed ours, and send
    a packet that was too large again and again. What is larger than `max_packet_bytes` is read and refused."""
    session_expiry_s: int = Field(default=300, ge=0)
    observe_every_s: float = Field(default=10.0, gt=0, le=3600)
    """How often points of the metric catalogue are made; those of single vehicles at every sixth time."""
    fleet_policy: Path | None = None
    """A JSON file: what the owner of every vehicle without a policy of its own agrees to, where one operator owns the
    fleet. It becomes the vehicle's recorded consent when the vehicle first says what it can do."""
    energy_micro_per_kwh: int = Field(default=250_000, ge=0)
    """What a kWh costs, in millionths of the currency, where no `tariff_file` says."""
    tariff_file: Path | None = None
    """Prices by region and time: see docs/energy-and-pay.md; `idlewheel tariff check FILE` says whether it will do."""
    timezone: str = "UTC"
    """The fleet's local time (IANA name), for statements, and for cars without an owner's policy."""
    time_scale: float = Field(default=1.0, ge=1, le=100_000)
    """How much faster than the clock the cars live: above 1 for replays of recorded fleets only."""
    save_every_s: float = Field(default=600.0, gt=0, le=86_400)
    """How often what was learned of the cars' availability is saved."""
    compute_micro_per_h: int = Field(default=20_000, ge=0)
