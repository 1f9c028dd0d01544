"""Every setting of a vehicle's agent; from the environment as IDLEWHEEL_AGENT_*, or given by whoever starts it."""

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fleet_wire.codec import MAX_PACKET_BYTES
from fleet_wire.policy import LEAST_MEMORY_BYTES
from vehicle_agent.policy import CarLimits

__all__ = ["AgentSettings"]


class AgentSettings(BaseSettings):
    """Where the agent connects, what it may use, and its maker's limits (as LIMITS__BATTERY_STOP_C)."""

    model_config = SettingsConfigDict(env_prefix="IDLEWHEEL_AGENT_", env_nested_delimiter="__", frozen=True)

    fleet: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    vehicle: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    data_dir: Path
    models_dir: Path | None = Field(None, description="may be shared by agents of one machine; default: in data_dir")

    broker_host: str = "127.0.0.1"
    broker_port: int = Field(1883, ge=1, le=65535)
    username: str | None = None
    password: SecretStr | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    keep_alive_s: int = Field(30, ge=1)
    beat_s: float = Field(1.0, ge=0.1, le=600, description="between two signs of life while it holds leases")
    max_packet_bytes: int = Field(MAX_PACKET_BYTES, ge=4096)
    http_url: str = Field("", description="overrides where the coordinator says that blobs are")

    limits: CarLimits = CarLimits()
    region: str = Field("", max_length=64)

    threads: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 1) - 1), ge=1)
    niceness: int = Field(10, ge=0, le=19)
    memory_bytes: int = Field(
        default_factory=lambda: max(LEAST_MEMORY_BYTES, _memory_bytes() // 2),
        ge=LEAST_MEMORY_BYTES,
        description="of the worker",
    )
    cgroup: Path | None = Field(None, description="a delegated folder of cgroups v2; the worker gets a group in it")
    slots: int = Field(1024, ge=1, le=65535)
    compute_power_w: float = Field(25.0, ge=0, description="above idle, where the car does not measure it")
    awake_power_w: float = Field(260.0, ge=0, description="of a car that is awake, where it does not measure it")
    batch_target_ms: float = Field(100.0, gt=0)
    first_batch_rows: int = Field(8, ge=1)
    max_batch_rows: int = Field(4096, ge=1)
    input_bytes: int = Field(256 << 20, ge=1 << 20)
    worker_models: int = Field(4, ge=1)
    worker_idle_s: float = Field(300.0, gt=0)

    models_bytes: int = Field(4 << 30, ge=1)
    spool_bytes: int = Field(64 << 20, ge=1)

    sample_s: float = Field(1.0, gt=0, description="how often the signals are read at least")
    telemetry_s: float = Field(2.0, gt=0, description="least time between two deltas")
    snapshot_s: float = Field(120.0, gt=0)
    shutdown_s: float = Field(3.0, gt=0)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
