"""HTTP with one coordinator: JSON, blobs and streams, whose faults become errors of ours. Knows no job."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import httpx
import msgspec

from fleet_wire.api import Problem
from idlewheel.errors import BadInput, Refused, Unreachable

__all__ = ["DEFAULT_URL", "Exchange"]

DEFAULT_URL: Final = "http://127.0.0.1:8470"
# A stream of rows speaks at least every 10 s; a model is checked before its registration is answered.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)

_View = TypeVar("_View")


class Exchange:
    """Connections to the coordinator at `url`. Every request raises Refused and Unreachable."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = _http_client(url)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        kind: type[_View],
        request: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> _View:
        """Ask for a JSON document, with one if `request` is given."""
        body = None if request is None else msgspec.json.encode(request)
        if body is not None:
            headers = {"content-type": "application/json", **headers}
        with self.stream(method, path, content=body, headers=headers) as answer:
            try:
                return msgspec.json.decode(answer.read(), type=kind)
            except msgspec.MsgspecError:
                raise Unreachable(f"what answers at {self.url} is no Idlewheel coordinator") from None

    def upload(self, digest: str, size: int, content: Callable[[], Iterator[bytes]]) -> None:
        """Store a blob, unless it is there already."""
        path = f"/v1/blobs/{digest}"
        with self._open("HEAD", path) as answer:
            if answer.is_success:
                return
        with self._open("PUT", path, content=content(), headers={"content-length": str(size)}) as answer:
            self._check(answer)

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """An answer that went well, to be read as it comes; what goes wrong meanwhile is Unreachable."""
        with self._open(method, path, **options) as answer:
            self._check(answer)
            yield answer

    @contextlib.contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
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

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        try:
            problem = msgspec.json.decode(answer.read(), type=Problem)
        except msgspec.MsgspecError:
            raise Unreachable(
                f"what answers at {self.url} is no Idlewheel coordinator: HTTP {answer.status_code}"
            ) from None
        if answer.is_server_error:
            raise Unreachable(f"the coordinator at {self.url} is in trouble: {problem.detail}")
        raise Refused(problem.code, problem.detail)


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
