"""One InfluxDB server, whatever its version: line protocol in, InfluxQL out. Never buffers, never tries again.

Writes go through influxdb-client where the server has `/api/v2/write` (1.8 and newer), else the same bytes to `/write`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from coordinator.errors import StoreUnavailable

__all__ = ["InfluxAddress", "InfluxDenied", "InfluxError", "InfluxServer", "LinesRefused", "ServerFacts", "ServerGone"]

_CONNECT_S: Final = 3.0
_QUERY_S: Final = 120.0
_CHUNK_ROWS: Final = 10_000
_SCHEMES: Final = {"influx": "http", "influxs": "https"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class InfluxError(Exception):
    """The server did not do what it was asked; the message says to a person what to do."""


class ServerGone(InfluxError):
    """Not reached, too slow, or failing: it may do it later."""


class InfluxDenied(InfluxError):
    """The server answered 401, 403 or 404: somebody has to change something first."""


class LinesRefused(InfluxError):
    """Ours: the server refused lines (400), or so many at once (413). Some of the lines may have been taken."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True)
class InfluxAddress:
    """Where a database is, and as whom to speak. `token` and `org` are for 2.x; its bucket has the database's name."""

    url: str
    database: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    org: str = ""

    @classmethod
    def parse(cls, text: str) -> "InfluxAddress":
        """Read influx[s]://[USER:PASSWORD@]HOST[:PORT]/DATABASE[?token=T&org=O]. Raises StoreUnavailable."""
        form = "influx://[USER:PASSWORD@]HOST[:PORT]/DATABASE[?token=TOKEN&org=ORG]"
        try:
            parts = urlsplit(text)
            port = parts.port or 8086
        except ValueError as error:
            raise StoreUnavailable("store_url", f"the store's URL can't be read: {error}; it goes {form}") from None
        database = unquote(parts.path.removeprefix("/"))
        options = parse_qs(parts.query)
        if parts.scheme not in _SCHEMES or not parts.hostname or set(options) - {"token", "org"}:
            raise StoreUnavailable("store_url", f"the store's URL goes {form}, or influxs:// for TLS")
        if not _NAME.fullmatch(database):
            raise StoreUnavailable("store_url", f"name a database of letters, digits, - _ . at the end: {form}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(
            url=f"{_SCHEMES[parts.scheme]}://{host}:{port}",
            database=database,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            token=options.get("token", [""])[0],
            org=options.get("org", [""])[0],
        )

    def __str__(self) -> str:
        return f"{self.url}/{self.database}"

    @property
    def authorization(self) -> dict[str, str]:
        """The header for a token."""
        return {"Authorization": f"Token {self.token}"} if self.token else {}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server said of itself."""

    version: str
    has_v2_write: bool


class Writer(Protocol):
    """Sends a body of lines; may be called in several threads. Raises what InfluxServer.write raises."""

    def write(self, body: bytes) -> None:
        """Send."""

    def close(self) -> None:
        """Let go of the connections."""


class InfluxServer:
    """May be called in several threads once `prepare` has returned."""

    def __init__(self, address: InfluxAddress, write_timeout_s: float = 10.0) -> None:
        self._address = address
        self._write_timeout_s = write_timeout_s
        self._http = httpx.Client(
            base_url=address.url,
            auth=(address.user, address.password) if address.user else None,
            headers=address.authorization,
            timeout=httpx.Timeout(write_timeout_s, connect=min(_CONNECT_S, write_timeout_s)),
        )
        self._writer: Writer | None = None

    def close(self) -> None:
        """Let go of the connections."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._http.close()

    def version(self) -> str:
        """The server's version as it tells it, or nothing. Raises ServerGone."""
        return str(self._ask("GET", "/ping").headers.get("X-Influxdb-Version", ""))

    def has_v2_write(self) -> bool:
        """Whether `/api/v2/write` is there; asked with a body that holds nothing. Raises ServerGone."""
        query = {"bucket": self._address.database, "org": self._address.org or "-", "precision": "ns"}
        answer = self._ask("POST", "/api/v2/write", params=query, content=b"")
        return answer.status_code != 404 or "json" in answer.headers.get("Content-Type", "")

    def databases(self) -> list[str]:
        """Names of the databases that we may see. Raises ServerGone, InfluxDenied."""
        return [row[0] for series in self.query("SHOW DATABASES", database="") for row in series.get("values", ())]

    def prepare(self) -> ServerFacts:
        """Find out how to write, and make the database when it is not there and can be made.

        Raises ServerGone, InfluxDenied.
        """
        version = self.version()
        database = self._address.database
        if database not in self.databases():
            try:
                self.query(f'CREATE DATABASE "{database}"', database="")
            except InfluxError as error:
                raise InfluxDenied(
                    f"{self._address.url} has no database {database!r}, and it can't be made from here ({error}):"
                    " make it (2.x: a bucket of that name, and `influx v1 dbrp create` for it)"
                ) from None
        facts = ServerFacts(version, self.has_v2_write())
        if self._writer is None:
            self._writer = self._v2_writer() if facts.has_v2_write else _V1Writer(self._http, database)
        return facts

    def write(self, body: bytes) -> None:
        """Send lines; in the server on return. Raises ServerGone, InfluxDenied, LinesRefused."""
        if self._writer is None:
            raise ServerGone(f"{self._address.url} was not reached yet")
        self._writer.write(body)

    def query(self, text: str, *, database: str | None = None) -> list[dict[str, Any]]:
        """Every series of the answer, with `name`, `tags`, `columns` and `values`, if any; times in nanoseconds.

        Raises ServerGone, InfluxDenied, InfluxError.
        """
        return list(self.series(text, database=database))

    def series(self, text: str, *, database: str | None = None) -> Iterator[dict[str, Any]]:
        """The same piece by piece: a long series comes in several pieces."""
        parameters = {"q": text, "epoch": "ns", "chunked": "true", "chunk_size": str(_CHUNK_ROWS)}
        if name := self._address.database if database is None else database:
            parameters["db"] = name
        try:
            with self._http.stream("POST", "/query", data=parameters, timeout=_QUERY_S) as answer:
                if answer.status_code != 200:
                    answer.read()
                    _check(answer.status_code, answer.text, self._address)
                for line in answer.iter_lines():
                    yield from _series(line)
        except httpx.HTTPError as error:
            raise ServerGone(f"{self._address.url}: {_words(error)}") from error

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServerGone(f"{self._address.url}: {_words(error)}") from error

    def _v2_writer(self) -> "Writer":
        from coordinator.adapters.influx_v2 import V2Writer  # noqa: PLC0415 - influxdb-client takes a second to load

        return V2Writer(self._address, self._write_timeout_s)


