"""The HTTP interface: translates requests for the `Desk` and the `BlobStore`, and their answers and errors, to HTTP.

Never decides anything about jobs or vehicles. The routes are listed in `fleet_wire.api`.
"""

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from coordinator.adapters.prometheus import CONTENT_TYPE_LATEST, exposition
from coordinator.errors import CoordinatorError, Rejected, ResourceMissing, StoreUnavailable
from coordinator.metrics import MetricPoint
from coordinator.ports import BlobStore, Desk, ReceiptFilter
from fleet_wire.api import JobRequest, JobTerms, ModelRequest, PolicyDraft, Problem, RowsFrame
from fleet_wire.trace import TraceContext, trace_of

__all__ = ["HttpLimits", "build_app", "open_listener", "serve"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,15}", re.ASCII)
_SPAN: Final = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)
_RANGE: Final = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_MONTH: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{0,64}\.\d{1,15}", re.ASCII)
_STATEMENTS_BY: Final = ("owner", "vehicle", "job", "month")
_BINARY: Final = "application/octet-stream"
# Every refusal that is not simply "cannot be accepted" (422).
_STATUS: Final = {
    "bad_json": 400,
    "not_done": 409,
    "not_running": 409,
    "policy_changed": 409,
    "too_large": 413,
    "bad_range": 416,
}
_IN_FLIGHT_S: Final = 0.5
_SHUTDOWN_S: Final = 2

_Asked = TypeVar("_Asked")


class _StrictModelRequest(ModelRequest, forbid_unknown_fields=True, frozen=True):
    """A misspelt field must not pass for a default."""


class _StrictJobTerms(JobTerms, forbid_unknown_fields=True, frozen=True):
    """As above."""


