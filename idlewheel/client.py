"""The client: submits jobs to a coordinator over HTTP and brings their rows back. Synchronous; one thread at a time.

from idlewheel import Client
for start, outputs in Client().submit("model.onnx", "rows.npy"):
    print(start, outputs)
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from fleet_wire.api import (
    FailedRowView,
    HealthView,
    JobExplanation,
    JobRequest,
    JobTerms,
    JobView,
    ModelRequest,
    ModelView,
    PolicyDraft,
    PolicyView,
    Problem,
    ReceiptView,
    RowsFrame,
    StatementLine,
    VehicleView,
)
from fleet_wire.bundle import decode_bundle, encode_bundle
from fleet_wire.errors import WireError
from fleet_wire.tensors import Array, decode_tensors
from idlewheel.errors import BadInput, JobFailed, Refused, Unreachable
from idlewheel.rows_files import as_rows, load_rows
from idlewheel.traces import current_trace, given_trace

__all__ = ["DEFAULT_URL", "Client", "Job"]

DEFAULT_URL: Final = "http://127.0.0.1:8470"
_BLOCK_BYTES: Final = 1 << 20
# A stream of rows speaks at least every 10 s; a model is checked before its registration is answered.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.25  # also the most that a job's end is noticed late
_TERM_RULES: Final = {  # where msgspec's own words would show a pattern or a unit that no option has
    "purpose": "`purpose` is up to 32 lower-case letters, digits and hyphens",
    "price_ceiling_micro_per_kwh": "the price ceiling must be 0 or more, and a price that can be",
    "vehicle_share": "`vehicle_share` is above 0 and 1 at most",
    "max_attempts": "`max_attempts` is 1 to 100",
}

Model = str | os.PathLike[str] | bytes
Rows = Any  # an array or what numpy makes one of, a mapping of names to such, or the path of a .npy or .npz file
_View = TypeVar("_View")


class Client:
    """A connection to one coordinator: `url`, else the environment's IDLEWHEEL_URL, else this machine's.

    `patience_s` is how long streams and waiting go on trying when the coordinator has gone away.
    """

    def __init__(self, url: str | None = None, *, patience_s: float = 60.0) -> None:
        self.url = (url or os.environ.get("IDLEWHEEL_URL") or DEFAULT_URL).rstrip("/")
        self.patience_s = patience_s
        self._http = _http_client(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._http.close()

    def submit(
        self,
        model: Model,
        rows: Rows,
        *,
        name: str = "",
        priority: int = 0,
        chunk_rows: int | None = None,
        deadline_s: float | None = None,
        purpose: str = "general",
        price_ceiling_micro_per_kwh: int | None = None,
        vehicle_share: float = 1.0,
        max_attempts: int = 3,
        trace: Mapping[str, str] | None = None,
    ) -> "Job":
        """Run an ONNX model over rows.

        `model` is a path or the bytes. `rows` is an array for a model with one input, a mapping of input names to
        arrays, or the path of a .npy or .npz file. `trace` has `traceparent` and `tracestate` of the trace that the
        job belongs to; without it that is the one of OpenTelemetry's current span, if there is any. What the other
        arguments ask for is said in `JobTerms`. Raises BadInput, Refused, Unreachable.
        """
        terms = _terms(
            priority=priority,
            chunk_rows=chunk_rows,
            deadline_s=deadline_s,
            purpose=purpose,
            price_ceiling_micro_per_kwh=price_ceiling_micro_per_kwh,
            vehicle_share=vehicle_share,
            max_attempts=max_attempts,
        )
        headers = current_trace() if trace is None else given_trace(trace)
        arrays = load_rows(Path(rows)) if isinstance(rows, str | os.PathLike) else rows
        registered = self._register(model)
        try:
            bundle = encode_bundle(_named(arrays, registered))
        except WireError as error:
            raise BadInput(f"the rows cannot be sent: {error.detail}") from None
        digest = hashlib.sha256(bundle).hexdigest()
        self._upload(digest, len(bundle), lambda: _blocks(bundle))
        request = JobRequest(registered.digest, digest, terms, name)
        view = self._ask("POST", "/v1/jobs", JobView, request, headers)
        return Job(self, view.id)

    def job(self, job: str) -> "Job":
        """A job that was submitted before, by its id; whether it exists shows when it is asked."""
        return Job(self, job)

    def jobs(self) -> list[JobView]:
        """Running jobs, then those that ended lately. Raises Unreachable."""
        return self._ask("GET", "/v1/jobs", list[JobView])

    def vehicles(self) -> list[VehicleView]:
        """All vehicles that the coordinator knows. Raises Unreachable."""
        return self._ask("GET", "/v1/vehicles", list[VehicleView])

    def vehicle(self, vehicle: str) -> VehicleView:
        """One vehicle. Raises Refused, Unreachable."""
        return self._ask("GET", f"/v1/vehicles/{quote(vehicle, safe='')}", VehicleView)

    def policy(self, vehicle: str) -> PolicyView:
        """What the owner of a vehicle agreed to. Raises Refused (`policy_missing` when to nothing yet), Unreachable."""
        return self._ask("GET", _policy_path(vehicle), PolicyView)

    def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first. Raises Refused, Unreachable."""
        return self._ask("GET", f"{_policy_path(vehicle)}/history", list[PolicyView])

    def set_policy(self, vehicle: str, draft: PolicyDraft | Mapping[str, Any], *, by: str = "client") -> PolicyView:
        """Let a draft be the next version of a vehicle's policy; a mapping has the names of PolicyDraft.

        With a `version` it only replaces that one. Raises BadInput, Refused, Unreachable.
        """
        try:
            checked = msgspec.convert(msgspec.to_builtins(draft), PolicyDraft)
        except msgspec.ValidationError as error:
            raise BadInput(f"the policy does not fit: {error}") from None
        return self._ask("PUT", f"{_policy_path(vehicle)}{_query(by=by)}", PolicyView, checked)

    def revoke(self, vehicle: str, *, by: str = "client") -> PolicyView:
        """Withdraw the consent for a vehicle, which stops at once. Raises Refused, Unreachable."""
        return self._ask("DELETE", f"{_policy_path(vehicle)}{_query(by=by)}", PolicyView)

    def health(self) -> HealthView:
        """Whether the coordinator is well, and its counters. Raises Unreachable."""
        return self._ask("GET", "/v1/health", HealthView)

    def statement(
        self,
        by: str = "vehicle",
        *,
        owner: str | None = None,
        vehicle: str | None = None,
        job: str | None = None,
        month: str | None = None,
    ) -> list[StatementLine]:
        """What was computed and earned, summed up by owner, vehicle, job or month (2026-11); the others choose of what.

        Raises Refused, Unreachable.
        """
        query = _query(by=by, owner=owner, vehicle=vehicle, job=job, month=month)
        return self._ask("GET", f"/v1/statements{query}", list[StatementLine])

    def receipts(
        self,
        *,
        owner: str | None = None,
        vehicle: str | None = None,
        job: str | None = None,
        month: str | None = None,
    ) -> Iterator[ReceiptView]:
        """Every receipt of this choice, ordered by job and chunk. Raises Refused, Unreachable."""
        after: str | None = None
        while page := self._ask(
            "GET",
            f"/v1/receipts{_query(after=after, owner=owner, vehicle=vehicle, job=job, month=month)}",
            list[ReceiptView],
        ):
            yield from page
            after = page[-1].cursor

    def _register(self, model: Model) -> ModelView:
        if isinstance(model, bytes):
            digest, size = hashlib.sha256(model).hexdigest(), len(model)
            self._upload(digest, size, lambda: _blocks(model))
        else:
            path = Path(model)
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._upload(digest, path.stat().st_size, lambda: _file_blocks(path))
            except OSError as error:
                raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
        return self._ask("POST", "/v1/models", ModelView, ModelRequest(digest))

    def _upload(self, digest: str, size: int, content: Callable[[], Iterator[bytes]]) -> None:
        path = f"/v1/blobs/{digest}"
        with self._exchange("HEAD", path) as answer:
            if answer.is_success:
                return
        with self._exchange("PUT", path, content=content(), headers={"content-length": str(size)}) as answer:
            _check(answer, self.url)

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[_View],
        request: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> _View:
        """One JSON exchange."""
        body = None if request is None else msgspec.json.encode(request)
        if body is not None:
            headers = {"content-type": "application/json", **headers}
        with self._exchange(method, path, content=body, headers=headers) as answer:
            _check(answer, self.url)
            try:
                return msgspec.json.decode(answer.read(), type=kind)
            except msgspec.MsgspecError:
                raise Unreachable(f"what answers at {self.url} is no Idlewheel coordinator") from None

    @contextlib.contextmanager
    def _exchange(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A request whose answer may be streamed; what goes wrong on the way, also later, is Unreachable."""
        try:
            with self._http.stream(method, path, **options) as answer:
                yield answer
        except httpx.ConnectError:
            raise Unreachable(
                f"no coordinator answers at {self.url}: start one with `idlewheel up`, or set IDLEWHEEL_URL or --url"
            ) from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"the connection to the coordinator at {self.url} broke: {reason}") from None


class Job:
    """A job at the coordinator. Iterating over it yields its rows as they arrive, see `rows`."""

    def __init__(self, client: Client, job: str) -> None:
        self.id = job
        self._client = client
        self._path = f"/v1/jobs/{quote(job, safe='')}"

    def __repr__(self) -> str:
        return f"Job({self.id!r} at {self._client.url})"

    def __iter__(self) -> Iterator[tuple[int, dict[str, Array]]]:
        return self.rows()

    def status(self) -> JobView:
        """Where the job stands now. Raises Refused, Unreachable."""
        return self._client._ask("GET", self._path, JobView)

    def cancel(self) -> JobView:
        """End the job; rows that are done stay. Raises Refused, Unreachable."""
        return self._client._ask("DELETE", self._path, JobView)

    def rows(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield (first row, outputs by name) as rows are accepted, in no order, each row once, until the job is done.

        Goes on where it was after a broken connection. Raises JobFailed, Refused, Unreachable.
        """
        after = 0
        patience = _Patience(self._client.patience_s)
        while True:
            try:
                for frame in self._frames(after):
                    yield from _pieces(frame)
                    after = frame.after
                    patience.renew()
                    if frame.state is not None:
                        return self._expect_done(frame.state, frame.error)
            except Unreachable as error:
                patience.wait_after(error)

    def wait(self, timeout_s: float | None = None, seen: Callable[[JobView], None] | None = None) -> JobView:
        """Wait until the job has ended in whatever way; `seen` is called with every status on the way.

        Raises TimeoutError after `timeout_s` (the job goes on), Refused, Unreachable.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        patience = _Patience(self._client.patience_s)
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                view = self.status()
            except Unreachable as error:
                patience.wait_after(error)
                continue
            patience.renew()
            if seen is not None:
                seen(view)
            if view.state != "running":
                return view
            if until_s is not None and time.monotonic() >= until_s:
                raise TimeoutError(f"job {self.id} has {view.rows_done} of {view.rows} rows after {timeout_s:g} s")
            time.sleep(wait_s)
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)

    def failures(self) -> list[FailedRowView]:
        """Rows that were given up because they failed on several cars, with the errors. Raises Refused, Unreachable."""
        return self._client._ask("GET", f"{self._path}/failures", list[FailedRowView])

    def why(self) -> JobExplanation:
        """Why it stands where it stands. Raises Refused (also when it has ended), Unreachable."""
        return self._client._ask("GET", f"{self._path}/why", JobExplanation)

    def result(self, timeout_s: float | None = None, *, partial: bool = False) -> dict[str, Array]:
        """Wait for the end, then return all outputs by name, their rows in the order of the inputs.

        With `partial` a job that failed or was cancelled gives the rows that it has; the others are NaN, zero or empty.
        Raises JobFailed, which names rows that failed, TimeoutError, Refused (also when open axes came out so that
        there is no one array: iterate instead, and when `partial` finds no row), Unreachable.
        """
        view = self.wait(timeout_s)
        if not partial:
            self._expect_done(view.state, view.error)
        patience = _Patience(self._client.patience_s)
        while True:
            try:
                return self._download("?partial=1" if partial else "")
            except Unreachable as error:
                patience.wait_after(error)

    def _download(self, query: str) -> dict[str, Array]:
        data = bytearray()  # not bytes, so that the arrays can be written to
        with self._client._exchange("GET", f"{self._path}/result{query}") as answer:
            _check(answer, self._client.url)
            for piece in answer.iter_raw():
                data += piece
        try:
            return decode_bundle(memoryview(data))
        except WireError as error:
            raise Unreachable(f"the result came damaged: {error.detail}") from None

    def _frames(self, after: int) -> Iterator[RowsFrame]:
        with self._client._exchange("GET", f"{self._path}/rows?after={after}") as answer:
            _check(answer, self._client.url)
            buffer = bytearray()
            for piece in answer.iter_raw():
                buffer += piece
                while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "little")):
                    frame = bytes(memoryview(buffer)[4:end])
                    del buffer[:end]
                    yield _decode_frame(frame)
        raise Unreachable("the stream of rows ended before the job did")

    def _expect_done(self, state: str, error: str | None) -> None:
        if state != "done":
            raise JobFailed(self.id, state, error)


class _Patience:
    """How long to go on after a coordinator went away: doubling waits, until `seconds` passed without an answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._until_s = time.monotonic() + self._seconds
        self._wait_s = _FIRST_WAIT_S

    def wait_after(self, error: Unreachable) -> None:
        if time.monotonic() >= self._until_s:
            raise error
        time.sleep(self._wait_s)
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)


