"""How far a car's clock is off, told from the delays of its telemetry, and births that outrank what telemetry says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import Core
from coordinator.events import ModelAdded, TelemetryBatch, VehicleState
from coordinator.fleet_view import FleetView
from coordinator.rules.eligibility import Reason
from fleet_wire.messages import State
from tests.unit.coordinator_scenes import MODEL, arrival, telemetry

MINUTE_MS = 60_000
FAR_MS = 1 << 53


def document(seq: int, *, sent_ms: int, received_ms: int, epoch: int = 1, vehicle: str = "v1") -> TelemetryBatch:
    batch = telemetry([vehicle], epoch, seq, now_ms=received_ms)
    return replace(batch, ts_ms=np.array([sent_ms], dtype=np.int64))


def skew(fleet: FleetView, vehicle: str = "v1") -> int:
    return int(fleet.column["clock_skew_ms"][fleet.row(vehicle)])


def test_the_least_delay_is_what_a_clock_is_off_by() -> None:
    fleet = FleetView()
    for seq, delay_ms in enumerate([900, 40, 30_000, 70]):
        fleet.apply(document(seq, sent_ms=10_000, received_ms=10_000 + delay_ms))
    assert skew(fleet) == 40


def test_a_clock_that_is_ahead_counts_below_zero() -> None:
    fleet = FleetView()
    fleet.apply(document(0, sent_ms=100_000, received_ms=10_000))
    assert skew(fleet) == -90_000


@pytest.mark.parametrize("sent_ms", [0, FAR_MS])
def test_times_at_the_ends_of_the_range_are_taken_as_a_wrong_clock(sent_ms: int) -> None:
    fleet = FleetView()
    fleet.apply(document(0, sent_ms=sent_ms, received_ms=1_760_000_000_000))
    assert skew(fleet) == 1_760_000_000_000 - sent_ms
    assert fleet.column["received_ms"][0] == 1_760_000_000_000
    assert fleet.column["charge_percent"][0] == 80.0


def test_a_clock_that_is_set_right_is_right_after_two_windows_at_the_latest() -> None:
    fleet = FleetView()
    fleet.apply(document(0, sent_ms=90_000, received_ms=0))
    seen = []
    for seq in range(1, 12):
        now_ms = seq * MINUTE_MS
        fleet.apply(document(seq, sent_ms=now_ms - 50, received_ms=now_ms))
        seen.append(skew(fleet))
    assert seen == [-90_000] * 9 + [50] * 2


def test_a_clock_that_falls_behind_is_noticed_after_two_windows_at_the_latest() -> None:
    fleet = FleetView()
    for seq in range(12):
        now_ms = seq * MINUTE_MS
        fleet.apply(document(seq, sent_ms=now_ms if seq == 0 else now_ms - 80_000, received_ms=now_ms))
    assert skew(fleet) == 80_000


def test_a_new_epoch_forgets_the_clock_of_the_last() -> None:
    fleet = FleetView()
    fleet.apply(document(0, sent_ms=90_000, received_ms=0))
    fleet.apply(document(0, sent_ms=1_000, received_ms=1_020, epoch=2))
    assert skew(fleet) == 20


def test_what_is_out_of_order_says_nothing_of_the_clock() -> None:
    fleet = FleetView()
    fleet.apply(document(5, sent_ms=1_000, received_ms=1_020))
    outcome = fleet.apply(document(5, sent_ms=99_000, received_ms=1_030))
    assert (outcome.out_of_order, skew(fleet)) == (1, 20)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, FAR_MS)), min_size=1, max_size=20))
def test_every_car_of_a_batch_is_judged_by_its_own_documents(sent: list[tuple[str, int]]) -> None:
    fleet, now_ms = FleetView(), 1_760_000_000_000
    seqs = {"a": 0, "b": 0}
    parts = []
    for vehicle, sent_ms in sent:
        parts.append(document(seqs[vehicle], sent_ms=sent_ms, received_ms=now_ms, vehicle=vehicle))
        seqs[vehicle] += 1
    fleet.apply(joined(parts))
    for vehicle in {vehicle for vehicle, _ in sent}:
        assert skew(fleet, vehicle) == now_ms - max(ms for name, ms in sent if name == vehicle)


def test_a_birth_outranks_telemetry_of_an_epoch_that_never_was() -> None:
    fleet = FleetView()
    fleet.set_state("v1", State(online=True, epoch=3))
    fleet.apply(document(FAR_MS, sent_ms=0, received_ms=0, epoch=FAR_MS))
    assert fleet.apply(document(0, sent_ms=0, received_ms=0, epoch=3)).out_of_order == 1
    fleet.set_state("v1", State(online=True, epoch=3))
    assert fleet.apply(document(0, sent_ms=0, received_ms=0, epoch=3)).applied == 1
    assert (fleet.column["seq_epoch"][0], fleet.column["seq"][0]) == (3, 0)


Numbers = st.integers(0, 3) | st.integers(FAR_MS - 2, FAR_MS)


@given(st.lists(st.tuples(st.sampled_from("ab"), Numbers, Numbers, st.integers(0, FAR_MS)), max_size=30))
def test_a_batch_does_what_its_documents_do_one_by_one(said: list[tuple[str, int, int, int]]) -> None:
    parts = [
        document(seq, sent_ms=sent_ms, received_ms=place, epoch=epoch, vehicle=vehicle)
        for place, (vehicle, epoch, seq, sent_ms) in enumerate(said)
    ]
    singly, at_once = FleetView(), FleetView()
    outcomes = [singly.apply(part) for part in parts]
    if parts:
        outcome = at_once.apply(joined(parts))
        assert outcome.applied == sum(each.applied for each in outcomes)
        assert outcome.out_of_order == sum(each.out_of_order for each in outcomes)
    for name in ("seq_epoch", "seq", "received_ms", "charge_percent", "plugged"):
        np.testing.assert_array_equal(singly.live(name), at_once.live(name))


def joined(parts: list[TelemetryBatch]) -> TelemetryBatch:
    names = ("vehicle", "received_ms", "ts_ms", "epoch", "seq", "snapshot", "refusal")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    signals = {name: np.concatenate([part.signals[name] for part in parts]) for name in parts[0].signals}
    return TelemetryBatch(**columns, signals=signals)


def test_a_wrong_clock_takes_the_car_off_work_and_is_counted_once_a_change() -> None:
    core = Core()
    for event in [ModelAdded(MODEL), *arrival("v1", now_ms=10_000)]:
        core.handle(event, 10_000)  # type: ignore[arg-type]

    def reason_after(seq: int, *, ahead_ms: int, epoch: int) -> Reason:
        now_ms = 10_000 + 100 * seq
        core.handle(VehicleState("v1", State(online=True, epoch=epoch)), now_ms)
        core.handle(document(seq, sent_ms=now_ms + ahead_ms, received_ms=now_ms, epoch=epoch), now_ms)
        return Reason(int(core.reasons(now_ms)[0]))

    assert reason_after(2, ahead_ms=0, epoch=1) is Reason.ELIGIBLE
    assert [reason_after(seq, ahead_ms=60_000, epoch=1) for seq in (3, 4, 5)] == [Reason.CLOCK_WRONG] * 3
    assert core.refusals["telemetry_clock_wrong"] == 1
    assert reason_after(6, ahead_ms=0, epoch=2) is Reason.ELIGIBLE
    assert reason_after(7, ahead_ms=60_000, epoch=2) is Reason.CLOCK_WRONG
    assert core.refusals["telemetry_clock_wrong"] == 2
