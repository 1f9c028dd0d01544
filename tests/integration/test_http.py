"""The HTTP interface on a real server: routes, ranges, streams, and a Problem for everything that is wrong."""

import asyncio
import hashlib
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from coordinator.adapters.http import HttpLimits, build_app, open_listener, serve
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.errors import StoreUnavailable
from fleet_wire.api import BlobView, HealthView, JobView, ModelView, Problem, RowsFrame, VehicleView
from fleet_wire.bundle import decode_bundle, encode_bundle
from tests.integration.direct_desk import DirectDesk, Served, double_model, serving

BLOB = bytes(range(256)) * 8
DIGEST = hashlib.sha256(BLOB).hexdigest()
LIMITS = HttpLimits(json_bytes=4096, blob_bytes=1 << 20, heartbeat_s=0.1)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "blobs", hold=True, limits=LIMITS) as server:
        yield server


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
        yield client


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def problem(answer: httpx.Response, status: int, code: str) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    read = msgspec.json.decode(answer.content, type=Problem)
    assert (answer.status_code, read.status, read.code) == (status, status, code), answer.text
    assert read.detail
    assert "\n" not in read.detail
    assert "Traceback" not in read.detail
    return read


def put(http: httpx.Client, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    assert http.put(f"/v1/blobs/{digest}", content=data).status_code == 200
    return digest


def submit(http: httpx.Client, rows: int = 20) -> JobView:
    model = put(http, double_model())
    assert http.post("/v1/models", json={"digest": model}).status_code == 200
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    answer = http.post("/v1/jobs", json={"model": model, "inputs": put(http, encode_bundle({"x": x}))})
    assert answer.status_code == 201
    view = msgspec.json.decode(answer.content, type=JobView)
    assert answer.headers["location"] == f"/v1/jobs/{view.id}"
    return view


def test_a_blob_is_kept_and_found_again(http: httpx.Client) -> None:
    assert http.head(f"/v1/blobs/{DIGEST}").status_code == 404
    answer = http.put(f"/v1/blobs/{DIGEST}", content=iter([BLOB[:1000], BLOB[1000:]]))
    assert msgspec.json.decode(answer.content, type=BlobView) == BlobView(DIGEST, len(BLOB))
    head = http.head(f"/v1/blobs/{DIGEST}")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(BLOB)), b"")
    whole = http.get(f"/v1/blobs/{DIGEST}")
    assert (whole.status_code, whole.content) == (200, BLOB)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("10-19", 10, 20),
        ("2000-", 2000, 2048),
        ("2000-99999", 2000, 2048),
        ("-5", 2043, 2048),
        ("-9999", 0, 2048),
    ],
)
def test_one_range_of_a_blob(http: httpx.Client, asked: str, start: int, stop: int) -> None:
    put(http, BLOB)
    answer = http.get(f"/v1/blobs/{DIGEST}", headers={"range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (206, BLOB[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(BLOB)}"


@pytest.mark.parametrize("asked", ["2048-", "5000-6000", "-0"])
def test_a_range_outside_is_refused(http: httpx.Client, asked: str) -> None:
    put(http, BLOB)
    answer = http.get(f"/v1/blobs/{DIGEST}", headers={"range": f"bytes={asked}"})
    problem(answer, 416, "bad_range")
    assert answer.headers["content-range"] == f"bytes */{len(BLOB)}"


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=5-2", "bytes=a-b", "rows=1-2", "bytes=1-2,4-5", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_that_makes_no_sense_is_ignored(http: httpx.Client, asked: str) -> None:
    put(http, BLOB)
    answer = http.get(f"/v1/blobs/{DIGEST}", headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, BLOB)


def test_an_empty_blob(http: httpx.Client) -> None:
    digest = put(http, b"")
    answer = http.get(f"/v1/blobs/{digest}")
    assert (answer.status_code, answer.content) == (200, b"")


def test_wrong_blobs_are_refused_and_counted(served: Served, http: httpx.Client) -> None:
    problem(http.put(f"/v1/blobs/{DIGEST}", content=b"else"), 422, "digest_mismatch")
    problem(http.put("/v1/blobs/..%2f..%2fetc", content=b"x"), 404, "not_found")
    problem(http.put("/v1/blobs/ABC", content=b"x"), 422, "bad_digest")
    problem(http.put(f"/v1/blobs/{DIGEST}", content=bytes(LIMITS.blob_bytes + 1)), 413, "too_large")
    in_pieces = iter([bytes(LIMITS.blob_bytes), b"one more"])
    problem(http.put(f"/v1/blobs/{DIGEST}", content=in_pieces), 413, "too_large")
    assert http.head(f"/v1/blobs/{DIGEST}").status_code == 404
    assert served.refusals == Counter(digest_mismatch=1, not_found=1, bad_digest=1, too_large=2)


def test_an_upload_that_breaks_off_leaves_nothing(served: Served, http: httpx.Client) -> None:
    address = served.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(f"PUT /v1/blobs/{DIGEST} HTTP/1.1\r\nhost: x\r\ncontent-length: 2048\r\n\r\n".encode())
        connection.sendall(BLOB[:1000])
    until(lambda: served.refusals["client_gone"] == 1)
    assert http.head(f"/v1/blobs/{DIGEST}").status_code == 404


def test_a_job_from_submission_to_result(served: Served, http: httpx.Client) -> None:
    view = submit(http)
    problem(http.get(f"/v1/jobs/{view.id}/result"), 409, "not_done")
    served.show(view.id, 100)
    until(lambda: http.get(f"/v1/jobs/{view.id}").json()["state"] == "done")
    assert [job.id for job in msgspec.json.decode(http.get("/v1/jobs").content, type=list[JobView])] == [view.id]
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.testing.assert_array_equal(decode_bundle(http.get(f"/v1/jobs/{view.id}/result").content)["y"], 2 * x)


def test_input_rows_for_vehicles_can_be_resumed(http: httpx.Client) -> None:
    path = f"/v1/jobs/{submit(http).id}/inputs"
    whole = http.get(f"{path}/2-4").content
    np.testing.assert_array_equal(decode_bundle(whole)["x"], [[6, 7, 8], [9, 10, 11]])
    rest = http.get(f"{path}/2-4", headers={"range": "bytes=10-"})
    assert (rest.status_code, rest.content) == (206, whole[10:])
    for span in ("2-99", "4-2", "2-2", "a-b", "2", "1-" + "9" * 5000):
        problem(http.get(f"{path}/{span}"), 404, "rows_unknown")


def frames(stream: bytes) -> list[RowsFrame]:
    found = []
    while stream:
        end = 4 + int.from_bytes(stream[:4], "little")
        found.append(msgspec.msgpack.decode(stream[4:end], type=RowsFrame))
        stream = stream[end:]
    return found


def test_the_stream_of_rows_ends_with_the_job_and_resumes_at_a_cursor(served: Served, http: httpx.Client) -> None:
    job = submit(http).id
    served.show(job, 100)
    whole = frames(http.get(f"/v1/jobs/{job}/rows").content)
    assert [frame.after for frame in whole] == [1, 2, 3, 3]
    assert [frame.state for frame in whole] == [None, None, None, "done"]
    assert frames(http.get(f"/v1/jobs/{job}/rows?after=2").content) == whole[2:]


def test_a_silent_stream_shows_that_it_lives_and_notices_when_nobody_listens(
    served: Served, http: httpx.Client
) -> None:
    job = submit(http).id
    served.show(job, 1)
    with http.stream("GET", f"/v1/jobs/{job}/rows") as answer:
        received = b""
        for piece in answer.iter_raw():
            received += piece
            assert served.desk.streams_open == 1
            if len(frames(received)) >= 3:
                break
    assert [(frame.after, bool(frame.spans)) for frame in frames(received)][:3] == [(1, True), (1, False), (1, False)]
    until(lambda: served.desk.streams_open == 0)


def test_a_cancelled_job_ends_its_stream(http: httpx.Client) -> None:
    job = submit(http).id
    assert http.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert [frame.state for frame in frames(http.get(f"/v1/jobs/{job}/rows").content)] == ["cancelled"]


def test_statements_are_asked_for_by_name_and_month(http: httpx.Client) -> None:
    lines = http.get("/v1/statements?by=owner&vehicle=car-1&month=2026-11").json()
    asked = "ReceiptFilter(owner=None, vehicle='car-1', job=None, month=202611)"
    assert [line["of"] for line in lines] == [f"owner {asked}"]
    for query in ("by=region", "month=2026-11-01", "month=2026-00", "owner=a%20b", "vehicle=%0A", "job="):
        problem(http.get(f"/v1/statements?{query}"), 422, "bad_query")
    for after in ("", "5", "j.-1", "j.x", "j.1%0A"):
        problem(http.get(f"/v1/receipts?after={after}"), 422, "bad_query")


def test_vehicles_and_health(http: httpx.Client) -> None:
    views = msgspec.json.decode(http.get("/v1/vehicles").content, type=list[VehicleView])
    assert [view.id for view in views] == ["car-1", "car-2"]
    assert msgspec.json.decode(http.get("/v1/vehicles/car-2").content, type=VehicleView) == views[1]
    assert msgspec.json.decode(http.get("/v1/health").content, type=HealthView).status == "ok"
    assert (http.get("/healthz").status_code, http.get("/healthz").text) == (200, "ok\n")


def test_models_are_described_or_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/models", json={"digest": put(http, double_model())})
    assert msgspec.json.decode(answer.content, type=ModelView).inputs[0].shape == [None, 3]
    problem(http.post("/v1/models", json={"digest": put(http, b"no model")}), 422, "bad_model")
    problem(http.post("/v1/models", json={"digest": "0" * 64}), 404, "blob_missing")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"\xff\xfe", 400, "bad_json"),
        (b"[" * 4000, 422, "invalid"),
        (b'{"deep":' + b"[" * 4000, 422, "invalid"),
        (b'{"model": "\xff"}', 400, "bad_json"),
        (b"{}", 422, "invalid"),
        (b"[]", 422, "invalid"),
        (b'{"model": "zz", "inputs": "zz"}', 422, "invalid"),
        (msgspec.json.encode({"model": "0" * 64, "inputs": "0" * 64, "nmae": "x"}), 422, "invalid"),
        (msgspec.json.encode({"model": "0" * 64, "inputs": "0" * 64, "terms": {"prio": 1}}), 422, "invalid"),
        (msgspec.json.encode({"model": "0" * 64, "inputs": "0" * 64, "terms": {"priority": 101}}), 422, "invalid"),
        (msgspec.json.encode({"model": "0" * 64, "inputs": "0" * 64}), 404, "model_unknown"),
        (b" " * 5000, 413, "too_large"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(
    served: Served, http: httpx.Client, body: bytes, status: int, code: str
) -> None:
    problem(http.post("/v1/jobs", content=body), status, code)
    assert served.refusals == Counter({code: 1})


@pytest.mark.parametrize("path", ["/", "/v2/jobs", "/v1/jobs/a/b/c", "/v1/blobs/"])
def test_unknown_paths(http: httpx.Client, path: str) -> None:
    problem(http.get(path), 404, "not_found")


def test_what_is_not_there(http: httpx.Client) -> None:
    problem(http.patch("/v1/jobs"), 405, "method_not_allowed")
    problem(http.get("/v1/jobs/job-9"), 404, "job_unknown")
    problem(http.get("/v1/jobs/%00"), 404, "job_unknown")
    problem(http.get("/v1/jobs/job-9/rows"), 404, "job_unknown")
    problem(http.get("/v1/jobs/job-9/rows?after=-1"), 422, "bad_query")
    problem(http.get("/v1/jobs/job-9/result"), 404, "job_unknown")
    problem(http.get("/v1/jobs/job-9/inputs/0-1"), 404, "job_unknown")
    problem(http.delete("/v1/jobs/job-9"), 404, "job_unknown")
    problem(http.get("/v1/vehicles/nobody"), 404, "vehicle_unknown")


def test_garbage_never_makes_the_server_fail(http: httpx.Client) -> None:
    chance = random.Random(7)
    job = submit(http).id
    pieces = [
        "v1",
        "jobs",
        job,
        "blobs",
        DIGEST,
        "rows",
        "result",
        "inputs",
        "0-1",
        "models",
        "vehicles",
        "%ff",
        "%2e%2e",
        "",
    ]
    whole = msgspec.json.encode(
        {"model": "0" * 64, "inputs": "0" * 64, "terms": {"priority": 1, "deadline_s": 2.5}, "name": "\u00e9"}
    )
    for _ in range(300):
        path = "/" + "/".join(chance.choices(pieces, k=chance.randint(0, 4)))
        if path.endswith("/rows"):
            path += "x"  # this one would rightly never end
        if chance.random() < 0.5:
            path = chance.choice(["/v1/jobs", "/v1/models", f"/v1/blobs/{DIGEST}"])
        body = bytearray(whole[: chance.randint(0, len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randint(0, 4)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        headers = {
            "content-type": chance.choice(["application/json", "text/html", "\x7f"]),
            "range": chance.choice(["bytes=0-", "bytes=\xb2-", "bytes==", "bytes=-1", ""]),
            "accept-encoding": chance.choice(["gzip", "*;q=x"]),
        }
        method = chance.choice(["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"])
        raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = http.request(method, path, content=bytes(body), headers=raw_headers)
        assert answer.status_code < 500, (method, path, bytes(body), answer.text)
        if answer.status_code >= 400 and method != "HEAD":
            msgspec.json.decode(answer.content, type=Problem)


class _BrokenDesk(DirectDesk):
    async def jobs(self) -> list[JobView]:
        raise StoreUnavailable("ledger_unavailable", "the disk is full: make room")

    def health(self) -> HealthView:
        raise ZeroDivisionError("a mistake of ours")


async def test_our_own_failures_are_said_without_their_insides_and_cancelling_ends_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = ObjectBlobs.in_folder(tmp_path / "blobs")
    desk = _BrokenDesk(blobs, hold=True)
    refusals: Counter[str] = Counter()
    listener = open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = asyncio.create_task(serve(build_app(desk, blobs, refusals, list), listener))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        problem(await http.get("/v1/jobs"), 503, "ledger_unavailable")
        problem(await http.get("/v1/health"), 500, "internal")
        assert "a mistake of ours" in caplog.text
        caplog.clear()
        model, x = double_model(), encode_bundle({"x": np.ones((4, 3), np.float32)})
        for data in (model, x):
            await http.put(f"/v1/blobs/{hashlib.sha256(data).hexdigest()}", content=data)
        digests = [hashlib.sha256(data).hexdigest() for data in (model, x)]
        await http.post("/v1/models", json={"digest": digests[0]})
        job = (await http.post("/v1/jobs", json={"model": digests[0], "inputs": digests[1]})).json()["id"]
        async with http.stream("GET", f"/v1/jobs/{job}/rows"):
            await asyncio.to_thread(until, lambda: desk.streams_open == 1)
            server.cancel()
            async with asyncio.timeout(60):
                await asyncio.wait({server})
    assert server.cancelled()
    assert desk.streams_open == 0
    assert refusals == Counter(ledger_unavailable=1, internal=1)
    assert caplog.text == ""
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}  # type: ignore[union-attr]


def test_a_port_that_is_taken_is_said_at_once() -> None:
    with open_listener("127.0.0.1", 0) as listener, pytest.raises(OSError):
        open_listener("127.0.0.1", listener.getsockname()[1])
