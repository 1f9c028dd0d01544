"""Plays the demo's job: submits and follows it, kills one agent that holds work, collects the rows that stream in."""

import asyncio
import threading
import time
from collections.abc import Callable

from fleet_wire.api import JobView, StatementLine, VehicleView
from fleet_wire.tensors import Array
from idlewheel.client import Client, Job
from idlewheel.demo.comparison import RowCollector
from idlewheel.demo.screen import Show
from idlewheel.demo.stage import Stage
from idlewheel.demo.story import Answer, Story
from idlewheel.errors import JobFailed
from idlewheel.examples import Example, ExampleRows

__all__ = ["DemoFailed", "Player"]

_POLL_S = 0.2
_READY_S = 60.0
_JOB_S = 600.0
# One agent is killed as soon as this share of the rows is done and it holds work.
_KILL_AT = 0.25


class DemoFailed(Exception):
    """The demo could not be shown to its end; the text says why."""


class Player:
    """One job on one stage. `collected` has what came."""

    def __init__(self, stage: Stage, example: Example, rows: ExampleRows, story: Story, show: Show) -> None:
        self.collected = RowCollector(len(rows))
        self._stage = stage
        self._example = example
        self._rows = rows
        self._story = story
        self._show = show
        self._started_s = 0.0

    async def play(self, model: bytes) -> tuple[JobView, list[StatementLine], float]:
        """Return the job as it ended, the sums of its receipts for each car, and the seconds to the last row.

        Raises DemoFailed.
        """
        with Client(self._stage.local.url) as client:
            await self._until_cars_known(client)
            await self._stage.begin()
            self._show.phase("computing")
            self._started_s = time.monotonic()
            job = await asyncio.to_thread(client.submit, model, self._rows.inputs, name=self._example.name)
            streamed = _stream(Client(self._stage.local.url), job.id, self._came)
            try:
                async with asyncio.timeout(_JOB_S):
                    while not streamed.done():
                        await self._poll(client, job)
                        await asyncio.wait([streamed], timeout=_POLL_S)
            except TimeoutError:
                raise DemoFailed(f"the job has not ended after {_JOB_S:.0f} s") from None
            wall_s = await streamed - self._started_s
            ended = await self._poll(client, job)
            return ended, await asyncio.to_thread(lambda: client.statement("vehicle", job=job.id)), wall_s

    async def _until_cars_known(self, client: Client) -> None:
        until_s = time.monotonic() + _READY_S
        while not _all_known(views := await asyncio.to_thread(client.vehicles), len(self._stage.fleet.cars)):
            self._story.poll(0.0, views, None)
            self._show.refresh(self._stage.clock(0))
            if time.monotonic() > until_s:
                raise DemoFailed(f"{len(views)} of {len(self._stage.fleet.cars)} cars are known after {_READY_S:.0f} s")
            await asyncio.sleep(_POLL_S)
        self._story.poll(0.0, views, None)

    async def _poll(self, client: Client, job: Job) -> JobView:
        vehicles, view = await asyncio.to_thread(lambda: (client.vehicles(), job.status()))
        at_s = time.monotonic() - self._started_s
        self._show.events(self._story.poll(at_s, vehicles, view))
        victim = next((each for each in vehicles if each.id == self._stage.victim), None)
        if victim is not None and self._kills(victim, view):
            self._stage.victim_host.kill()
            self._show.events([self._story.was_killed(at_s, victim.id, victim.leases)])
        self._show.refresh(self._stage.clock(at_s))
        return view

    def _kills(self, victim: VehicleView, job: JobView) -> bool:
        due = job.state == "running" and job.rows_done >= _KILL_AT * job.rows
        return due and victim.leases > 0 and victim.id not in self._story.killed

    def _came(self, start: int, piece: dict[str, Array]) -> None:
        self.collected.add(start, piece)
        answers = enumerate(self._example.answers(piece), start)
        self._story.rows_came(Answer(row, self._rows.titles[row], text) for row, text in answers)


def _all_known(views: list[VehicleView], cars: int) -> bool:
    return len(views) == cars and all(view.online and view.plugged is not None for view in views)


def _stream(client: Client, job: str, came: Callable[[int, dict[str, Array]], None]) -> "asyncio.Future[float]":
    """Call `came` for every piece as it arrives; the future has the time (monotonic) of the end.

    In a thread that nobody waits for: a stream can't be interrupted, and on the way out nothing else comes.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[float] = loop.create_future()

    def end(error: Exception | None) -> None:
        if ended.cancelled():
            return
        if error is None:
            ended.set_result(time.monotonic())
        else:
            ended.set_exception(error)

    def follow() -> None:
        outcome: Exception | None = None
        try:
            for start, piece in client.job(job).rows():
                loop.call_soon_threadsafe(came, start, piece)
        except JobFailed:
            pass  # the comparison shows what is missing
        except Exception as error:  # noqa: BLE001 - handed over to whoever waits for the future
            outcome = error
        finally:
            client.close()
        if not loop.is_closed():
            loop.call_soon_threadsafe(end, outcome)

    threading.Thread(target=follow, name="rows", daemon=True).start()
    return ended