class _StrictJobRequest(JobRequest, forbid_unknown_fields=True, frozen=True):
    """As above."""

    terms: _StrictJobTerms = _StrictJobTerms()


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How much one request may bring, and after how many silent seconds a stream of rows says that it lives."""

    json_bytes: int = 1 << 20
    blob_bytes: int = 64 << 30
    heartbeat_s: float = 10.0


def build_app(
    desk: Desk,
    blobs: BlobStore,
    refusals: Counter[str],
    observed: Callable[[], Sequence[MetricPoint]],
    limits: HttpLimits = HttpLimits(),
) -> Starlette:
    """The ASGI application; every refusal is counted in `refusals` by its code, `/metrics` shows what is `observed`."""
    api = _Api(desk, blobs, refusals, observed, limits)
    problems = _Problems(refusals)
    return Starlette(
        routes=[
            Route("/v1/blobs/{digest}", api.put_blob, methods=["PUT"]),
            Route("/v1/blobs/{digest}", api.get_blob, methods=["GET"]),
            Route("/v1/models", api.add_model, methods=["POST"]),
            Route("/v1/jobs", api.submit, methods=["POST"]),
            Route("/v1/jobs", api.jobs, methods=["GET"]),
            Route("/v1/jobs/{job}", api.job, methods=["GET"]),
            Route("/v1/jobs/{job}", api.cancel, methods=["DELETE"]),
            Route("/v1/jobs/{job}/rows", api.rows, methods=["GET"]),
            Route("/v1/jobs/{job}/result", api.result, methods=["GET"]),
            Route("/v1/jobs/{job}/failures", api.failures, methods=["GET"]),
            Route("/v1/jobs/{job}/why", api.why, methods=["GET"]),
            Route("/v1/jobs/{job}/inputs/{span}", api.input_rows, methods=["GET"]),
            Route("/v1/vehicles", api.vehicles, methods=["GET"]),
            Route("/v1/vehicles/{vehicle}", api.vehicle, methods=["GET"]),
            Route("/v1/vehicles/{vehicle}/policy", api.policy, methods=["GET"]),
            Route("/v1/vehicles/{vehicle}/policy", api.set_policy, methods=["PUT"]),
            Route("/v1/vehicles/{vehicle}/policy", api.revoke, methods=["DELETE"]),
            Route("/v1/vehicles/{vehicle}/policy/history", api.policy_history, methods=["GET"]),
            Route("/v1/statements", api.statement, methods=["GET"]),
            Route("/v1/receipts", api.receipts, methods=["GET"]),
            Route("/v1/health", api.health, methods=["GET"]),
            Route("/healthz", api.healthz, methods=["GET"]),
            Route("/metrics", api.metrics, methods=["GET"]),
        ],
        exception_handlers={
            CoordinatorError: problems.coordinator_error,
            HTTPException: problems.http_error,
            ClientDisconnect: problems.client_gone,
            Exception: problems.unexpected,
        },
    )


def open_listener(host: str, port: int) -> socket.socket:
    """Listen on `host` and `port` (0: any free one, see `getsockname`). Raises OSError when that cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until cancelled; then let requests in flight end, cut streams, and close the listener."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http-server")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=_IN_FLIGHT_S)
        for connection in list(server.server_state.connections):
            # A stream hears that its client is gone and ends; cancelling it would log an error.
            connection.transport.close()
        await serving
        raise


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class _Api:
    """One method a route."""

    def __init__(
        self,
        desk: Desk,
        blobs: BlobStore,
        refusals: Counter[str],
        observed: Callable[[], Sequence[MetricPoint]],
        limits: HttpLimits,
    ) -> None:
        self._desk = desk
        self._blobs = blobs
        self._refusals = refusals
        self._observed = observed
        self._limits = limits

    async def put_blob(self, request: Request) -> Response:
        digest = _digest(request)
        return _json(await self._blobs.put(_bounded(request, self._limits.blob_bytes), digest))

    async def get_blob(self, request: Request) -> Response:
        digest = _digest(request)
        size = await self._blobs.size(digest)
        part = _asked_part(request, size)
        headers = {"etag": f'"{digest}"', **part.headers}
        if request.method == "HEAD":
            return Response(None, part.status, headers, _BINARY)
        pieces = await _begun(self._blobs.stream(digest, part.start, part.stop))
        return StreamingResponse(pieces, part.status, headers, _BINARY)

    async def add_model(self, request: Request) -> Response:
        asked = await self._read(request, _StrictModelRequest)
        return _json(await self._desk.add_model(asked.digest))

    async def submit(self, request: Request) -> Response:
        view = await self._desk.submit(await self._read(request, _StrictJobRequest), self._caller(request))
        return _json(view, HTTPStatus.CREATED, {"location": f"/v1/jobs/{view.id}"})

    async def jobs(self, _request: Request) -> Response:
        return _json(await self._desk.jobs())

    async def job(self, request: Request) -> Response:
        return _json(await self._desk.job(_identifier(request, "job")))

    async def cancel(self, request: Request) -> Response:
        return _json(await self._desk.cancel(_identifier(request, "job")))

    async def rows(self, request: Request) -> Response:
        job = _identifier(request, "job")
        after = request.query_params.get("after", "0")
        if not _COUNT.fullmatch(after):
            raise Rejected("bad_query", "`after` must be a whole number: the cursor of the last frame that you have")
        await self._desk.job(job)  # a job that is not there must be said before the stream begins
        frames = _with_heartbeats(self._desk.rows(job, int(after)), int(after), self._limits.heartbeat_s)
        return StreamingResponse(frames, media_type=_BINARY)

    async def result(self, request: Request) -> Response:
        partial = request.query_params.get("partial", "0")
        if partial not in {"0", "1"}:
            raise Rejected("bad_query", "`partial` must be 0 or 1")
        pieces = await _begun(self._desk.result(_identifier(request, "job"), partial=partial == "1"))
        return StreamingResponse(pieces, media_type=_BINARY)

    async def failures(self, request: Request) -> Response:
        return _json(await self._desk.failures(_identifier(request, "job")))

    async def why(self, request: Request) -> Response:
        return _json(await self._desk.explain(_identifier(request, "job")))

    async def input_rows(self, request: Request) -> Response:
        job = _identifier(request, "job")
        span = _SPAN.fullmatch(request.path_params["span"])
        if span is None or int(span[1]) >= int(span[2]):
            raise ResourceMissing("rows_unknown", "name input rows as START-STOP with START below STOP")
        data = await self._desk.input_rows(job, int(span[1]), int(span[2]))
        part = _asked_part(request, len(data))
        return Response(memoryview(data)[part.start : part.stop], part.status, part.headers, _BINARY)

    async def vehicles(self, _request: Request) -> Response:
        return _json(list(self._desk.vehicles()))

    async def vehicle(self, request: Request) -> Response:
        return _json(self._desk.vehicle(_identifier(request, "vehicle")))

    async def policy(self, request: Request) -> Response:
        return _json(await self._desk.policy(_identifier(request, "vehicle")))

    async def policy_history(self, request: Request) -> Response:
        return _json(await self._desk.policy_history(_identifier(request, "vehicle")))

    async def set_policy(self, request: Request) -> Response:
        vehicle, by = _identifier(request, "vehicle"), _who(request)
        return _json(await self._desk.set_policy(vehicle, await self._read(request, PolicyDraft), by))

    async def revoke(self, request: Request) -> Response:
        return _json(await self._desk.revoke(_identifier(request, "vehicle"), _who(request)))

    async def statement(self, request: Request) -> Response:
        by = request.query_params.get("by", "vehicle")
        if by not in _STATEMENTS_BY:
            raise Rejected("bad_query", f"`by` must be one of {', '.join(_STATEMENTS_BY)}")
        return _json(await self._desk.statement(by, _receipt_filter(request)))

    async def receipts(self, request: Request) -> Response:
        after = request.query_params.get("after", ".0")
        if not _CURSOR.fullmatch(after):
            raise Rejected("bad_query", "`after` must be the cursor of the last receipt that you have")
        job, _, chunk = after.rpartition(".")
        return _json(await self._desk.receipts(_receipt_filter(request), (job, int(chunk))))

    async def health(self, _request: Request) -> Response:
        return _json(self._desk.health())

    async def healthz(self, _request: Request) -> Response:
        status = self._desk.health().status
        return PlainTextResponse(f"{status}\n", HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self, _request: Request) -> Response:
        return Response(exposition(self._observed()), media_type=CONTENT_TYPE_LATEST)

    def _caller(self, request: Request) -> TraceContext | None:
        """The trace that the client named; one that breaks the standard is ignored, as it demands, and counted."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        try:
            return trace_of(headers)
        except ValueError:
            self._refusals["trace_malformed"] += 1
            return None

    async def _read(self, request: Request, kind: type[_Asked]) -> _Asked:
        body = bytearray()
        async for piece in _bounded(request, self._limits.json_bytes):
            body += piece
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            raise Rejected("invalid", f"the request does not fit: {_one_line(error)}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Rejected("bad_json", f"the body is not JSON: {_one_line(error)}") from None


class _Problems:
    """Errors as Problem objects, counted by code."""

    def __init__(self, refusals: Counter[str]) -> None:
        self._refusals = refusals

    async def coordinator_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, CoordinatorError)
        if request.method == "HEAD":  # a question whether something is there; no is a fine answer
            return Response(None, _status(error))
        headers = {"content-range": f"bytes */{error.size}"} if isinstance(error, _Unsatisfiable) else None
        return self._answer(_status(error), error.code, error.detail, headers)

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        detail = f"there is no {request.method} {request.url.path}: see the routes of the HTTP interface"
        return self._answer(status, status.name.lower(), detail, error.headers)

    async def client_gone(self, _request: Request, _error: Exception) -> Response:
        return self._answer(400, "client_gone", "the connection ended before the body did")

    async def unexpected(self, _request: Request, _error: Exception) -> Response:
        # The server logs the error with its traceback, which is nobody else's business.
        return self._answer(500, "internal", "the coordinator made a mistake; its log says more")

    def _answer(self, status: int, code: str, detail: str, headers: object = None) -> Response:
        self._refusals[code] += 1
        extra = dict(headers) if isinstance(headers, dict) else {}
        return Response(
            msgspec.json.encode(Problem(status, code, detail)), status, extra, media_type="application/problem+json"
        )


class _Unsatisfiable(Rejected):
    """A byte range that lies outside."""

    def __init__(self, size: int) -> None:
        super().__init__("bad_range", f"the range lies outside of the {size} bytes")
        self.size = size


def _status(error: CoordinatorError) -> int:
    match error:
        case ResourceMissing():
            return 404
        case StoreUnavailable():
            return 503
        case _:
            return _STATUS.get(error.code, 422)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _digest(request: Request) -> str:
    digest: str = request.path_params["digest"]
    if not _DIGEST.fullmatch(digest):
        raise Rejected("bad_digest", "a blob is named by its SHA-256 in 64 lower-case hexadecimal digits")
    return digest


def _identifier(request: Request, kind: str) -> str:
    identifier: str = request.path_params[kind]
    if not _IDENTIFIER.fullmatch(identifier):
        raise ResourceMissing(f"{kind}_unknown", f"there is no {kind} of that name: names have only A-Z a-z 0-9 _ -")
    return identifier


def _who(request: Request) -> str:
    """Who changes a policy, by their own word."""
    who = request.query_params.get("by", "http")
    if not _IDENTIFIER.fullmatch(who):
        raise Rejected("bad_query", "`by` must be a name of A-Z a-z 0-9 _ -, with 64 characters at most")
    return who


def _receipt_filter(request: Request) -> ReceiptFilter:
    asked = {name: request.query_params.get(name) for name in ("owner", "vehicle", "job")}
    for name, value in asked.items():
        if value is not None and not _IDENTIFIER.fullmatch(value):
            raise Rejected("bad_query", f"`{name}` must be an id of A-Z a-z 0-9 _ -, with 64 characters at most")
    month = request.query_params.get("month")
    if month is not None and not _MONTH.fullmatch(month):
        raise Rejected("bad_query", f"`month` must look like 2026-11 and is {month[:20]!r}")
    return ReceiptFilter(**asked, month=None if month is None else int(month.replace("-", "")))


async def _bounded(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces, refused as soon as it is known to be longer than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    received = int(declared) if _COUNT.fullmatch(declared) else 0
    if received > limit:
        raise Rejected("too_large", f"the body has {received} bytes, and {limit} are allowed")
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > limit:
            raise Rejected("too_large", f"the body has more than the {limit} bytes allowed")
        if piece:
            yield piece


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes `start` to `stop` (excluded) of `size`, and whether a range was asked for."""

    start: int
    stop: int
    size: int
    partial: bool

    @property
    def status(self) -> int:
        return HTTPStatus.PARTIAL_CONTENT if self.partial else HTTPStatus.OK

    @property
    def headers(self) -> dict[str, str]:
        headers = {"accept-ranges": "bytes", "content-length": str(self.stop - self.start)}
        if self.partial:
            headers["content-range"] = f"bytes {self.start}-{self.stop - 1}/{self.size}"
        return headers


