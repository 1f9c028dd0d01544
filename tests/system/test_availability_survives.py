"""What the coordinator learned of its cars' availability is there after its end, and after it was killed."""

from pathlib import Path

import pytest

from coordinator.availability import Availability
from idlewheel.brokers import Broker
from tests.system.deployment import deployment, until


def plugged_since_ms(kept: Path) -> int:
    """Since when the only car is plugged in, by what is saved; -1 when nothing says."""
    if not kept.exists():
        return -1
    ids, model = Availability.from_bytes(kept.read_bytes())
    return int(model.column["plugged_since_ms"][0]) if ids == ["car-1"] else -1


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_a_car_is_known_to_be_plugged_in_since_as_long_ago_as_before(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "coordinator" / "availability.npz"
    monkeypatch.setenv("IDLEWHEEL_COORDINATOR_SAVE_EVERY_S", "0.1")
    async with deployment(broker, tmp_path, cars=1) as running:
        await until(lambda: plugged_since_ms(kept) > 0, "it is saved")
        since_ms = plugged_since_ms(kept)
        await running.kill("coordinator")
        assert plugged_since_ms(kept) == since_ms
        monkeypatch.setenv("IDLEWHEEL_COORDINATOR_SAVE_EVERY_S", "3600")
        await running.start_coordinator()
        kept.unlink()  # so that what is there next was written at the end
        assert await running.stop("coordinator") == 0
        assert plugged_since_ms(kept) == since_ms
        kept.unlink()  # so that only the telemetry store knows
        await running.start_coordinator()
        assert await running.stop("coordinator") == 0
    assert abs(plugged_since_ms(kept) - since_ms) < 60_000
