"""Says which rows of jobs that have ended stand by the word of a car that was convicted since. Takes none back."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from coordinator.brain import Brain
from coordinator.commands import LookBack
from coordinator.errors import StoreUnavailable
from coordinator.ports import Ledger

__all__ = ["Hindsight"]

_log = logging.getLogger(__name__)


class Hindsight:
    """Answers `LookBack` in the log, once a conviction, and by the counter `rows_too_late`.

    Asks the ledger for one job at a time, so that no commit waits for long. What waits is forgotten with the process.
    """

    def __init__(self, brain: Brain, ledger: Ledger, counters: Counter[str]) -> None:
        self._brain = brain
        self._ledger = ledger
        self._counters = counters
        self._waiting: dict[str, int] = {}
        self._wake = asyncio.Event()

    def put(self, commands: Sequence[LookBack]) -> None:
        """Queue convictions; no more than there are cars, as the first of a car's convictions that wait covers all."""
        for command in commands:
            self._waiting.setdefault(command.vehicle, command.since_ms)
        self._wake.set()

    async def run(self) -> None:
        """Look back until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                vehicle = next(iter(self._waiting))
                try:
                    await self._look(vehicle, self._waiting.pop(vehicle))
                except StoreUnavailable as error:
                    _log.warning("%s was convicted; what it brought to ended jobs is not known: %s", vehicle, error)

    async def _look(self, vehicle: str, since_ms: int) -> None:
        ask, ledger = self._brain.with_ledger, self._ledger
        jobs = await ask(ledger.ended_jobs_answered, vehicle, since_ms)
        found = {job: rows for job in jobs if (rows := await ask(ledger.rows_unconfirmed, job, vehicle))}
        if found:
            self._counters["rows_too_late"] += sum(found.values())
            listed = ", ".join(f"{rows} of job {job}" for job, rows in found.items())
            _log.warning(
                "%s was convicted of wrong rows; rows of ended jobs stand by its word alone: %s",
                vehicle,
                listed,
            )
