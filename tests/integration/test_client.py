"""The Python client and the commands against a real server: results in order, dropped connections, clear errors."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleet_wire.api import JobView, VehicleView
from idlewheel import BadInput, Client, IdlewheelError, JobFailed, Refused, Unreachable
from idlewheel.brokers import free_port
from idlewheel.cli import main
from tests.integration.direct_desk import Served, double_model, mixed_model, serving

ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)
MIXED = {
    "number": np.array([[1.5, -2.5], [3.0, 4.0], [5.0, 6.9]]),
    "text": np.array(["grün", "", "a longer text"]),
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "blobs") as server:
        yield server


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Served]:
    """A server whose jobs go on only when the test says so."""
    with serving(tmp_path / "blobs", hold=True) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "double.onnx"
    path.write_bytes(double_model())
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, ROWS)
    return path


def run(*arguments: object) -> int:
    """Exit code of one command, run in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_results_are_in_row_order_and_can_be_written_to(client: Client, model: Path) -> None:
    result = client.submit(model, ROWS, chunk_rows=3).result(timeout_s=60)
    np.testing.assert_array_equal(result["y"], 2 * ROWS)
    result["y"] += 1


def test_pieces_arrive_each_row_once(client: Client) -> None:
    job = client.submit(double_model(), {"x": ROWS}, name="pieces", chunk_rows=3)
    y = np.full_like(ROWS, np.nan)
    seen: Counter[int] = Counter()
    for start, outputs in job:
        stop = start + len(outputs["y"])
        y[start:stop] = outputs["y"]
        seen.update(range(start, stop))
    np.testing.assert_array_equal(y, 2 * ROWS)
    assert seen == Counter(range(20))
    assert (job.status().name, job.status().state) == ("pieces", "done")


@pytest.mark.parametrize("cut_after", [0, 1, 2])
def test_a_stream_that_breaks_goes_on_where_it_was(served: Served, client: Client, cut_after: int) -> None:
    job = client.submit(double_model(), ROWS, chunk_rows=3)
    served.desk.cut_next_stream_after = cut_after
    starts = Counter(start for start, _ in job.rows())
    assert starts == Counter(range(0, 20, 3))
    assert served.desk.cut_next_stream_after is None


def test_rows_are_seen_while_the_job_runs(held: Served) -> None:
    with Client(held.url) as client:
        job = client.submit(double_model(), ROWS, chunk_rows=10)
        arriving = iter(job)
        assert job.status().state == "running"
        with pytest.raises(TimeoutError, match="0 of 20 rows"):
            job.result(timeout_s=0.05)
        held.show(job.id, 1)
        assert next(arriving)[0] == 10


def test_a_blob_that_is_there_is_not_sent_again(client: Client, model: Path, rows: Path) -> None:
    sent: list[str] = []
    client._exchange._http.event_hooks = {"request": [lambda request: sent.append(request.method)]}
    client.submit(model, rows)
    assert sent == ["HEAD", "PUT", "POST", "HEAD", "PUT", "POST"]
    sent.clear()
    client.submit(model, rows)
    assert sent == ["HEAD", "POST", "HEAD", "POST"]


def test_types_names_and_text_come_back(client: Client) -> None:
    result = client.submit(mixed_model(), {**MIXED, "text": np.char.encode(MIXED["text"], "utf-8")}).result()
    assert result["file"].tolist() == MIXED["text"].tolist()
    np.testing.assert_array_equal(result["a/b"], MIXED["number"].astype(np.int64), strict=True)
    assert not result["args"].any()


def test_jobs_vehicles_and_health(client: Client) -> None:
    job = client.submit(double_model(), ROWS)
    assert [view.id for view in client.jobs()] == [job.id]
    assert [view.id for view in client.vehicles()] == ["car-1", "car-2"]
    assert client.vehicle("car-2").reason == "not_plugged_in: it is not plugged in"
    assert client.health().fleet == "test"


def test_jobs_that_fail_or_are_cancelled_say_so(held: Served) -> None:
    with Client(held.url) as client:
        job = client.submit(double_model(), ROWS)
        held.fail(job.id, "row 3 broke every car")
        for fetch in (job.result, lambda: list(job)):
            with pytest.raises(JobFailed, match="row 3 broke every car"):
                fetch()
        other = client.submit(double_model(), ROWS + 1)
        assert other.cancel().state == "cancelled"
        with pytest.raises(JobFailed, match="was cancelled"):
            other.result()


