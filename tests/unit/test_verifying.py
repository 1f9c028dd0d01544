"""Verified jobs, told as scenes: what cars answer, what the coordinator knows, and what comes to the client."""

from collections.abc import Iterable

import msgspec
import numpy as np
import pytest

from coordinator.commands import (
    AddRows,
    Command,
    EndJob,
    EndLease,
    FindOut,
    GrantLease,
    KeepChecks,
    LookBack,
    SendControl,
    VoidAnswers,
)
from coordinator.core import Core, CorePolicy
from coordinator.events import (
    JobCancelled,
    JobSubmitted,
    ModelAdded,
    RowsFailed,
    RowsKnown,
    RowsReceived,
    TaskRefused,
    Tick,
)
from coordinator.explain import explain_job
from coordinator.model import Check, JobState, LeaseEnd, LeaseRecord
from coordinator.rules.eligibility import Reason
from coordinator.rules.sizing import SizingLimits
from coordinator.rules.verification import VerificationLimits
from coordinator.views import vehicle_views
from fleet_wire.api import TensorSpec, Tolerance, Verification
from fleet_wire.messages import Cancel, Failure, Refusal, RefusalReason, Rows, Span
from fleet_wire.tensors import encode_tensors
from tests.unit.coordinator_scenes import MODEL, arrival, job, telemetry

POLICY = CorePolicy(
    sizing=SizingLimits(probe_rows=8, lease_floor_ms=1000, lease_factor=1),
    verification=VerificationLimits(trusted_after=4, canaries=0),
)
RULES = [Verification("canaries", canary_share=1e-9), Verification("adaptive"), Verification("quorum", 2)]


class Scene:
    """One job of ten rows, of which row n is right as [n, n]; time stands still but where it says so."""

    def __init__(self, terms: Verification, *cars: str, rows: int = 10, chunk_rows: int = 10, **more: object) -> None:
        self.core = Core(POLICY, secret=b"s" * 16)
        self.rows = rows
        self.now_ms = 0
        self.client: dict[int, float] = {}
        self.ended: JobState | None = None
        self.said: list[Command] = []
        self.payloads: dict[int, bytes] = {}
        self.put(ModelAdded(MODEL))
        self.arrive(*cars)
        self.put(JobSubmitted(job("j1", rows, chunk_rows=chunk_rows, verification=terms, **more)))

    def arrive(self, *cars: str, row_ms: float = 1.0) -> None:
        for car in cars:
            for event in arrival(car, now_ms=self.now_ms):
                self.put(event)
            self.core.speeds.learn(car, MODEL.digest, row_ms)

    def put(self, event: object) -> list[Command]:
        self.said = self.core.handle(event, self.now_ms)  # type: ignore[arg-type]
        for command in self.said:
            if isinstance(command, EndJob):
                self.ended = command.state
            if hasattr(command, "answer"):
                self.payloads[command.answer.number] = command.answer.payload
            if isinstance(command, AddRows):
                self.stream(command)
        return self.said

    def stream(self, command: AddRows) -> None:
        for piece in command.rows.pieces:
            for place, row in enumerate(range(piece.start, piece.stop), piece.offset):
                assert (row in self.client) == command.rows.retracted
                if command.rows.retracted:
                    del self.client[row]
                else:
                    assert command.rows.answer is not None
                    tensors = msgspec.msgpack.decode(self.payloads[command.rows.answer])
                    self.client[row] = float(np.frombuffer(tensors[0][3], dtype="<f4").reshape(-1, 2)[place, 0])

    def lease(self, car: str) -> list[LeaseRecord]:
        """Give all cars what there is; what this one holds."""
        self.core.assign(self.now_ms)
        held = self.core.jobs["j1"].leases.values() if self.core.jobs else ()
        return [lease.record for lease in held if lease.record.vehicle == car]

    def answer(self, lease: LeaseRecord, wrong: Iterable[int] = (), by: float = 1000.0) -> list[Command]:
        rows = [slot % self.rows for slot in range(lease.start, lease.stop)]
        event = Rows("j1", 1, [Span(lease.chunk, lease.start, lease.stop)], [], None, 10.0, 5)
        specs = (TensorSpec("y", "float", [len(rows), 2]),)
        return self.put(RowsReceived(lease.vehicle, event, specs, payload([row + by * (row in wrong) for row in rows])))

    def work(self, car: str, wrong: Iterable[int] = (), by: float = 1000.0) -> None:
        for lease in self.lease(car):
            self.answer(lease, wrong, by)

    def asked(self) -> list[int]:
        return [row for command in self.said if isinstance(command, FindOut) for row in command.rows]

    def know(self, rows: Iterable[int]) -> list[Command]:
        known = tuple(rows)
        return self.put(RowsKnown("j1", known, payload(known)))

    def pass_time(self, ms: int) -> list[Command]:
        """Without that cars fall silent."""
        self.now_ms += ms
        names = self.core.fleet.ids
        self.put(telemetry(list(names), seq=1 + self.now_ms, now_ms=self.now_ms))
        return self.put(Tick())

    def open_checks(self) -> dict[int, Check]:
        check = self.core.verifying.jobs["j1"].check
        return {row: Check(check[row]) for row in np.flatnonzero(check).tolist()}

    def reason(self, car: str) -> Reason:
        return Reason(int(self.core.reasons(self.now_ms)[self.core.fleet.row(car)]))

    def convicted(self) -> set[str]:
        fleet = self.core.fleet
        return {car for car, row in fleet.index.items() if fleet.column["convictions"][row]}

    def trust(self, car: str, passed: int = 100) -> None:
        self.core.fleet.column["checks_passed"][self.core.fleet.row(car)] = passed


