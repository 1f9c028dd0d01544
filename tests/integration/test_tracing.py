"""One trace from the client over the coordinator to the car and back, on a real broker, seen by OpenTelemetry's SDK."""

import asyncio
import contextlib
import gzip
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

from coordinator.daemon import run_coordinator
from coordinator.settings import CoordinatorSettings
from fleet_link import Tracer, open_spans
from fleet_link.otel import OtelSpans
from fleet_wire.api import JobView
from fleet_wire.bundle import encode_bundle
from idlewheel import BadInput, Client
from idlewheel.brokers import Broker, free_port
from tests.integration.direct_desk import double_model
from tests.integration.test_agent_end_to_end import Car
from vehicle_agent.daemon import run_agent
from vehicle_agent.settings import AgentSettings

DEADLINE_S = 60.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "00f067aa0ba902b7"
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


class Traced:
    """A coordinator and a car in this process, whose spans are all kept."""

    def __init__(self, http: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
        self.http = http
        self._exporter = exporter

    async def job(self, rows: int, headers: dict[str, str]) -> JobView:
        """Submit and wait until it has ended."""
        x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        model, inputs = await self._put(double_model()), await self._put(encode_bundle({"x": x}))
        await self.http.post("/v1/models", json={"digest": model})
        answer = await self.http.post("/v1/jobs", json={"model": model, "inputs": inputs}, headers=headers)
        assert answer.status_code == 201, answer.text
        view = msgspec.json.decode(answer.content, type=JobView)
        async with asyncio.timeout(DEADLINE_S):
            while view.state == "running":
                await asyncio.sleep(0.02)
                view = msgspec.json.decode((await self.http.get(f"/v1/jobs/{view.id}")).content, type=JobView)
        assert (view.state, view.rows_done) == ("done", rows)
        return view

    async def _put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        await self.http.put(f"/v1/blobs/{digest}", content=data)
        return digest

    async def spans(self, job: str, wanted: set[str]) -> list[ReadableSpan]:
        """The spans of a job, once those wanted are there."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [
                    span
                    for span in self._exporter.get_finished_spans()
                    if span.attributes is not None and span.attributes["idlewheel.job"] == job
                ]
                if {span.name for span in found} >= wanted:
                    return found
                await asyncio.sleep(0.02)

    async def parent_of_submit(self, job: str) -> tuple[str, str, str] | None:
        """Trace id, span id and state of the span that a job was submitted in."""
        (submit,) = (span for span in await self.spans(job, {"submit"}) if span.name == "submit")
        if submit.parent is None:
            return None
        trace_id, span_id = format(submit.parent.trace_id, "032x"), format(submit.parent.span_id, "016x")
        return trace_id, span_id, submit.parent.trace_state.to_header()


class Collector(ThreadingHTTPServer):
    """Takes what an exporter posts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.posted: list[tuple[str, bytes]] = []


class _Posted(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, Collector)
        self.server.posted.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def traced(broker: Broker, tmp_path: Path) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    spans = OtelSpans("test", SimpleSpanProcessor(exporter))
    port = free_port()
    fleet_policy = tmp_path / "fleet-policy.json"
    fleet_policy.write_text('{"owner": "operator", "purposes": ["general"]}')
    coordinator = CoordinatorSettings(
        fleet="test",
        broker_port=broker.port,
        http_port=port,
        data=tmp_path / "coordinator",
        fleet_policy=fleet_policy,
    )
    agent = AgentSettings(fleet="test", vehicle="car-1", data_dir=tmp_path / "car", broker_port=broker.port, threads=1)
    running = [
        asyncio.create_task(run_coordinator(coordinator, random.Random(1), spans)),
        asyncio.create_task(run_agent(agent, Car(), random=random.Random(2), spans=spans)),
    ]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as http:
            await _until_serving(http)
            yield Traced(http, exporter)
    finally:
        for task in reversed(running):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _until_serving(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await http.get("/v1/health")
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_one_trace_leads_from_the_client_to_the_car_and_back(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", "tracestate": "vendor=opaque"}
    view = await traced.job(40, headers)
    wanted = {"submit", "assign", "task", "run", "rows", "accept"}
    spans = await traced.spans(view.id, wanted)
    assert {span.name for span in spans} == wanted
    assert {format(span.context.trace_id, "032x") for span in spans if span.context} == {TRACE}
    assert all(span.start_time and span.end_time and span.start_time <= span.end_time for span in spans)
    by_id = {format(span.context.span_id, "016x"): span for span in spans if span.context}
    assert len(by_id) == len(spans)
    parents = {
        (span.name, by_id[format(span.parent.span_id, "016x")].name)
        for span in spans
        if span.parent and span.name != "submit"
    }
    assert parents == {("assign", "submit"), ("task", "assign"), ("run", "task"), ("rows", "task"), ("accept", "rows")}
    (submit,) = (span for span in spans if span.name == "submit")
    assert submit.parent is not None
    assert format(submit.parent.span_id, "016x") == CLIENT_SPAN
    assert all(span.context and span.context.trace_state.to_header() == "vendor=opaque" for span in spans)


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_a_trace_begins_here_when_the_client_names_none_or_a_malformed_one(traced: Traced) -> None:
    ids = set()
    for headers in ({}, {"traceparent": "00-not-a-trace", "tracestate": "vendor=opaque"}):
        view = await traced.job(4, headers)
        spans = await traced.spans(view.id, {"submit", "accept"})
        ids |= {span.context.trace_id for span in spans if span.context}
        (submit,) = (span for span in spans if span.name == "submit")
        assert submit.parent is None
    assert len(ids) == 2
    health = msgspec.json.decode((await traced.http.get("/v1/health")).content)
    assert health["refusals"]["trace_malformed"] == 1


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_the_client_submits_in_the_trace_of_the_current_span_or_in_the_one_it_is_given(traced: Traced) -> None:
    state = TraceState([("vendor", "opaque")])
    current = SpanContext(int(TRACE, 16), int(CLIENT_SPAN, 16), False, TraceFlags(TraceFlags.SAMPLED), state)
    given = {"traceparent": f"00-{OTHER_TRACE}-{CLIENT_SPAN}-01", "tracestate": "other=state", "baggage": "name=Ann"}

    def submit(trace: dict[str, str] | None) -> str:
        with Client(str(traced.http.base_url)) as client:
            return client.submit(double_model(), ROWS, trace=trace).id

    with use_span(NonRecordingSpan(current)):
        jobs = [await asyncio.to_thread(submit, trace) for trace in (None, given, {})]
    jobs.append(await asyncio.to_thread(submit, None))
    parents = [await traced.parent_of_submit(job) for job in jobs]
    assert parents == [(TRACE, CLIENT_SPAN, "vendor=opaque"), (OTHER_TRACE, CLIENT_SPAN, "other=state"), None, None]


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_the_command_submits_in_the_trace_that_its_environment_names(traced: Traced, tmp_path: Path) -> None:
    (tmp_path / "double.onnx").write_bytes(double_model())
    np.save(tmp_path / "rows.npy", ROWS)
    command = [sys.executable, "-m", "idlewheel", "submit", "double.onnx", "rows.npy", "--no-wait", "--url"]

    async def submit(variables: dict[str, str]) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            *command,
            str(traced.http.base_url),
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err
        return out.decode().strip(), err.decode()

    named, said = await submit({"TRACEPARENT": f"00-{TRACE}-{CLIENT_SPAN}-01", "TRACESTATE": "vendor=opaque"})
    assert said == ""
    malformed, said = await submit({"TRACEPARENT": "00-not-a-trace"})
    assert "TRACEPARENT is ignored" in said
    assert "00-not-a-trace" in said
    assert await traced.parent_of_submit(named) == (TRACE, CLIENT_SPAN, "vendor=opaque")
    assert await traced.parent_of_submit(malformed) is None


async def test_a_malformed_trace_is_bad_input() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(BadInput, match="malformed traceparent: 'x'"):
        client.submit(double_model(), ROWS, trace={"traceparent": "x"})


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_what_the_client_does_not_sample_is_not_recorded(traced: Traced) -> None:
    quiet = await traced.job(4, {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-00"})
    loud = await traced.job(4, {})
    assert await traced.spans(loud.id, {"accept"})
    assert await traced.spans(quiet.id, set()) == []


@pytest.mark.parametrize(
    ("environment", "is_open"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
    ],
)
def test_spans_are_exported_where_the_environment_asks_for_it(environment: dict[str, str], *, is_open: bool) -> None:
    spans = open_spans("test", environment)
    assert (spans is not None) == is_open
    if spans is not None:
        spans.close()


def test_nothing_of_opentelemetry_is_imported_unless_it_is_configured() -> None:
    program = (
        "import sys, coordinator.daemon, idlewheel.agent_host, idlewheel.client; from fleet_link import open_spans;"
        "from idlewheel.traces import current_trace;"
        "assert open_spans('test', {}) is None; assert current_trace() == {};"
        "print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    said = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, b"idlewheel-test"),
        ({"OTEL_SERVICE_NAME": "ours"}, b"ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, b"theirs"),
    ],
)
def test_spans_arrive_at_a_collector(
    variables: dict[str, str], service: bytes, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **variables}.items():
        monkeypatch.setenv(name, value)
    spans = open_spans("idlewheel-test", os.environ)
    assert spans is not None
    tracer = Tracer(random.Random(1), spans)
    context = tracer.begin(None)
    tracer.end("submit", context, None, 1_000, 2_000, job="job-1")
    spans.close()
    ((path, body),) = collector.posted
    assert path == "/v1/traces"
    for part in (service, b"submit", b"idlewheel.job", b"job-1", bytes.fromhex(context.trace_id)):
        assert part in body


def test_a_trace_that_begins_here_is_sampled_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    exporter = InMemorySpanExporter()
    tracer = Tracer(random.Random(1), OtelSpans("test", SimpleSpanProcessor(exporter)))
    context = tracer.begin(None)
    assert not context.sampled
    tracer.end("submit", context, None, 1, 2)
    assert exporter.get_finished_spans() == ()
