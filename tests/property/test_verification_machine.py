"""Verified jobs under any order of events, with cars that lie: no wrong row stands, and no job hangs."""

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from coordinator.checks import JobChecks
from coordinator.commands import FindOut, LedgerWrite, SendTask
from coordinator.core import Core, CorePolicy
from coordinator.events import (
    JobSubmitted,
    ModelAdded,
    RowsFailed,
    RowsKnown,
    RowsReceived,
    TaskRefused,
    Tick,
    VehicleState,
)
from coordinator.model import Check, LeaseRecord
from coordinator.rules.quarantine import QuarantineLimits
from coordinator.rules.scheduling import SchedulingLimits
from coordinator.rules.sizing import SizingLimits
from coordinator.rules.verification import VerificationLimits
from fleet_wire.api import TensorSpec, Verification
from fleet_wire.messages import Failure, Refusal, RefusalReason, Rows, Span, State
from fleet_wire.tensors import encode_tensors
from tests.property.plain_ledger import PlainLedger
from tests.property.test_restart_equality import assert_equal_as_promised
from tests.unit.coordinator_scenes import MODEL, arrival, job, telemetry

ROWS = 40
HONEST = ("car-1", "car-2", "car-3")
LIARS = ("liar-1", "liar-2")
POLICY = CorePolicy(
    sizing=SizingLimits(probe_rows=3, lease_floor_ms=500, lease_factor=1),
    scheduling=SchedulingLimits(
        copied_share=0.5, least_gain_ms=1, copy_factor=1.0, cold_ms=1, copies_every_ms=0, patience_ms=1_000
    ),
    quarantine=QuarantineLimits(free_strikes=1, first_ms=500, longest_ms=4_000),
    verification=VerificationLimits(trusted_after=6, audit_wait_ms=300),
    back_off_ms=5,
)


def said(rows: list[int], lie: str = "", salt: int = 0) -> NDArray[np.float32]:
    """What the model makes of rows, or what a car says that it does."""
    right = np.array([[row + 1.0, row * 2.0] for row in rows], dtype=np.float32)
    lies = {
        "random": right + np.float32(1 + salt),
        "constant": np.full_like(right, -7.0),
        "subtle": right * np.float32(1.25) + np.float32(0.25),
        "colluding": right + np.float32(1000),
    }
    return lies.get(lie, right)


def payload_of(values: NDArray[np.float32]) -> bytes:
    return msgspec.msgpack.encode(encode_tensors({"y": values}))