def conduct(scene: Scene, car: str) -> dict[str, float]:
    names = ("strikes", "convictions", "leases_ended", "rows_done", "leases")
    return {name: float(scene.core.fleet.column[name][scene.core.fleet.row(car)]) for name in names}


def payload(values: Iterable[float]) -> bytes:
    rows = np.array([[value, value] for value in values], dtype=np.float32)
    return msgspec.msgpack.encode(encode_tensors({"y": rows}))


RIGHT = {row: float(row) for row in range(10)}


def test_a_new_cars_answer_is_held_until_the_coordinator_has_computed_one_of_its_rows() -> None:
    scene = Scene(RULES[0], "new")
    scene.work("new")
    (row,) = scene.asked()
    assert (scene.client, scene.ended) == ({}, None)
    scene.know([row])
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)
    assert scene.core.counters["check_passed"] == 1


def test_a_trusted_cars_rows_count_at_once_and_its_job_ends_when_they_are_checked() -> None:
    scene = Scene(Verification("canaries", canary_share=0.4), "good")
    canaries = scene.asked()
    assert canaries
    scene.trust("good")
    scene.work("good")
    assert (scene.client, scene.ended) == (RIGHT, None)
    scene.know(canaries)
    assert scene.ended is JobState.DONE


def test_a_wrong_canary_convicts_and_takes_back_what_the_car_brought() -> None:
    scene = Scene(Verification("canaries", canary_share=0.4), "bad")
    canaries = scene.asked()
    scene.trust("bad")
    scene.work("bad", wrong=canaries[:1])
    assert len(scene.client) == 10
    said = scene.know(canaries)
    assert VoidAnswers("j1", "bad") in said
    assert scene.client == {row: float(row) for row in canaries}
    assert scene.convicted() == {"bad"}
    scene.now_ms += 1_000
    assert scene.reason("bad") is Reason.QUARANTINED
    assert scene.core.fleet.column["checks_passed"][0] == 0
    scene.arrive("good")
    for lease in scene.lease("good"):
        scene.answer(lease)
        scene.know(scene.asked())
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_a_canary_that_is_known_before_convicts_at_once_and_nothing_wrong_reaches_the_client() -> None:
    scene = Scene(Verification("canaries", canary_share=0.4), "bad", chunk_rows=10)
    scene.know(scene.asked())
    scene.trust("bad")
    scene.work("bad", wrong=range(10))
    assert set(scene.client) <= set(RIGHT)
    assert all(scene.client[row] == row for row in scene.client)
    assert scene.convicted() == {"bad"}


