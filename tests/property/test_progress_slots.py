"""Slots of verified jobs under any order of giving, answering, taking back, closing and opening again."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.model import LeaseRecord
from coordinator.progress import JobProgress, Range
from fleet_wire.api import Verification
from fleet_wire.messages import Span
from tests.unit.coordinator_scenes import job

ROWS = 30
CARS = ("car-1", "car-2", "car-3")


class SlotMachine(RuleBasedStateMachine):
    """Answers are marked as whoever verifies them does: by the number of the car."""

    @initialize(terms=st.sampled_from([Verification("quorum", 2), Verification("quorum", 3), Verification("adaptive")]))
    def begin(self, terms: Verification) -> None:
        self.progress = JobProgress.fresh(job(rows=ROWS, verification=terms))
        self.progress.cars = {car: number for number, car in enumerate(CARS)}
        self.slots = self.progress.layers * ROWS

    def owners(self, slot: int) -> list[str]:
        """Whose a slot is, by answers and leases."""
        number = int(self.progress.answered[slot])
        held = [lease.record for lease in self.progress.leases.values()]
        return ([CARS[number]] if number >= 0 else []) + [
            each.vehicle for each in held if each.start <= slot < each.stop
        ]

    @rule(car=st.sampled_from(CARS), rows=st.integers(1, 12), count=st.integers(1, 3), split=st.booleans())
    def take(self, car: str, rows: int, count: int, split: bool) -> None:
        progress = self.progress
        free = {slot for start, stop in progress.free for slot in range(start, stop) if not progress.settled[slot]}
        mine = {slot % ROWS for slot in range(self.slots) if car in self.owners(slot)}
        taken: list[Range] = []
        with progress.taking(car, lambda _: True) as taking:
            for _ in range(2 if split else 1):
                taken += taking.chunks(rows, count)
        slots = [slot for start, stop in taken for slot in range(start, stop)]
        given = [slot % ROWS for slot in slots]
        assert set(slots) <= free
        assert len(slots) == len(set(slots))
        assert not mine & set(given), "a car got two slots of one row"
        assert len(given) == len(set(given)), "a car got two slots of one row at once"
        assert all(start // ROWS == (stop - 1) // ROWS and stop - start <= rows for start, stop in taken)
        allowed = [s for s in free if s % ROWS not in mine and not (car in progress.paused and s < ROWS)]
        assert bool(taken) == bool(allowed)
        assert not [slot for slot in slots if car in progress.paused and slot < ROWS]
        if taken:
            first = progress.next_chunk
            leases = [LeaseRecord("j1", first + n, *piece, car, 1, 0, 9) for n, piece in enumerate(taken)]
            progress.grant(leases, 1.0, [9.0] * len(leases))

    @rule(car=st.sampled_from(CARS))
    def pause(self, car: str) -> None:
        self.progress.paused ^= {car}

    @precondition(lambda self: self.progress.granted)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Perhaps for a lease that has ended, as long as the rows are not the car's by another."""
        progress = self.progress
        lease = data.draw(st.sampled_from(list(progress.granted.values())))
        start = data.draw(st.integers(lease.start, lease.stop - 1))
        stop = data.draw(st.integers(start + 1, lease.stop))
        pieces, _, _ = progress.accept([Span(lease.chunk, start, stop)])
        for piece in pieces:
            progress.answered[piece.start : piece.stop] = progress.cars[lease.vehicle]

    @precondition(lambda self: self.progress.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.progress.release(data.draw(st.sampled_from(sorted(self.progress.leases))))

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        slots = data.draw(st.sets(st.integers(0, self.slots - 1), max_size=9))
        self.progress.close(np.array(sorted(s for s in slots if not self.progress.settled[s]), dtype=np.int64))
        self.progress.completed()

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        """Only slots that nobody holds: whoever takes an answer back has ended the leases of its car."""
        leased = {s for each in self.progress.leases.values() for s in range(each.record.start, each.record.stop)}
        slots = data.draw(st.sets(st.integers(0, self.slots - 1), min_size=1, max_size=9))
        again = np.array(sorted(s for s in slots if self.progress.settled[s] and s not in leased), dtype=np.int64)
        if len(again):
            self.progress.answered[again] = -1
            self.progress.reopen(again)
            assert self.progress.free[0][0] == again[0]

    @invariant()
    def every_slot_is_settled_leased_or_free_once(self) -> None:
        progress = getattr(self, "progress", None)
        if progress is None:
            return
        settled = {slot for slot in range(self.slots) if progress.settled[slot]}
        free = [slot for start, stop in progress.free for slot in range(start, stop)]
        waiting = [slot for slot in free if slot not in settled]
        records = [lease.record for lease in progress.leases.values()]
        leased = [slot for record in records for slot in range(record.start, record.stop)]
        assert progress.left == self.slots - len(settled)
        assert progress.rows_free == len(free) == len(set(free))
        assert len(leased) == len(set(leased)) == progress.rows_leased
        assert not set(waiting) & set(leased)
        assert set(waiting) | set(leased) | settled == set(range(self.slots))
        assert all(start // ROWS == (stop - 1) // ROWS for start, stop in progress.free), "a run crosses a layer's edge"


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_quorum_gives_what_a_row_still_lacks_before_the_next_rows() -> None:
    progress = JobProgress.fresh(job(rows=2000, verification=Verification("quorum", 2)))
    assert list(progress.free) == [(2000, 3024), (0, 1024), (3024, 4000), (1024, 2000)]