def _asked_part(request: Request, size: int) -> _Part:
    """What to answer of `size` bytes; a Range header that is not understood is ignored, as RFC 9110 says."""
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    first, last = (asked[1], asked[2]) if asked is not None else ("", "")
    if (not first and not last) or (first and last and int(last) < int(first)):
        return _Part(0, size, size, partial=False)
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise _Unsatisfiable(size)
    return _Part(start, stop, size, partial=True)


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same stream after its first piece was had, so that its errors still become a Problem."""
    first = await anext(pieces, b"")

    async def all_pieces() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_pieces()


async def _with_heartbeats(frames: AsyncIterator[RowsFrame], after: int, silent_s: float) -> AsyncIterator[bytes]:
    """Frames as bytes; a frame without rows when nothing came for `silent_s`, so that a dead connection is noticed."""
    ended = False
    while not ended:
        coming = asyncio.ensure_future(anext(frames, None))
        try:
            while not (await asyncio.wait({coming}, timeout=silent_s))[0]:
                yield _framed(RowsFrame(after, [], []))
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        frame = coming.result()
        if frame is None:
            return
        after, ended = frame.after, frame.state is not None
        yield _framed(frame)


def _framed(frame: RowsFrame) -> bytes:
    data = msgspec.msgpack.encode(frame)
    return len(data).to_bytes(4, "little") + data