def test_work_in_hand_is_called_off_at_a_conviction() -> None:
    scene = Scene(RULES[0], "bad", chunk_rows=5)
    first, second = scene.lease("bad")
    scene.answer(first, wrong=range(10))
    said = scene.know(scene.asked())
    assert SendControl("bad", Cancel("j1", [second.chunk])) in said
    assert LookBack("bad", 0) in said
    before = conduct(scene, "bad")
    scene.answer(second, wrong=range(10))
    scene.put(RowsFailed("bad", Failure("j1", 1, [Span(second.chunk, second.start, second.stop)], "no")))
    scene.put(TaskRefused("bad", Refusal("j1", 1, RefusalReason.BUSY, [second.chunk])))
    scene.pass_time(60_000)
    assert conduct(scene, "bad") == before
    assert before == {"strikes": 0, "convictions": 1, "leases_ended": 1, "rows_done": 5, "leases": 0}
    assert scene.core.refusals["result_of_convicted_vehicle"] == 1
    waste = scene.core.totals.waste["convicted"]
    assert (waste.rows, waste.compute_ms, waste.energy_mwh) == (5, 10.0, 5)
    assert len(scene.client) == 1


def test_what_was_computed_before_a_conviction_does_not_come_again_though_the_clock_was_set_back() -> None:
    scene = Scene(RULES[0], "bad", chunk_rows=5)
    scene.now_ms = 5_000
    first, second = scene.lease("bad")
    scene.now_ms = 0  # by a restart
    scene.answer(first, wrong=range(10))
    scene.know(scene.asked())
    for lease in (first, second):
        scene.answer(lease)
    assert scene.core.refusals["result_of_convicted_vehicle"] == 2
    assert conduct(scene, "bad")["rows_done"] == 5


def test_a_convicted_car_that_has_work_again_is_heard_though_the_clock_was_set_back_since() -> None:
    scene = Scene(RULES[0], "bad", chunk_rows=5)
    scene.now_ms = 200_000_000
    scene.pass_time(0)
    scene.work("bad", wrong=range(10))
    scene.know(scene.asked())
    assert scene.convicted() == {"bad"}
    scene.now_ms = 0  # by a restart
    scene.core.fleet.column["quarantined_until_ms"][:] = 0
    scene.pass_time(1)
    (lease, *_) = scene.lease("bad")
    said = scene.answer(lease)
    assert "result_of_convicted_vehicle" not in scene.core.refusals
    assert EndLease("j1", lease.chunk, LeaseEnd.DONE, 0, 1) in said


def test_an_audit_by_another_car_that_agrees_lets_rows_count_and_earns_trust() -> None:
    scene = Scene(RULES[1], "one", "two", chunk_rows=10)
    scene.work("one")
    audits = scene.open_checks()
    assert audits
    assert set(audits.values()) == {Check.AUDIT}
    assert not scene.client
    scene.work("two")
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)
    passed = scene.core.fleet.column["checks_passed"]
    assert [int(passed[scene.core.fleet.row(car)]) for car in ("one", "two")] == [len(audits), 0]


@pytest.mark.parametrize("liar", ["author", "auditor"])
def test_who_contradicts_is_not_believed_but_the_coordinator(liar: str) -> None:
    scene = Scene(RULES[1], "author", "auditor")
    scene.work("author", wrong=range(10) if liar == "author" else ())
    audits = list(scene.open_checks())
    for lease in scene.lease("auditor"):
        scene.answer(lease, wrong=range(10) if liar == "auditor" else ())
    assert set(scene.open_checks().values()) == {Check.REFEREE_ALONE}
    assert not scene.client
    assert not scene.convicted()
    scene.know(audits)
    assert scene.convicted() == {liar}
    assert all(scene.client[row] == row for row in audits)
    assert (scene.ended is JobState.DONE) == (liar == "auditor")


