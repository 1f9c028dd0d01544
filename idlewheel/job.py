"""A job at the coordinator: where it stands, its rows as they arrive, and its result. Submits nothing."""

import time
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

import msgspec

from fleet_wire.api import FailedRowView, JobExplanation, JobView, RowsFrame
from fleet_wire.bundle import decode_bundle
from fleet_wire.errors import WireError
from fleet_wire.tensors import Array, decode_tensors
from idlewheel.errors import JobFailed, Unreachable
from idlewheel.exchange import Exchange

__all__ = ["Job"]

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.25  # also the most that a job's end is noticed late


class Job:
    """A job at the coordinator. Iterating over it yields its rows as they arrive, see `rows`."""

    def __init__(self, exchange: Exchange, job: str, patience_s: float) -> None:
        self.id = job
        self._exchange = exchange
        self._patience_s = patience_s
        self._path = f"/v1/jobs/{quote(job, safe='')}"

    def __repr__(self) -> str:
        return f"Job({self.id!r} at {self._exchange.url})"

    def __iter__(self) -> Iterator[tuple[int, dict[str, Array]]]:
        return self.rows()

    def status(self) -> JobView:
        """Where the job stands now. Raises Refused, Unreachable."""
        return self._exchange.ask("GET", self._path, JobView)

    def cancel(self) -> JobView:
        """End the job; rows that are done stay. Raises Refused, Unreachable."""
        return self._exchange.ask("DELETE", self._path, JobView)

    def rows(self, retracted: Callable[[int, int], None] | None = None) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield (first row, outputs by name) as rows are accepted, in no order, each row once, until the job is done.

        Of a job that is verified a row may come a second time, and then the later one counts: the car that it came from
        was found to answer wrongly. `retracted` is called with such rows' start and stop (excluded) when that is found,
        before they come again. Goes on where it was after a broken connection. Raises JobFailed, Refused, Unreachable.
        """
        after = 0
        patience = _Patience(self._patience_s)
        while True:
            try:
                for frame in self._frames(after):
                    if retracted is not None:
                        for start, stop in frame.retracted:
                            retracted(start, stop)
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
        patience = _Patience(self._patience_s)
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
        return self._exchange.ask("GET", f"{self._path}/failures", list[FailedRowView])

    def why(self) -> JobExplanation:
        """Why it stands where it stands. Raises Refused (also when it has ended), Unreachable."""
        return self._exchange.ask("GET", f"{self._path}/why", JobExplanation)

    def result(self, timeout_s: float | None = None, *, partial: bool = False) -> dict[str, Array]:
        """Wait for the end, then return all outputs by name, their rows in the order of the inputs.

        With `partial` a job that failed or was cancelled gives the rows that it has; the others are NaN, zero or empty.
        Raises JobFailed, which names rows that failed, TimeoutError, Refused (also when open axes came out so that
        there is no one array: iterate instead, and when `partial` finds no row), Unreachable.
        """
        view = self.wait(timeout_s)
        if not partial:
            self._expect_done(view.state, view.error)
        patience = _Patience(self._patience_s)
        while True:
            try:
                return self._download("?partial=1" if partial else "")
            except Unreachable as error:
                patience.wait_after(error)

    def _download(self, query: str) -> dict[str, Array]:
        data = bytearray()  # not bytes, so that the arrays can be written to
        with self._exchange.stream("GET", f"{self._path}/result{query}") as answer:
            for piece in answer.iter_raw():
                data += piece
        try:
            return decode_bundle(memoryview(data))
        except WireError as error:
            raise Unreachable(f"the result came damaged: {error.detail}") from None

    def _frames(self, after: int) -> Iterator[RowsFrame]:
        with self._exchange.stream("GET", f"{self._path}/rows?after={after}") as answer:
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