def test_a_partial_result_has_what_is_there_and_names_what_failed(held: Served) -> None:
    with Client(held.url) as client:
        job = client.submit(double_model(), ROWS, chunk_rows=5)
        explanation = job.why()
        assert (explanation.rows_waiting, explanation.cars, explanation.share) == (20, {"busy": 1}, 1.0)
        held.show(job.id, 1)
        held.fail(job.id, "row 3 failed on 2 attempts: no")
        result = job.result(partial=True)["y"]
        np.testing.assert_array_equal(result[10:], 2 * ROWS[10:])
        assert np.isnan(result[:10]).all()
        assert [(row.row, row.attempts) for row in job.failures()] == [(3, 2)]
        with pytest.raises(Refused, match="waits for nothing"):
            job.why()


def test_the_command_line_writes_what_is_there_when_told_to(
    held: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(held.url) as client:
        job = client.submit(double_model(), ROWS, chunk_rows=5)
    assert run("why", "--job", job.id, "--url", held.url) == 0
    assert "1 car busy: they take more rows" in capsys.readouterr().out
    held.show(job.id, 1)
    held.fail(job.id, "row 3 failed on 2 attempts: no")
    out = tmp_path / "out.npz"
    assert run("result", job.id, "-o", out, "--url", held.url) == 1
    assert not out.exists()
    capsys.readouterr()
    assert run("result", job.id, "-o", out, "--partial", "--url", held.url) == 0
    assert capsys.readouterr().err.splitlines() == [
        "10 of 20 rows are missing",
        "row 3 failed: row 3 failed on 2 attempts: no",
    ]
    np.testing.assert_array_equal(np.load(out)["y"][10:], 2 * ROWS[10:])
    assert run("why", "--job", job.id, "--json", "--url", held.url) == 0
    assert '"state": "failed"' in capsys.readouterr().out


def test_refusals_carry_their_code(client: Client) -> None:
    actions: list[tuple[Callable[[], object], str]] = [
        (lambda: client.submit(b"no model", ROWS), "bad_model"),
        (lambda: client.submit(double_model(), {"z": ROWS}), "wrong_inputs"),
        (lambda: client.job("nothing").result(), "job_unknown"),
        (lambda: list(client.job("../vehicles")), "not_found"),
        (lambda: client.vehicle("nobody"), "vehicle_unknown"),
    ]
    for action, code in actions:
        with pytest.raises(Refused) as refused:
            action()
        assert refused.value.code == code
        assert "\n" not in str(refused.value)


def test_what_cannot_be_sent_is_said_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"2 inputs \(number, text\)"):
        client.submit(mixed_model(), ROWS)
    with pytest.raises(BadInput, match=r"nothing\.onnx cannot be read: No such file"):
        client.submit(tmp_path / "nothing.onnx", ROWS)
    with pytest.raises(BadInput, match="datetime64"):
        client.submit(double_model(), np.array(["2026-01-01"], dtype="datetime64[D]"))
    with pytest.raises(BadInput, match="object array"):
        client.submit(double_model(), np.array([{}, {}]))
    for terms in ({"priority": 101}, {"chunk_rows": 0}, {"deadline_s": -1.0}, {"deadline_s": float("nan")}):
        with pytest.raises(BadInput, match="terms"):
            client.submit(double_model(), ROWS, **terms)
    assert client.jobs() == []


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://[::", "127.0.0.1:80"])
def test_a_wrong_address_is_said(url: str) -> None:
    with pytest.raises(BadInput, match="address"):
        Client(url)