def test_a_row_that_an_auditor_contradicts_does_not_stand_when_its_car_is_convicted_of_another() -> None:
    scene = Scene(RULES[1], "author", "auditor")
    scene.trust("author")
    scene.work("author", wrong=range(10))
    first, *others = scene.open_checks()
    assert others
    scene.work("auditor")
    assert set(scene.client) == set(range(10))
    scene.know([first])
    assert scene.convicted() == {"author"}
    assert scene.client == {first: first}
    scene.know(others)
    assert {row: scene.client[row] for row in others} == {row: row for row in others}


def test_a_row_stands_when_the_auditor_that_contradicts_it_is_convicted_of_another() -> None:
    scene = Scene(RULES[1], "author", "auditor")
    scene.trust("author")
    scene.work("author")
    first, *others = scene.open_checks()
    assert others
    scene.work("auditor", wrong=range(10))
    scene.know([first])
    assert scene.convicted() == {"auditor"}
    assert scene.client == RIGHT
    scene.know(others)
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_rows_that_only_the_auditor_of_a_convicted_car_has_answered_do_not_wait_for_a_third_car() -> None:
    scene = Scene(RULES[1], "author", "auditor")
    scene.work("author", wrong=[3])
    assert 3 in scene.open_checks()
    scene.work("auditor")
    assert scene.open_checks() == {3: Check.REFEREE_ALONE}
    scene.know([3])
    assert scene.convicted() == {"author"}
    lone = scene.asked()
    assert lone
    assert set(scene.client) == {3}
    assert scene.core.verifying.jobs["j1"].rows_checked == 1  # the others are to be checked again
    scene.know(lone)
    for _ in range(3):
        scene.work("auditor")
        scene.pass_time(10_000)
        scene.know(scene.asked())
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_outputs_are_let_go_of_when_nothing_can_be_compared_with_them_any_more() -> None:
    scene = Scene(RULES[1], "one", rows=40, chunk_rows=20)
    first, *_ = scene.lease("one")
    scene.answer(first)
    scene.arrive("two")
    for lease in scene.lease("two"):
        scene.answer(lease) if lease.start >= 40 else None
    checks = scene.core.verifying.jobs["j1"]
    assert len(checks.answers) > 2
    assert len(scene.client) == 20
    assert [kept.outputs for kept in checks.answers.values()] == [None] * len(checks.answers)


def test_an_audit_that_no_other_car_takes_is_the_coordinators() -> None:
    scene = Scene(RULES[1], "alone")
    scene.work("alone")
    audits = list(scene.open_checks())
    scene.pass_time(9_000)
    assert not scene.asked()
    scene.pass_time(1_000)
    assert scene.asked() == audits
    scene.know(audits)
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_an_audit_that_a_car_gives_back_goes_to_another() -> None:
    scene = Scene(RULES[1], "author")
    scene.work("author")
    scene.arrive("leaver")
    leases = scene.lease("leaver")
    assert leases
    scene.put(TaskRefused("leaver", Refusal("j1", 1, RefusalReason.DRAINING)))
    scene.arrive("stayer")
    scene.work("stayer")
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_an_audit_that_a_car_is_at_is_waited_for() -> None:
    scene = Scene(RULES[1], "author")
    scene.work("author")
    scene.arrive("auditor", row_ms=100_000.0)
    (lease,) = scene.lease("auditor")
    audits = list(scene.open_checks())
    scene.pass_time(10_000)
    assert scene.asked() == [row for row in audits if not lease.start <= 10 + row < lease.stop]
    assert len(scene.asked()) == len(audits) - 2


