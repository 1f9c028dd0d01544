"""The client: submits jobs to a coordinator over HTTP and brings their rows back. Synchronous; one thread at a time.

from idlewheel import Client
for start, outputs in Client().submit("model.onnx", "rows.npy"):
    print(start, outputs)
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import msgspec

from fleet_wire.api import (
    HealthView,
    JobRequest,
    JobTerms,
    JobView,
    ModelRequest,
    ModelView,
    PolicyDraft,
    PolicyView,
    ReceiptView,
    StatementLine,
    VehicleView,
)
from fleet_wire.bundle import encode_bundle
from fleet_wire.errors import WireError
from fleet_wire.tensors import Array
from idlewheel.errors import BadInput
from idlewheel.exchange import DEFAULT_URL, Exchange
from idlewheel.job import Job
from idlewheel.rows_files import as_rows, load_rows
from idlewheel.traces import current_trace, given_trace
from idlewheel.verification_text import parsed_verification

__all__ = ["DEFAULT_URL", "Client", "Job"]

_BLOCK_BYTES: Final = 1 << 20
_TERM_RULES: Final = {  # where msgspec's own words would show a pattern or a unit that no option has
    "purpose": "`purpose` is up to 32 lower-case letters, digits and hyphens",
    "price_ceiling_micro_per_kwh": "the price ceiling must be 0 or more, and a price that can be",
    "vehicle_share": "`vehicle_share` is above 0 and 1 at most",
    "max_attempts": "`max_attempts` is 1 to 100",
}

Model = str | os.PathLike[str] | bytes
Rows = Any  # an array or what numpy makes one of, a mapping of names to such, or the path of a .npy or .npz file


class Client:
    """A connection to one coordinator: `url`, else the environment's IDLEWHEEL_URL, else this machine's.

    `patience_s` is how long streams and waiting go on trying when the coordinator has gone away.
    """

    def __init__(self, url: str | None = None, *, patience_s: float = 60.0) -> None:
        self.url = (url or os.environ.get("IDLEWHEEL_URL") or DEFAULT_URL).rstrip("/")
        self.patience_s = patience_s
        self._exchange = Exchange(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._exchange.close()

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
        verify: str = "none",
        tolerances: Mapping[str, tuple[float, float]] | None = None,
        wrong_share: float | None = None,
        canary_share: float | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Job:
        """Run an ONNX model over rows.

        `model` is a path or the bytes. `rows` is an array for a model with one input, a mapping of input names to
        arrays, or the path of a .npy or .npz file. `trace` has `traceparent` and `tracestate` of the trace that the
        job belongs to; without it that is the one of OpenTelemetry's current span, if there is any. `verify` is the
        rule by which rows are verified: none, canaries, adaptive, or quorum:3; `tolerances` are (absolute, relative) by
        the name of an output. What the other arguments ask for is said in `JobTerms` and `Verification`. Raises
        BadInput, Refused, Unreachable.
        """
        terms = _terms(
            priority=priority,
            chunk_rows=chunk_rows,
            deadline_s=deadline_s,
            purpose=purpose,
            price_ceiling_micro_per_kwh=price_ceiling_micro_per_kwh,
            vehicle_share=vehicle_share,
            max_attempts=max_attempts,
            verification=parsed_verification(verify, tolerances, wrong_share, canary_share),
        )
        headers = current_trace() if trace is None else given_trace(trace)
        arrays = load_rows(Path(rows)) if isinstance(rows, str | os.PathLike) else rows
        registered = self._register(model)
        try:
            bundle = encode_bundle(_named(arrays, registered))
        except WireError as error:
            raise BadInput(f"the rows cannot be sent: {error.detail}") from None
        digest = hashlib.sha256(bundle).hexdigest()
        self._exchange.upload(digest, len(bundle), lambda: _blocks(bundle))
        request = JobRequest(registered.digest, digest, terms, name)
        view = self._exchange.ask("POST", "/v1/jobs", JobView, request, headers)
        return self.job(view.id)

    def job(self, job: str) -> Job:
        """A job that was submitted before, by its id; whether it exists shows when it is asked."""
        return Job(self._exchange, job, self.patience_s)

    def jobs(self) -> list[JobView]:
        """Running jobs, then those that ended lately. Raises Unreachable."""
        return self._exchange.ask("GET", "/v1/jobs", list[JobView])

    def vehicles(self) -> list[VehicleView]:
        """All vehicles that the coordinator knows. Raises Unreachable."""
        return self._exchange.ask("GET", "/v1/vehicles", list[VehicleView])

    def vehicle(self, vehicle: str) -> VehicleView:
        """One vehicle. Raises Refused, Unreachable."""
        return self._exchange.ask("GET", f"/v1/vehicles/{quote(vehicle, safe='')}", VehicleView)

    def policy(self, vehicle: str) -> PolicyView:
        """What the owner of a vehicle agreed to. Raises Refused (`policy_missing` when to nothing yet), Unreachable."""
        return self._exchange.ask("GET", _policy_path(vehicle), PolicyView)

    def policy_history(self, vehicle: str) -> list[PolicyView]:
        """Every version of a vehicle's policy, the newest first. Raises Refused, Unreachable."""
        return self._exchange.ask("GET", f"{_policy_path(vehicle)}/history", list[PolicyView])

    def set_policy(self, vehicle: str, draft: PolicyDraft | Mapping[str, Any], *, by: str = "client") -> PolicyView:
        """Let a draft be the next version of a vehicle's policy; a mapping has the names of PolicyDraft.

        With a `version` it only replaces that one. Raises BadInput, Refused, Unreachable.
        """
        try:
            checked = msgspec.convert(msgspec.to_builtins(draft), PolicyDraft)
        except msgspec.ValidationError as error:
            raise BadInput(f"the policy does not fit: {error}") from None
        return self._exchange.ask("PUT", f"{_policy_path(vehicle)}{_query(by=by)}", PolicyView, checked)

    def revoke(self, vehicle: str, *, by: str = "client") -> PolicyView:
        """Withdraw the consent for a vehicle, which stops at once. Raises Refused, Unreachable."""
        return self._exchange.ask("DELETE", f"{_policy_path(vehicle)}{_query(by=by)}", PolicyView)

    def health(self) -> HealthView:
        """Whether the coordinator is well, and its counters. Raises Unreachable."""
        return self._exchange.ask("GET", "/v1/health", HealthView)

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
        return self._exchange.ask("GET", f"/v1/statements{query}", list[StatementLine])

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
        while page := self._exchange.ask(
            "GET",
            f"/v1/receipts{_query(after=after, owner=owner, vehicle=vehicle, job=job, month=month)}",
            list[ReceiptView],
        ):
            yield from page
            after = page[-1].cursor

    def _register(self, model: Model) -> ModelView:
        if isinstance(model, bytes):
            digest, size = hashlib.sha256(model).hexdigest(), len(model)
            self._exchange.upload(digest, size, lambda: _blocks(model))
        else:
            path = Path(model)
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._exchange.upload(digest, path.stat().st_size, lambda: _file_blocks(path))
            except OSError as error:
                raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
        return self._exchange.ask("POST", "/v1/models", ModelView, ModelRequest(digest))


def _policy_path(vehicle: str) -> str:
    return f"/v1/vehicles/{quote(vehicle, safe='')}/policy"


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
