"""What a person does first: `idlewheel up`, `idlewheel submit` on their own model, Ctrl-C; and what bad input says."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import psycopg
import pytest
from onnx import TensorProto, helper

from idlewheel.brokers import free_port
from tests.conftest import require_mosquitto
from tests.postgres import PostgresProcess
from tests.system.deployment import DEADLINE_S

ROWS = 300
INPUTS = {
    "a": (TensorProto.FLOAT, ["n", 4]),
    "text": (TensorProto.STRING, ["n", "k"]),
    "i": (TensorProto.INT64, ["n", "m"]),
    "flag": (TensorProto.BOOL, ["n"]),
    "half": (TensorProto.FLOAT16, ["n", 2, "z"]),
}
OUTPUTS = {
    "y": (TensorProto.FLOAT, ["n", 3]),
    "text_out": (TensorProto.STRING, ["n", "k"]),
    "sum/of i": (TensorProto.INT64, ["n"]),
    "file": (TensorProto.BOOL, ["n"]),
    "double": (TensorProto.FLOAT16, ["n", 2, "z"]),
}


def mixed_model(path: Path) -> None:
    """Several inputs and outputs, mixed types, strings, open axes, and output names that trip np.savez."""
    nodes = [
        helper.make_node("MatMul", ["a", "W"], ["y"]),
        helper.make_node("Identity", ["text"], ["text_out"]),
        helper.make_node("ReduceSum", ["i", "axes"], ["sum/of i"], keepdims=0),
        helper.make_node("Not", ["flag"], ["file"]),
        helper.make_node("Add", ["half", "half"], ["double"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info(name, *spec) for name, spec in INPUTS.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in OUTPUTS.items()],
        [
            helper.make_tensor("W", TensorProto.FLOAT, [4, 3], np.arange(12)),
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def mixed_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "a": rng.random((ROWS, 4), dtype=np.float32),
        "text": np.array([[f"row {row}", "", "žluťoučký"] for row in range(ROWS)]),
        "i": rng.integers(-9, 9, (ROWS, 5)),
        "flag": rng.random(ROWS) > 0.5,
        "half": rng.random((ROWS, 2, 3)).astype(np.float16),
    }


class Up:
    """`idlewheel up` in a process of its own, and `idlewheel …` against it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    async def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "idlewheel", *map(str, arguments)],
            env={**os.environ, "IDLEWHEEL_URL": self.url},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture(params=["embedded", "mosquitto"])
async def up(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Up]:
    if request.param == "mosquitto":
        require_mosquitto()
    async with running_up(tmp_path, "--vehicles", "4", "--broker", request.param) as up:
        yield up


@asynccontextmanager
async def running_up(tmp_path: Path, *arguments: str, **environment: str) -> AsyncIterator[Up]:
    """`idlewheel up` until the block is left; its standard error goes to up.log."""
    place = f"127.0.0.1:{free_port()}"
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "idlewheel", "up", "--http", place, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        first = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), DEADLINE_S)
        assert f"http://{place}" in first, (tmp_path / "up.log").read_text()
        yield Up(process, f"http://{place}")
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        process.stdout.close()


async def test_any_model_gives_what_onnxruntime_gives_and_ctrl_c_leaves_nothing(up: Up, tmp_path: Path) -> None:
    model, rows, out = tmp_path / "m.onnx", tmp_path / "rows.npz", tmp_path / "out.npz"
    mixed_model(model)
    inputs = mixed_rows()
    np.savez(rows, **inputs)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(model)
    expected = session.run(None, {**inputs, "text": inputs["text"].astype(object)})

    done = await up.run("submit", model, rows, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(out) as outputs:
        assert sorted(outputs.files) == sorted(OUTPUTS)
        for name, array in zip(OUTPUTS, expected, strict=True):
            np.testing.assert_array_equal(outputs[name], np.asarray(array))

    vehicles = json.loads((await up.run("vehicles", "--json")).stdout)
    assert [vehicle["id"] for vehicle in vehicles] == ["car-01", "car-02", "car-03", "car-04"]
    (job,) = json.loads((await up.run("jobs", "--json")).stdout)
    assert (job["state"], job["rows"], job["rows_done"]) == ("done", ROWS, ROWS)
    await expect_statements_of(job, vehicles, up, tmp_path)

    children = descendants(up)
    up.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(asyncio.to_thread(up.process.wait), DEADLINE_S) == 0
    await expect_gone(children)


async def expect_statements_of(job: Any, vehicles: Any, up: Up, tmp_path: Path) -> None:
    """What owners are told adds up to what the job and the cars say, from whichever side it is asked."""
    receipts = json.loads((await up.run("owner", "statement", "--by", "receipt", "--json")).stdout)
    assert {receipt["owner"] for receipt in receipts} == {"operator"}
    assert {receipt["energy_micro_per_kwh"] for receipt in receipts} == {250_000}
    (by_job,) = json.loads((await up.run("owner", "statement", "--by", "job", "--job", job["id"], "--json")).stdout)
    (by_owner,) = json.loads((await up.run("owner", "statement", "--by", "owner", "--json")).stdout)
    by_car = json.loads((await up.run("owner", "statement", "--owner", "operator", "--json")).stdout)
    sums = ("rows", "compute_us", "energy_mwh", "energy_pay_micro", "fee_pay_micro")
    expected = {name: sum(receipt[name] for receipt in receipts) for name in sums}
    assert (by_job, by_owner) == ({"of": job["id"], **expected}, {"of": "operator", **expected})
    paid = expected["energy_pay_micro"] + expected["fee_pay_micro"]
    assert (job["rows_done"], job["energy_mwh"], job["pay_micro"]) == (expected["rows"], expected["energy_mwh"], paid)
    assert round(job["compute_ms"] * 1000) == expected["compute_us"]
    earned = {vehicle["id"]: vehicle["pay_micro"] for vehicle in vehicles if vehicle["rows_done"]}
    assert {line["of"]: line["energy_pay_micro"] + line["fee_pay_micro"] for line in by_car} == earned

    file = tmp_path / "receipts.csv"
    assert (await up.run("owner", "statement", "--by", "receipt", "--csv", file)).returncode == 0
    with file.open(encoding="utf-8", newline="") as lines:
        written = list(csv.DictReader(lines))
    assert [(row["job"], int(row["chunk"]), int(row["rows"])) for row in written] == [
        (receipt["job"], receipt["chunk"], receipt["rows"]) for receipt in receipts
    ]
    assert sum(int(row["pay_micro"]) for row in written) == paid
    shown = (await up.run("owner", "statement", "--by", "month")).stdout.splitlines()
    assert " ".join(shown[0].split()) == "MONTH ROWS COMPUTING h ENERGY Wh ENERGY COST FEE EARNED"
    assert shown[1].split()[-1] == f"{paid / 1e6:.6f}"
    wrong = await up.run("owner", "statement", "--month", "2026-13")
    assert (wrong.returncode, wrong.stderr) == (2, "idlewheel: `month` must look like 2026-11 and is '2026-13'\n")


async def test_killed_it_leaves_nothing_either(up: Up) -> None:
    children = descendants(up)
    up.process.kill()
    await expect_gone(children)


def descendants(up: Up) -> list[psutil.Process]:
    children = psutil.Process(up.process.pid).children(recursive=True)
    assert len(children) >= 3  # broker, coordinator, agents
    return children


async def expect_gone(processes: list[psutil.Process]) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, DEADLINE_S)
    assert alive == []