def test_a_question_without_an_answer_is_asked_again() -> None:
    scene = Scene(RULES[0], "new")
    scene.work("new")
    asked = scene.asked()
    scene.pass_time(29_000)
    assert not scene.asked()
    scene.pass_time(1_000)
    assert scene.asked() == asked


def test_a_quorum_counts_what_different_cars_agree_on() -> None:
    scene = Scene(RULES[2], "one")
    scene.work("one")
    scene.work("one")
    assert (scene.client, scene.lease("one")) == ({}, [])
    scene.arrive("two")
    scene.work("two")
    assert (scene.client, scene.ended) == (RIGHT, JobState.DONE)


def test_a_quorum_that_disagrees_asks_the_coordinator_and_convicts_who_was_wrong() -> None:
    scene = Scene(RULES[2], "good", "bad")
    for lease in scene.lease("good"):
        scene.answer(lease)
    for lease in scene.lease("bad"):
        scene.answer(lease, wrong=[3])
    assert scene.client == {row: value for row, value in RIGHT.items() if row != 3}
    scene.know(scene.asked())
    assert (scene.client, scene.ended, scene.convicted()) == (RIGHT, JobState.DONE, {"bad"})


def test_what_two_convicted_cars_agreed_on_is_taken_back_and_what_one_of_them_did_stands() -> None:
    scene = Scene(RULES[2], "bad-1", "bad-2", chunk_rows=5)
    first, *_ = scene.lease("bad-1")
    second = next(lease for lease in scene.lease("bad-2") if lease.start % 10 == first.start % 10)
    scene.answer(first, wrong=range(10))
    scene.answer(second, wrong=range(10))
    colluded = {first.start % 10 + row for row in range(5)}
    assert set(scene.client) == colluded
    rest = [lease for lease in (*scene.lease("bad-1"), *scene.lease("bad-2")) if lease.start % 10 not in colluded]
    scene.answer(rest[0], wrong=range(10), by=7.0)
    other = next(lease for lease in rest if lease.vehicle != rest[0].vehicle)
    scene.answer(other)
    assert set(scene.asked()) == set(RIGHT) - colluded
    scene.know(scene.asked())
    assert scene.convicted() == {rest[0].vehicle}
    assert set(scene.client) == set(RIGHT)
    checks = scene.core.verifying.jobs
    assert not checks or not checks["j1"].rows_retracted


