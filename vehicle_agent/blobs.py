"""Blobs over HTTP: fetched with resume and checked by their digest, or stored. Knows no model and no task."""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from io import BufferedRandom, BytesIO
from random import Random
from time import monotonic

import httpx

from fleet_wire.messages import BlobRef
from vehicle_agent.errors import BlobUnavailable

__all__ = ["Blobs"]

Sink = BytesIO | BufferedRandom

_ATTEMPTS = 5
_WRONG_TWICE = 2  # once it may have been spoilt on the way, or by what was there before; twice it is the source
_QUARANTINE_S = 60.0
_LONGEST_QUARANTINE_S = 1800.0
_MOST_QUARANTINED = 256
_FIRST_WAIT_S = 0.2
_TIMEOUT_S = 10.0
_OK, _PARTIAL, _BAD_RANGE, _TOO_MANY, _SERVER = 200, 206, 416, 429, 500


class Blobs:
    """The coordinator's blob store. `url` follows the coordinator; it is empty until one was heard of.

    `bytes_moved` counts the bodies that were sent and received, whatever became of them. A source of wrong bytes, twice
    in a row, is left alone for a while that doubles each time: a large model takes much of the link for nothing.
    """

    def __init__(self, url: str, random: Random, counters: Counter[str]) -> None:
        self.url = url
        self.bytes_moved = 0
        self._random = random
        self._counters = counters
        self._quarantined: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, ref: BlobRef, sink: Sink) -> None:
        """Complete what `sink` holds of a blob already, and check it. Raise BlobUnavailable.

        What was received stays in the sink when the network fails, so that the next attempt goes on from there.
        """
        source = f"{self.url}{ref.path}"
        self._expect_free(source, ref)
        problem = "no attempt"
        wrong = 0
        for attempt in range(_ATTEMPTS):
            await self._wait(attempt)
            try:
                await self._fetch_once(ref, sink)
            except (httpx.HTTPError, httpx.InvalidURL, _Refused) as error:
                problem = str(error) or type(error).__name__
                if isinstance(error, _Refused) and error.is_final:
                    break
                continue
            if await asyncio.to_thread(_digest, sink) == ref.digest:
                self._quarantined.pop(source, None)
                return
            sink.truncate(0)
            problem = "the bytes do not have the digest that was promised"
            self._counters["blob_digest_mismatch"] += 1
            wrong += 1
            if wrong == _WRONG_TWICE:
                self._quarantine(source)
                break
        raise BlobUnavailable(f"{source}: {problem}")

    def _expect_free(self, source: str, ref: BlobRef) -> None:
        until_s, _ = self._quarantined.get(source, (0.0, 0.0))
        left_s = until_s - monotonic()
        if left_s > 0:
            self._counters["blob_quarantined"] += 1
            raise BlobUnavailable(
                f"{source}: its bytes did not have SHA-256 {ref.digest}, and it is not asked again for {left_s:.0f} s"
            )

    def _quarantine(self, source: str) -> None:
        _, before_s = self._quarantined.pop(source, (0.0, _QUARANTINE_S / 2))
        lasts_s = min(2 * before_s, _LONGEST_QUARANTINE_S)
        self._quarantined[source] = monotonic() + lasts_s, lasts_s
        if len(self._quarantined) > _MOST_QUARANTINED:
            self._quarantined.popitem(last=False)

    async def store(self, data: bytes) -> BlobRef:
        """Store bytes under their digest. Raise BlobUnavailable."""
        digest = await asyncio.to_thread(_digest_of, data)
        path = f"/v1/blobs/{digest}"
        problem = "no attempt"
        for attempt in range(_ATTEMPTS):
            await self._wait(attempt)
            self.bytes_moved += len(data)
            try:
                answer = await self._http().put(f"{self.url}{path}", content=data)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = str(error) or type(error).__name__
                continue
            if answer.is_success:
                return BlobRef(digest, len(data), path)
            problem = f"HTTP {answer.status_code}"
            if _is_final(answer.status_code):
                break
        raise BlobUnavailable(f"{self.url}{path}: {problem}")

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _fetch_once(self, ref: BlobRef, sink: Sink) -> None:
        have = sink.seek(0, 2)
        if have == ref.size:
            return
        if have > ref.size:
            have = _restart(sink)
        headers = {"Range": f"bytes={have}-"} if have else {}
        async with self._http().stream("GET", f"{self.url}{ref.path}", headers=headers) as answer:
            if answer.status_code == _BAD_RANGE:
                _restart(sink)
                raise _Refused("the store has less of it than we do", is_final=False)
            if answer.status_code == _OK and have:
                have = _restart(sink)
            elif answer.status_code not in {_OK, _PARTIAL}:
                raise _Refused(f"HTTP {answer.status_code}", is_final=_is_final(answer.status_code))
            async for piece in answer.aiter_bytes():
                have += len(piece)
                self.bytes_moved += len(piece)
                if have > ref.size:
                    _restart(sink)
                    raise _Refused(f"it has more than the {ref.size} bytes that were promised", is_final=True)
                sink.write(piece)
        if have < ref.size:
            raise _Refused(f"it ended after {have} of {ref.size} bytes", is_final=False)

    async def _wait(self, attempt: int) -> None:
        if attempt:
            await asyncio.sleep(_FIRST_WAIT_S * 2**attempt * self._random.uniform(0.5, 1.0))

    def _http(self) -> httpx.AsyncClient:
        if not self.url:
            raise httpx.InvalidURL("no coordinator has said yet where blobs are")
        if self._client is None:
            # Range offsets count encoded bytes, so the store must not compress.
            self._client = httpx.AsyncClient(timeout=_TIMEOUT_S, headers={"Accept-Encoding": "identity"})
        return self._client


class _Refused(Exception):
    def __init__(self, problem: str, *, is_final: bool) -> None:
        super().__init__(problem)
        self.is_final = is_final


def _is_final(status: int) -> bool:
    return status < _SERVER and status != _TOO_MANY


def _restart(sink: Sink) -> int:
    sink.seek(0)
    sink.truncate()
    return 0


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(sink: Sink) -> str:
    sink.seek(0)
    return hashlib.file_digest(sink, "sha256").hexdigest()
