"""Bytes that change in the blob store, below real processes: found, put aside, told, and put again by who has them."""

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

from fleet_wire.bundle import encode_bundle
from idlewheel import JobFailed
from idlewheel.brokers import Broker
from tests.integration.direct_desk import double_model
from tests.system.deployment import DEADLINE_S, Deployment, deployment

EMBEDDED = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
X = np.arange(60, dtype=np.float32).reshape(20, 3)


def kept_at(running: Deployment, data: bytes) -> tuple[str, Path]:
    """A blob's digest and file."""
    digest = hashlib.sha256(data).hexdigest()
    return digest, running.directory / "coordinator" / "blobs" / "sha256" / digest[:2] / digest


async def expect_failed(running: Deployment, job: object, error: str) -> None:
    with pytest.raises(JobFailed, match=error):
        await asyncio.to_thread(job.result, DEADLINE_S)  # type: ignore[attr-defined]
    assert running.client.health().refusals["blob_lost"] == 1


@EMBEDDED
async def test_a_model_that_changed_ends_its_jobs_until_it_is_sent_again(broker: Broker, tmp_path: Path) -> None:
    model = double_model()
    async with deployment(broker, tmp_path, cars=0) as running:
        job = await asyncio.to_thread(running.client.submit, model, X)
        digest, file = kept_at(running, model)
        changed = bytes([model[0] ^ 1]) + model[1:]
        file.write_bytes(changed)
        await running.start_car("car-1")
        await expect_failed(running, job, f"its model: blob {digest} has changed in the store: send it again")
        assert (tmp_path / "coordinator" / "blobs" / "damaged" / digest).read_bytes() == changed
        assert not file.exists()
        await running.kill("car-1")  # which would ask for it again after a minute
        again = await asyncio.to_thread(running.client.submit, model, X)
        await running.start_car("car-2")
        np.testing.assert_array_equal((await asyncio.to_thread(again.result, DEADLINE_S))["y"], 2 * X)


@EMBEDDED
async def test_inputs_cut_off_by_a_power_failure_end_their_job_until_they_are_sent_again(
    broker: Broker, tmp_path: Path
) -> None:
    async with deployment(broker, tmp_path, cars=0) as running:
        job = await asyncio.to_thread(running.client.submit, double_model(), X)
        await running.kill("coordinator")
        digest, file = kept_at(running, encode_bundle({"x": X}))
        file.write_bytes(file.read_bytes()[:100])
        await running.start_coordinator()
        await running.start_car("car-1")
        await expect_failed(running, job, f"its inputs: blob {digest} has changed in the store: send it again")
        again = await asyncio.to_thread(running.client.submit, double_model(), X)
        np.testing.assert_array_equal((await asyncio.to_thread(again.result, DEADLINE_S))["y"], 2 * X)