def _http_client(url: str) -> httpx.Client:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadInput(f"{url!r} is no address: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise BadInput(f"{url!r} is no address of a coordinator: it should look like {DEFAULT_URL}")
    # The proxy of a company's network cannot reach this machine's own addresses.
    outside = parsed.host not in {"localhost", "::1"} and not parsed.host.startswith("127.")
    return httpx.Client(base_url=url, timeout=_TIMEOUT, trust_env=outside)


def _policy_path(vehicle: str) -> str:
    return f"/v1/vehicles/{quote(vehicle, safe='')}/policy"


def _check(answer: httpx.Response, url: str) -> None:
    if answer.is_success:
        return
    try:
        problem = msgspec.json.decode(answer.read(), type=Problem)
    except msgspec.MsgspecError:
        raise Unreachable(f"what answers at {url} is no Idlewheel coordinator: HTTP {answer.status_code}") from None
    if answer.is_server_error:
        raise Unreachable(f"the coordinator at {url} is in trouble: {problem.detail}")
    raise Refused(problem.code, problem.detail)


def _query(**asked: str | None) -> str:
    given = {name: value for name, value in asked.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _terms(**terms: object) -> JobTerms:
    try:
        return msgspec.convert(terms, JobTerms)
    except msgspec.ValidationError as error:
        fault = next((rule for name, rule in _TERM_RULES.items() if f"$.{name}`" in str(error)), str(error))
        raise BadInput(f"the terms of the job do not fit: {fault}") from None


def _named(rows: Rows, model: ModelView) -> dict[str, Array]:
    if isinstance(rows, Mapping):
        return {str(name): as_rows(f"input {name!r}", array) for name, array in rows.items()}
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise BadInput(
            f"the model has {len(model.inputs)} inputs ({names}): give an array for each of these names, as a .npz file"
        )
    return {model.inputs[0].name: as_rows("the array of rows", rows)}


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _BLOCK_BYTES):
        yield data[start : start + _BLOCK_BYTES]


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _decode_frame(data: bytes) -> RowsFrame:
    try:
        return msgspec.msgpack.decode(data, type=RowsFrame)
    except msgspec.MsgspecError as error:
        raise Unreachable(f"the stream of rows came damaged: {error}") from None


def _pieces(frame: RowsFrame) -> Iterator[tuple[int, dict[str, Array]]]:
    try:
        outputs = decode_tensors(frame.outputs)
    except WireError as error:
        raise Unreachable(f"the stream of rows came damaged: {error.detail}") from None
    for start, stop, offset in frame.spans:
        yield start, {name: output[offset : offset + stop - start] for name, output in outputs.items()}