class VerificationMachine(RuleBasedStateMachine):
    """Liars lie in every row. Cars that collude are fewer than a quorum, and alone where pairs of cars decide."""

    @initialize(
        terms=st.sampled_from(
            [
                Verification("canaries", canary_share=0.1),
                Verification("adaptive"),
                Verification("adaptive", wrong_share=0.1),
                Verification("quorum", 2),
                Verification("quorum", 3),
            ]
        ),
        lies=st.permutations(["random", "constant", "subtle", "colluding"]),
        both=st.booleans(),
        chunk_rows=st.sampled_from([None, 1, 7]),
        bad_row=st.sampled_from([None, None, 13]),
    )
    def begin(
        self, terms: Verification, lies: list[str], both: bool, chunk_rows: int | None, bad_row: int | None
    ) -> None:
        self.core = Core(POLICY, secret=b"s" * 16)
        self.memory = PlainLedger()
        self.now_ms = 0
        self.epochs = dict.fromkeys((*HONEST, *LIARS), 0)
        self.sent: list[LeaseRecord] = []
        self.asked: list[int] = []
        self.lies = dict(zip(LIARS, lies, strict=False))
        if both and terms.quorum == 3:
            self.lies = dict.fromkeys(LIARS, "colluding")
        self.bad_row = bad_row
        self.salt = 0
        self.feed(ModelAdded(MODEL))
        self.feed(JobSubmitted(job("j1", ROWS, chunk_rows=chunk_rows, max_attempts=2, verification=terms)))

    def feed(self, event: object) -> None:
        self.now_ms += 1
        commands = self.core.handle(event, self.now_ms)  # type: ignore[arg-type]
        commands += self.core.assign(self.now_ms)
        self.memory.keep([command for command in commands if isinstance(command, LedgerWrite)])
        self.sent += [lease for command in commands if isinstance(command, SendTask) for lease in command.leases]
        for command in commands:
            if isinstance(command, FindOut):
                self.asked = list(dict.fromkeys([*self.asked, *command.rows]))  # what is not answered is asked again

    def answer(self, lease: LeaseRecord, start: int, stop: int) -> None:
        self.salt += 1
        values = said([slot % ROWS for slot in range(start, stop)], self.lies.get(lease.vehicle, ""), self.salt)
        rows = Rows("j1", 1, [Span(lease.chunk, start, stop)], [], None, 10.0, 5)
        self.feed(RowsReceived(lease.vehicle, rows, (TensorSpec("y", "float", [stop - start, 2]),), payload_of(values)))

    def running(self) -> list[JobChecks]:
        return list(self.core.verifying.jobs.values()) if hasattr(self, "core") else []

    @rule(car=st.sampled_from((*HONEST, *LIARS)))
    def arrive(self, car: str) -> None:
        self.epochs[car] += 1
        for event in arrival(car, self.epochs[car], now_ms=self.now_ms):
            self.feed(event)

    @rule(car=st.sampled_from((*HONEST, *LIARS)))
    def vanish(self, car: str) -> None:
        self.feed(VehicleState(car, State(False, self.epochs[car])))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), keep=st.booleans(), whole=st.booleans())
    def compute(self, data: st.DataObject, keep: bool, whole: bool) -> None:
        """A car answers for a lease or a part of it, perhaps of one that has ended, perhaps once more later."""
        lease = data.draw(st.sampled_from(self.sent))
        start = lease.start if whole else data.draw(st.integers(lease.start, lease.stop - 1))
        stop = lease.stop if whole else data.draw(st.integers(start + 1, lease.stop))
        if not keep:
            self.sent.remove(lease)
        self.answer(lease, start, stop)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.sent))
        self.feed(TaskRefused(lease.vehicle, Refusal("j1", 1, RefusalReason.BUSY, [lease.chunk])))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """Perhaps it is the row, perhaps the car only says so."""
        lease = data.draw(st.sampled_from(self.sent))
        start = data.draw(st.integers(lease.start, lease.stop - 1))
        stop = data.draw(st.sampled_from([start + 1, lease.stop]))
        self.feed(RowsFailed(lease.vehicle, Failure("j1", 1, [Span(lease.chunk, start, stop)], "no")))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def find_out(self, data: st.DataObject) -> None:
        rows = sorted(data.draw(st.sets(st.sampled_from(self.asked), min_size=1)))
        self.found_out(rows)

    def found_out(self, rows: list[int]) -> None:
        self.asked = [row for row in self.asked if row not in rows]
        fine = tuple(row for row in rows if row != self.bad_row)
        if fine:
            self.feed(RowsKnown("j1", fine, payload_of(said(list(fine)))))
        if len(fine) < len(rows):
            self.feed(RowsKnown("j1", (13,), None, "it fails"))

    @rule(pass_ms=st.integers(0, 3_000))
    def tick(self, pass_ms: int) -> None:
        self.now_ms += pass_ms
        self.feed(Tick())

    @rule()
    def restart(self) -> None:
        before = self.core
        self.core = Core(POLICY, secret=b"s" * 16)
        self.core.restore(self.memory.snapshot(), self.now_ms)
        self.asked = []
        assert_equal_as_promised(before, self.core, self.now_ms)
        for car, epoch in self.epochs.items():
            if before.fleet.column["online"][before.fleet.row(car)]:
                for event in arrival(car, epoch, now_ms=self.now_ms):
                    self.feed(event)

    @invariant()
    def what_counts_is_what_clients_have(self) -> None:
        for checks in self.running():
            progress = checks.progress
            assert set(np.flatnonzero(checks.source >= 0).tolist()) == self.memory.jobs["j1"].shown.keys()
            assert progress.rows_done == len(self.memory.jobs["j1"].shown)
            assert progress.failed == self.memory.jobs["j1"].failed
            assert checks.checks_open == np.count_nonzero(checks.check)
            waiting = set(np.flatnonzero(checks.check >= Check.REFEREE).tolist())
            assert checks.to_ask.keys() | checks.asked.keys() == waiting
            assert checks.audits.keys() == set(np.flatnonzero(checks.check == Check.AUDIT).tolist())
            assert (~checks.needed(np.arange(ROWS)).reshape(-1) == progress.settled).all()

    @invariant()
    def no_car_has_two_opinions_of_a_row(self) -> None:
        for checks in self.running():
            cars = checks.progress.answered.reshape(checks.progress.layers, ROWS)
            for row in range(ROWS):
                known = [car for car in cars[:, row].tolist() if car >= 0]
                assert len(known) == len(set(known))

    @invariant()
    def no_wrong_row_counts_but_of_cars_that_are_believed(self) -> None:
        if hasattr(self, "memory"):
            for row, value in self.memory.jobs["j1"].values.items():
                assert np.allclose(value, said([row])[0], rtol=1e-3), "a wrong row reached the client"

    @invariant()
    def only_liars_are_convicted(self) -> None:
        fleet = self.core.fleet if hasattr(self, "core") else None
        assert fleet is None or not [car for car in HONEST if fleet.column["convictions"][fleet.row(car)]]

    def teardown(self) -> None:
        """When honest cars stay and the coordinator answers itself, every job comes to its end."""
        if not hasattr(self, "core"):
            return
        for car in HONEST:
            self.arrive(car)
        for _ in range(400):
            if not self.core.jobs:
                break
            if self.asked:
                self.found_out(self.asked[:8])
            for lease in [lease.record for lease in self.core.jobs["j1"].leases.values()] if self.core.jobs else ():
                if self.core.jobs and lease.chunk in self.core.jobs["j1"].leases:
                    self.answer(lease, lease.start, lease.stop)
            self.now_ms += 50
            self.feed(telemetry([*HONEST], seq=self.now_ms, now_ms=self.now_ms))
            self.feed(Tick())
        assert not self.core.jobs, "the job hangs"
        kept = self.memory.jobs["j1"]
        assert sorted([*kept.values, *kept.failed]) == list(range(ROWS))
        assert not any(kept.checks.values()), "the job ended before all was checked"
        self.no_wrong_row_counts_but_of_cars_that_are_believed()


TestVerification = VerificationMachine.TestCase
TestVerification.settings = settings(max_examples=20, stateful_step_count=50, deadline=None)