def test_a_car_that_answers_two_slots_of_a_row_is_refused_the_second() -> None:
    scene = Scene(RULES[2], "car")
    (lease,) = scene.lease("car")
    scene.put(TaskRefused("car", Refusal("j1", 1, RefusalReason.BUSY, [lease.chunk])))
    scene.arrive("other")
    taken = scene.lease("other")
    scene.now_ms += 2_000
    again = [each for each in scene.lease("car") if each.start // 10 != lease.start // 10]
    assert taken
    assert again
    scene.answer(again[0])
    scene.answer(lease)
    assert scene.core.refusals["result_second_of_a_row"] == 1
    assert not scene.client


@pytest.mark.parametrize("terms", RULES, ids=lambda terms: terms.rule)
def test_a_row_on_which_the_model_fails_everywhere_is_given_up_when_the_coordinator_says_so(
    terms: Verification,
) -> None:
    scene = Scene(terms, "one", "two", rows=1, chunk_rows=1, max_attempts=1)
    lease = [*scene.lease("one"), *scene.lease("two")][0]
    scene.put(RowsFailed(lease.vehicle, Failure("j1", 1, [Span(lease.chunk, lease.start, lease.stop)], "no")))
    assert scene.asked() == [0]
    scene.put(RowsKnown("j1", (0,), None, "division by zero"))
    assert scene.ended is JobState.FAILED
    assert not scene.client


def test_a_row_that_failed_at_the_only_car_that_may_answer_it_is_tried_there_again() -> None:
    scene = Scene(RULES[2], "one", "two", rows=1, chunk_rows=1, max_attempts=2)
    (first,) = scene.lease("one")
    scene.answer(first)
    for _ in range(2):
        assert not scene.asked()
        (lease,) = scene.lease("two")
        scene.put(RowsFailed("two", Failure("j1", 1, [Span(lease.chunk, lease.start, lease.stop)], "no")))
    scene.know(scene.asked())
    assert (scene.client, scene.ended) == ({0: 0.0}, JobState.DONE)


def test_a_row_that_failed_does_not_wait_for_a_car_that_was_convicted() -> None:
    scene = Scene(RULES[0], "bad", rows=2, chunk_rows=2, max_attempts=2)
    scene.work("bad", wrong=range(2))
    scene.know(scene.asked())
    assert scene.convicted() == {"bad"}
    scene.arrive("good")
    for _ in range(2):
        (lease,) = scene.lease("good")
        scene.put(RowsFailed("good", Failure("j1", 1, [Span(lease.chunk, lease.start, lease.stop)], "no")))
    assert scene.asked() == [lease.start]


def test_a_car_that_only_says_that_the_model_fails_does_no_harm() -> None:
    scene = Scene(RULES[0], "one", rows=1, chunk_rows=1, max_attempts=1)
    (lease,) = scene.lease("one")
    scene.put(RowsFailed("one", Failure("j1", 1, [Span(lease.chunk, 0, 1)], "no")))
    scene.know([0])
    assert (scene.client, scene.ended) == ({0: 0.0}, JobState.DONE)


def test_a_car_with_many_open_checks_gets_no_more_rows_until_they_are_decided() -> None:
    scene = Scene(RULES[1], "fast", rows=2_000, chunk_rows=200)
    for _ in range(20):
        scene.work("fast")
    progress = scene.core.jobs["j1"]
    assert progress.paused == {"fast"}
    assert not scene.lease("fast")
    answered = int(np.count_nonzero(progress.answered >= 0))
    assert 400 < answered < 900
    scene.pass_time(10_000)
    scene.know(scene.asked())
    assert not progress.paused
    assert scene.lease("fast")


def test_a_tolerance_of_the_job_decides_what_agrees() -> None:
    loose = Verification("quorum", 2, tolerances={"y": Tolerance(absolute=0.5)})
    scene = Scene(loose, "one", "two")
    for lease in scene.lease("one"):
        scene.answer(lease)
    for lease in scene.lease("two"):
        scene.answer(lease, wrong=range(10), by=0.4)
    assert scene.ended is JobState.DONE


def test_checks_of_a_job_that_was_cancelled_go_with_it() -> None:
    scene = Scene(RULES[0], "new")
    scene.work("new")
    row = scene.asked()
    scene.core.handle(JobCancelled("j1"), 0)
    assert not scene.core.verifying.jobs
    assert scene.know(row) == []


def test_what_rows_wait_for_is_said() -> None:
    scene = Scene(RULES[2], "one")
    scene.work("one")
    said = explain_job(scene.core, scene.core.jobs["j1"], 0)
    assert said.advice == [
        "10 rows held for checks, of which 0 are open",
        "each row needs 2 different cars, and 1 car may work for it",
    ]
    assert (said.job.verification, said.job.rows_held, said.job.rows_done) == ("quorum 2", 10, 0)
    scene = Scene(RULES[0], "new")
    scene.work("new")
    said = explain_job(scene.core, scene.core.jobs["j1"], 0)
    assert said.advice == [
        "10 rows held for checks, of which 1 are open",
        "the coordinator itself is to compute 1 of its rows",
    ]
    scene.know(scene.asked())
    (car,) = vehicle_views(scene.core, 0)
    assert (car.trust, car.convictions) == (1, 0)


def test_a_job_that_is_not_verified_is_none_of_this() -> None:
    scene = Scene(Verification(), "one")
    assert not scene.core.verifying.jobs
    assert not [command for command in scene.said if isinstance(command, KeepChecks | FindOut | GrantLease)]