class _V1Writer:
    def __init__(self, http: httpx.Client, database: str) -> None:
        self._http = http
        self._database = database

    def write(self, body: bytes) -> None:
        try:
            answer = self._http.post("/write", params={"db": self._database}, content=body)  # nanoseconds by default
        except httpx.HTTPError as error:
            raise ServerGone(_words(error)) from error
        if not answer.is_success:
            _check(answer.status_code, answer.text, None)

    def close(self) -> None:
        """The connections are the server's."""


def _check(status: int, text: str, address: InfluxAddress | None) -> None:
    """Raise what an answer that is no success means."""
    raise failure(status, text, "" if address is None else f"{address.url}: ")


def failure(status: int, text: str, where: str = "") -> InfluxError:
    """What an answer that is no success means."""
    detail = f"{where}{status} {_reason(text)}"
    match status:
        case 401:
            return InfluxDenied(f"{detail}: user, password or token is wrong or missing in the store's URL")
        case 403:
            return InfluxDenied(f"{detail}: this user or token may not do that; give it read and write access")
        case 404:
            return InfluxDenied(f"{detail}: make the database (2.x: bucket and DBRP mapping), or mend the store's URL")
        case 400 | 413 | 422:
            return LinesRefused(status, detail)
        case _:
            return ServerGone(detail)


def _series(line: str) -> Sequence[dict[str, Any]]:
    if not line:
        return ()
    answer = json.loads(line)
    found: list[dict[str, Any]] = []
    for result in (answer, *answer.get("results", ())):
        if "error" in result:
            raise InfluxError(f"the server answered: {result['error']}")
        found += result.get("series", ())
    return found


def _reason(text: str) -> str:
    try:
        answer = json.loads(text)
        reason = answer.get("error") or answer.get("message") or text
    except (ValueError, AttributeError):
        reason = text
    return " ".join(str(reason).split())[:300]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