def test_no_coordinator_and_something_else_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLEWHEEL_URL", f"http://127.0.0.1:{free_port()}")
    with Client(patience_s=0.05) as client:
        with pytest.raises(Unreachable, match="idlewheel up"):
            client.jobs()
        with pytest.raises(Unreachable):
            list(client.job("job-1"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
            pytest.raises(Unreachable, match="is no"),
        ):
            client.jobs()
        thread.join()
    assert issubclass(Unreachable, IdlewheelError)


def test_waiting_outlasts_a_coordinator_that_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    states: list[str] = []
    with Client(f"http://127.0.0.1:{port}", patience_s=30) as client:
        with serving(tmp_path / "blobs", port=port, hold=True) as first:
            job = client.submit(double_model(), ROWS)
        waiting = threading.Thread(target=lambda: states.append(job.wait().state))
        waiting.start()
        with serving(tmp_path / "blobs", port=port, desk=first.desk) as second:
            second.show(job.id, 100)
            waiting.join(60)
    assert states == ["done"]


def test_submit_writes_what_the_model_gives(served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mixed.onnx").write_bytes(mixed_model())
    np.savez(tmp_path / "rows.npz", number=MIXED["number"], text=MIXED["text"])
    out = tmp_path / "out.npz"
    assert run("submit", tmp_path / "mixed.onnx", tmp_path / "rows.npz", "-o", out, "--url", served.url) == 0
    with np.load(out) as written:
        assert written.files == ["file", "a/b", "args"]
        np.testing.assert_array_equal(written["file"], MIXED["text"])
        np.testing.assert_array_equal(written["a/b"], MIXED["number"].astype(np.int64), strict=True)
    assert capfd.readouterr() == ("", "")


def test_the_commands_by_hand(
    held: Served,
    model: Path,
    rows: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IDLEWHEEL_URL", held.url)
    assert run("submit", model, rows, "--no-wait", "--name", "[red]night") == 0
    job = capfd.readouterr().out.strip()
    assert run("jobs", "--json") == 0
    assert [view.id for view in msgspec.json.decode(capfd.readouterr().out, type=list[JobView])] == [job]
    assert run("jobs") == 0
    table = capfd.readouterr().out
    assert "[red]night" in table
    assert "\x1b" not in table
    assert run("vehicles", "--json") == 0
    assert len(msgspec.json.decode(capfd.readouterr().out, type=list[VehicleView])) == 2
    assert run("vehicles") == 0
    assert "not_plugged_in: it is not plugged in" in capfd.readouterr().out
    assert run("why", "car-2") == 0
    assert capfd.readouterr().out == (
        "car-2 gets no work: it is not plugged in (not_plugged_in)\n  what helps: plug it in\n"
    )
    assert run("why", "--job", job) == 0
    assert capfd.readouterr().out.startswith(f"job {job} runs: 0 of 20 rows are done, 0 are with cars, 20 wait\n")
    assert run("status") == 0
    assert capfd.readouterr().out.startswith("fleet test: ok, broker connected\n")
    held.show(job, 100)
    assert run("result", job, "-o", tmp_path / "out.npy", "--json") == 0
    assert msgspec.json.decode(capfd.readouterr().out, type=JobView).state == "done"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), 2 * ROWS)
    assert run("submit", model, rows, "--no-wait", "--json") == 0
    other = msgspec.json.decode(capfd.readouterr().out, type=JobView).id
    assert run("cancel", other) == 0
    assert "was cancelled" in capfd.readouterr().out
    assert run("result", other, "-o", tmp_path / "out.npy") == 1
    assert capfd.readouterr().err.splitlines() == [
        f"idlewheel: job {other} was cancelled",
        f"what is there of it: idlewheel result {other} -o OUT.npz --partial",
    ]


def test_bad_input_ends_with_2_and_one_line(
    served: Served, tmp_path: Path, model: Path, rows: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    np.save(tmp_path / "wide.npy", np.zeros((4, 9), np.float32))
    np.savez(tmp_path / "named.npz", z=ROWS)
    out = tmp_path / "out.npz"
    for arguments in (
        ["submit", tmp_path / "text.onnx", rows, "-o", out],
        ["submit", tmp_path / "missing.onnx", rows, "-o", out],
        ["submit", model, model, "-o", out],
        ["submit", model, tmp_path / "wide.npy", "-o", out],
        ["submit", model, tmp_path / "named.npz", "-o", out],
        ["submit", model, rows, "-o", tmp_path / "out.txt"],
        ["submit", model, rows, "-o", out, "--priority", "1000"],
        ["submit", model, rows],
        ["result", "nothing", "-o", out],
        ["why", "nobody"],
    ):
        code = run(*arguments, "--url", served.url)
        said = capfd.readouterr()
        assert (code, said.out, said.err.count("\n")) == (2, "", 1), (arguments, said.err)
        assert said.err.startswith("idlewheel: ")
        assert not out.exists()


def test_ctrl_c_leaves_the_job_and_says_how_to_fetch_it(held: Served, tmp_path: Path, model: Path, rows: Path) -> None:
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "idlewheel", "submit", model, rows, "-o", out, "--url", held.url]
    with subprocess.Popen(
        [str(part) for part in command],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - ignored in a background job
    ) as process:
        with Client(held.url) as client:
            deadline = threading.Event()
            while not client.jobs():
                assert process.poll() is None
                deadline.wait(0.02)
            job = client.jobs()[0]
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert f"idlewheel result {job.id} -o {out}" in said
    assert "Traceback" not in said
    assert held.desk._jobs[job.id].view.state == "running"


def test_receipts_are_read_to_their_end_in_pages(served: Served) -> None:
    with Client(served.url) as client:
        assert [receipt.chunk for receipt in client.receipts()] == [0, 1, 2]
        (line,) = client.statement("month", owner="ada")
    assert (line.of[:31], line.pay_micro) == ("month ReceiptFilter(owner='ada'", 9)


def test_progress_is_shown_on_a_terminal_and_nothing_on_standard_output(
    served: Served, tmp_path: Path, model: Path, rows: Path
) -> None:
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "idlewheel", "submit", model, rows, "-o", out, "--url", served.url]
    terminal, end = os.openpty()
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while piece := os.read(terminal, 4096):
                shown += piece
        os.close(terminal)
        assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0
    assert b"20/20" in shown
    assert b"1 car, done" in shown