@pytest.mark.parametrize("up", ["embedded"], indirect=True)
async def test_bad_input_exits_2_with_one_line_that_names_it(up: Up, tmp_path: Path) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "out.npz"
    mixed_model(model)
    good = mixed_rows()
    (tmp_path / "not.onnx").write_bytes(b"not a model")
    cases = [
        (tmp_path / "not.onnx", good, "ONNX"),
        (model, {**good, "a": good["a"].astype(np.float64)}, "'a' is double"),
        (model, {**good, "a": good["a"][:, :3]}, "'a' has shape"),
        (model, {**good, "a": good["a"][:, :, None]}, "'a' has rank 3"),
        (model, {**good, "flag": good["flag"][:7]}, "differ in their number of rows"),
        (model, {name: array[:0] for name, array in good.items()}, "no rows"),
        (model, {name: array for name, array in good.items() if name != "i"}, "'i' is missing"),
        (model, {**good, "extra": good["i"]}, "no input 'extra'"),
        (model, {**good, "text": np.array([[1, 2]] * ROWS, dtype=object)}, "no strings"),
    ]
    for number, (path, rows, words) in enumerate(cases):
        file = tmp_path / f"{number}.npz"
        np.savez(file, **rows)  # type: ignore[arg-type]
        done = await up.run("submit", path, file, "-o", out)
        assert done.returncode == 2, (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    assert not out.exists()
    assert json.loads((await up.run("jobs", "--json")).stdout) == []


async def refused_up(ledger: str, directory: Path) -> str:
    """What `idlewheel up` says when it can't begin."""
    command = [sys.executable, "-m", "idlewheel", "up", "--http", f"127.0.0.1:{free_port()}", "--broker", "embedded"]
    command += ["--ledger", ledger, "--data", str(directory)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


async def test_a_ledger_in_postgres_is_taken_over_after_a_kill_and_every_refusal_says_what_to_do(
    tmp_path: Path, postgres_server: PostgresProcess
) -> None:
    ledger = postgres_server.make_ledger()
    arguments = ("--vehicles", "2", "--broker", "embedded", "--data", str(tmp_path / "data"), "--ledger", ledger)
    mixed_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", **mixed_rows())  # type: ignore[arg-type]
    async with running_up(tmp_path, *arguments) as up:
        done = await up.run("submit", tmp_path / "m.onnx", tmp_path / "rows.npz", "-o", tmp_path / "out.npz")
        assert done.returncode == 0, done.stderr
        assert "end that coordinator" in await refused_up(ledger, tmp_path / "other")
        (coordinator,) = [child for child in descendants(up) if "coordinator.daemon" in child.cmdline()]
        coordinator.kill()
        assert await asyncio.to_thread(up.process.wait) == 1
        assert "the coordinator was killed by SIGKILL" in (tmp_path / "up.log").read_text()
    async with running_up(tmp_path, *arguments) as up:
        (job,) = json.loads((await up.run("jobs", "--json")).stdout)
        assert (job["state"], job["rows_done"]) == ("done", ROWS)
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute("UPDATE ledger_version SET version = 999")
    assert "start the newer program again" in await refused_up(ledger, tmp_path / "data")
    nowhere = f"postgresql://idlewheel:hidden@127.0.0.1:{free_port()}/ledger"
    said = await refused_up(nowhere, tmp_path / "data")
    assert "see that PostgreSQL runs there and lets us in" in said
    assert "hidden" not in said
