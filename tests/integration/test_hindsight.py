"""What a convicted car brought to jobs that have ended is said, from a real ledger."""

import asyncio
import logging
from collections import Counter
from pathlib import Path

import pytest

from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.brain import Brain
from coordinator.commands import AddAnswer, AddJob, AddRows, EndJob, GrantLease, LookBack
from coordinator.core import Core
from coordinator.errors import StoreUnavailable
from coordinator.hindsight import Hindsight
from coordinator.model import AcceptedRows, Answer, JobState, LeaseRecord, Piece, ReceiptPart
from fleet_wire.api import Verification
from tests.system.deployment import until
from tests.unit.coordinator_scenes import job

PIECES = (Piece(0, 6, 0),)


class Unreadable(SqliteLedger):
    """Its file is damaged somewhere."""

    def ended_jobs_answered(self, vehicle: str, since_ms: int) -> list[str]:
        raise StoreUnavailable("ledger_damaged", "restore it")


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        (SqliteLedger, 6, "car-1 was convicted of wrong rows; rows of ended jobs stand by its word alone: 6 of job j1"),
        (Unreadable, 0, "car-1 was convicted; what it brought to ended jobs is not known: restore it"),
    ],
)
async def test_rows_of_ended_jobs_are_counted_and_named_once(
    kind: type[SqliteLedger], rows: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters: Counter[str] = Counter()
    ledger = kind(tmp_path / "ledger.sqlite")
    brain = Brain(Core(), ledger)
    await brain.open()
    lease = LeaseRecord("j1", 0, 0, 6, "car-1", 1, 10, 100)
    answer = Answer(0, "j1", "car-1", "cpu", PIECES, b"y", False, 20)
    accepted = AcceptedRows(1, "j1", "car-1", PIECES, None, None, 20, 0.0, 0, 0, answer=0)
    writes = [
        AddJob(job("j1", 6, verification=Verification("adaptive"))),
        GrantLease(lease),
        AddAnswer(answer, (ReceiptPart(lease, 6, 1, 1, 1, 1),)),
        AddRows(accepted),
        EndJob("j1", JobState.DONE, 30),
    ]
    await brain.with_ledger(ledger.commit, writes)
    hindsight = Hindsight(brain, ledger, counters)
    with caplog.at_level(logging.WARNING):
        looking = asyncio.create_task(hindsight.run())
        hindsight.put([LookBack("car-2", 0), LookBack("car-1", 0), LookBack("car-1", 31)])
        await until(lambda: any("car-1" in record.message for record in caplog.records), "it is said")
        looking.cancel()
    assert [record.message for record in caplog.records if "car-1" in record.message] == [said]
    assert counters["rows_too_late"] == rows
    await brain.close()
