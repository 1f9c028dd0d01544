"""Rows that fit into no packet travel by reference; packets that are not ours are counted and change nothing."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fleet_link import ConnectOptions, connect
from fleet_wire.codec import CAPS, RESULT, STATE, TELEMETRY
from fleet_wire.messages import Rows, Span
from fleet_wire.tensors import encode_tensors
from idlewheel.brokers import Broker
from tests.system.deployment import DEADLINE_S, deployment, until

WIDE = 100_000


def doubling(width: int) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


async def test_rows_larger_than_a_packet_travel_over_http(broker: Broker, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).random((12, WIDE), dtype=np.float32)  # 400 KB a row, in and out
    async with deployment(broker, tmp_path, cars=2) as running:
        job = await asyncio.to_thread(running.client.submit, doubling(WIDE), rows)
        result = await asyncio.to_thread(job.result, DEADLINE_S)
    np.testing.assert_array_equal(result["y"], rows * 2)


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_garbage_on_every_topic_is_counted_and_changes_nothing(broker: Broker, tmp_path: Path) -> None:
    rows = np.random.default_rng(2).random((2_000, 16), dtype=np.float32)
    root = "iw/v1/test"
    made_up = Rows("0" * 12, 1, [Span(0, 0, 1)], encode_tensors({"y": np.ones((1, 16), np.float32)}))
    garbage = [
        *((f"{root}/veh/liar/{topic}", kind.content_type, b"\xc1garbage") for topic, kind in
          (("state", STATE), ("caps", CAPS), ("tele", TELEMETRY))),
        (f"{root}/veh/liar/tele", TELEMETRY.content_type.replace("v=1", "v=9"), b"\x80"),
        (f"{root}/veh/liar/tele", None, b"\x80"),
        (f"{root}/job/nojob/res/liar", RESULT.content_type, b"\x80"),
        (f"{root}/job/{made_up.job}/res/liar", RESULT.content_type, RESULT.encode(made_up)),
        (f"{root}/veh/liar/tele", TELEMETRY.content_type, bytes(200_000)),
    ]  # fmt: skip
    async with deployment(broker, tmp_path, cars=2) as running:
        liar = await connect(ConnectOptions(broker.host, broker.port, "liar"))
        job = await asyncio.to_thread(running.client.submit, doubling(16), rows)
        forged = Rows(job.id, 1, [Span(0, 0, 5)], encode_tensors({"y": np.zeros((5, 16), np.float32)}))
        forgery = (f"{root}/job/{job.id}/res/liar", RESULT.content_type, RESULT.encode(forged))
        for topic, content_type, payload in [*garbage, forgery]:
            await liar.publish(topic, payload, content_type=content_type)
        result = await asyncio.to_thread(job.result, DEADLINE_S)
        np.testing.assert_array_equal(result["y"], rows * 2)

        def refused() -> dict[str, int]:
            return running.client.health().refusals

        await until(lambda: "message_oversized" in refused(), "the last of the garbage is counted")
        counted = refused()
        assert counted["message_malformed"] == 4
        assert counted["message_unknown_version"] == 1
        assert counted["message_wrong_content_type"] == 1
        # The job may have ended before the forgery came.
        assert counted.get("result_without_lease", 0) + counted.get("result_job_not_running", 0) == 2
        assert [vehicle.id for vehicle in running.client.vehicles() if vehicle.id == "liar"] == []
        await liar.close()
