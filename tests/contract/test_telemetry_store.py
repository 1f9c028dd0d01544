"""What the coordinator needs of any telemetry store."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from coordinator.adapters.duckdb_store import DuckdbStore
from coordinator.adapters.influx_server import InfluxAddress
from coordinator.adapters.influx_store import InfluxStore
from coordinator.errors import StoreUnavailable
from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, PlugHistory, TelemetryBatch
from coordinator.metrics import MetricPoint
from coordinator.ports import HOUR_MS, HOURS_KEPT_MS, RAW_KEPT_MS, TelemetryStore
from tests.influx import VERSIONS, InfluxProcess

STORES = ["duckdb", *VERSIONS]
Document = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a store is; opened in this process or in another."""

    folder: Path
    url: str = ""

    def make(self) -> TelemetryStore:
        if not self.url:
            return DuckdbStore(self.folder / "telemetry")
        address = InfluxAddress.parse(self.url)
        return InfluxStore(address, self.folder / "telemetry", lambda vehicle: "", Random(1))


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path, influx_of: Callable[[str], InfluxProcess]) -> Place:
    return Place(tmp_path, "" if kind == "duckdb" else influx_of(kind).url(f"db{uuid4().hex}"))


@pytest.fixture
def store(place: Place) -> Iterator[TelemetryStore]:
    opened = place.make()
    opened.open()
    yield opened
    opened.close()


def batch_of(*documents: Document) -> TelemetryBatch:
    """Columns of documents; what a document leaves out is absent."""

    def column(name: str, absent: Any, kind: Any) -> Any:
        return np.array([document.get(name, absent) for document in documents], dtype=kind)

    return TelemetryBatch(
        vehicle=column("vehicle", "v1", object),
        received_ms=column("received_ms", 1000, np.int64),
        ts_ms=column("ts_ms", 900, np.int64),
        epoch=column("epoch", 1, np.int64),
        seq=column("seq", 0, np.int64),
        snapshot=column("snapshot", False, np.bool_),
        refusal=column("refusal", None, object),
        signals={
            **{name: column(name, -1, np.int8) for name in BOOLEAN_SIGNALS},
            **{name: column(name, np.nan, np.float64) for name in NUMBER_SIGNALS},
        },
    )


def documents_of(batch: TelemetryBatch) -> list[Document]:
    """The documents of a batch without what is absent."""
    columns = {
        **{
            name: getattr(batch, name).tolist()
            for name in ("vehicle", "received_ms", "ts_ms", "epoch", "seq", "snapshot")
        },
        "refusal": batch.refusal.tolist(),
        **{
            name: [None if value < 0 else bool(value) for value in batch.signals[name].tolist()]
            for name in BOOLEAN_SIGNALS
        },
        **{
            name: [None if value != value else value for value in batch.signals[name].tolist()]
            for name in NUMBER_SIGNALS
        },
    }
    return [
        {name: values[row] for name, values in columns.items() if values[row] is not None} for row in range(len(batch))
    ]


FULL: Document = {
    "vehicle": "v1",
    "received_ms": 5000,
    "ts_ms": 4900,
    "epoch": 1 << 52,
    "seq": (1 << 53) - 1,
    "snapshot": True,
    "refusal": "owner said no",
    **{name: index % 2 == 0 for index, name in enumerate(BOOLEAN_SIGNALS)},
    **{name: index + 0.1 for index, name in enumerate(NUMBER_SIGNALS)},
}


def test_a_full_document_comes_back_as_it_was(store: TelemetryStore) -> None:
    store.append([batch_of(FULL)])
    assert documents_of(store.history("v1", 0, 10)) == [FULL]
    assert documents_of(store.latest()) == [FULL]


def test_columns_come_back_with_their_types(store: TelemetryStore) -> None:
    store.append([batch_of({"moving": True})])
    for batch in (store.latest(), store.history("v1", 0, 1)):
        assert (batch.vehicle.dtype, batch.refusal.dtype, batch.snapshot.dtype) == (object, object, np.bool_)
        assert {column.dtype for column in (batch.received_ms, batch.ts_ms, batch.epoch, batch.seq)} == {np.dtype("i8")}
        assert {batch.signals[name].dtype for name in BOOLEAN_SIGNALS} == {np.dtype("i1")}
        assert {batch.signals[name].dtype for name in NUMBER_SIGNALS} == {np.dtype("f8")}


def test_an_empty_store_has_nothing(store: TelemetryStore) -> None:
    store.append([])
    assert (len(store.latest()), len(store.history("v1", 0, 10))) == (0, 0)


def test_absent_stays_absent_and_is_not_false_or_zero(store: TelemetryStore) -> None:
    sent = [
        {"vehicle": "v1", "received_ms": 1, "ts_ms": 1, "epoch": 1, "seq": 0, "snapshot": False, "plugged": False},
        {"vehicle": "v1", "received_ms": 2, "ts_ms": 2, "epoch": 1, "seq": 1, "snapshot": False, "refusal": ""},
        {"vehicle": "v1", "received_ms": 3, "ts_ms": 3, "epoch": 1, "seq": 2, "snapshot": False, "charge_percent": 0.0},
    ]
    store.append([batch_of(*sent)])
    assert documents_of(store.history("v1", 0, 10)) == sent


def test_a_batch_needs_columns_only_for_the_signals_that_occur(store: TelemetryStore) -> None:
    moving, charge = batch_of({"moving": True}), batch_of({"seq": 1, "charge_percent": 5.0})
    sparse = [
        replace(moving, signals={"moving": moving.signals["moving"]}),
        replace(charge, signals={"charge_percent": charge.signals["charge_percent"]}),
    ]
    store.append(sparse)
    assert documents_of(store.history("v1", 0, 10)) == documents_of(moving) + documents_of(charge)


def test_latest_takes_every_signal_from_the_last_document_that_has_it(store: TelemetryStore) -> None:
    store.append([batch_of({"plugged": True, "charge_percent": 40.0, "refusal": "hot", "snapshot": True})])
    store.append([batch_of({"seq": 1, "received_ms": 2000, "ts_ms": 1900, "charge_percent": 41.5})])
    store.append([batch_of({"vehicle": "v2", "moving": True}, {"seq": 2, "received_ms": 3000, "ts_ms": 2900})])
    assert documents_of(store.latest()) == [
        {
            "vehicle": "v1",
            "received_ms": 3000,
            "ts_ms": 2900,
            "epoch": 1,
            "seq": 2,
            "snapshot": True,
            "refusal": "hot",
            "plugged": True,
            "charge_percent": 41.5,
        },
        {"vehicle": "v2", "received_ms": 1000, "ts_ms": 900, "epoch": 1, "seq": 0, "snapshot": True, "moving": True},
    ]


def test_latest_goes_by_epoch_and_sequence_whatever_the_order_of_arrival(store: TelemetryStore) -> None:
    store.append(
        [batch_of({"epoch": 2, "seq": 0, "charge_percent": 80.0}, {"epoch": 1, "seq": 9, "charge_percent": 10.0})]
    )
    store.append([batch_of({"epoch": 1, "seq": 10, "charge_percent": 11.0})])
    (document,) = documents_of(store.latest())
    assert (document["epoch"], document["seq"], document["charge_percent"]) == (2, 0, 80.0)


def test_history_is_of_one_vehicle_since_a_time_in_order_of_arrival(store: TelemetryStore) -> None:
    store.append(
        [
            batch_of(*({"vehicle": f"v{n % 2}", "received_ms": 1000 + n, "seq": n} for n in range(100))),
            batch_of({"vehicle": "v0", "received_ms": 2000, "seq": 3}),
        ]
    )
    found = store.history("v0", 1090, 100)
    assert found.seq.tolist() == [90, 92, 94, 96, 98, 3]
    assert store.history("v0", 1090, 2).seq.tolist() == [90, 92]
    assert len(store.history("v9", 0, 100)) == 0


def readings_of(history: PlugHistory) -> list[tuple[str, int, int]]:
    return list(zip(history.vehicle.tolist(), history.received_ms.tolist(), history.plugged.tolist(), strict=True))


def test_plug_history_has_every_change_in_order_of_time(store: TelemetryStore) -> None:
    said = [(0, "v1", True), (1, "v2", False), (2, "v1", True), (3, "v1", False), (4, "v2", False), (5, "v1", True)]
    store.append(
        [batch_of(*({"vehicle": v, "received_ms": HOUR_MS + ms, "seq": ms, "plugged": p} for ms, v, p in said))]
    )
    store.append([batch_of({"vehicle": "v3", "received_ms": HOUR_MS + 6, "charge_percent": 1.0})])
    found = store.plug_history(0)
    assert (found.vehicle.dtype, found.received_ms.dtype, found.plugged.dtype) == (object, np.int64, np.int8)
    changes = [(v, HOUR_MS + ms, int(p)) for ms, v, p in said if ms not in (2, 4)]
    assert [each for each in readings_of(found) if each in changes] == changes
    assert {(v, p) for v, ms, p in readings_of(found) if (v, ms, p) not in changes} <= {("v1", 1), ("v2", 0)}
    assert readings_of(store.plug_history(HOUR_MS + 5)) == [("v1", HOUR_MS + 5, 1)]


def test_plug_history_says_what_stays_the_same_once_an_hour(store: TelemetryStore) -> None:
    minutes = range(60, 6 * 60, 5)
    store.append(
        [batch_of(*({"received_ms": minute * 60_000, "seq": minute, "plugged": True} for minute in minutes))],
    )
    found = store.plug_history(0)
    assert {ms // HOUR_MS for ms in found.received_ms.tolist()} == set(range(1, 6))
    assert set(found.plugged.tolist()) == {1}
    assert len(found) < len(minutes) / 2


def test_old_documents_are_forgotten_and_their_hours_kept(store: TelemetryStore) -> None:
    now_ms = RAW_KEPT_MS + 400 * HOUR_MS + 1
    hours = [3, 4, 5, 200]  # with a gap longer than what is rolled up at once
    old = [
        {"received_ms": hour * HOUR_MS + ms, "seq": hour * 10 + ms, "plugged": hour == 4, "charge_percent": 50.0 + ms}
        for hour in hours
        for ms in range(3)
    ]
    young = [{"received_ms": now_ms - HOUR_MS + ms, "seq": 5000 + ms, "plugged": True} for ms in range(2)]
    store.append([batch_of(*old, *young)])
    for _ in range(4):
        store.maintain(now_ms)
    assert store.history("v1", 0, 100).seq.tolist() == [5000, 5001]
    forgotten = [(v, ms // HOUR_MS, p) for v, ms, p in readings_of(store.plug_history(0)) if ms < 300 * HOUR_MS]
    assert forgotten == [("v1", 3, 0), ("v1", 4, 1), ("v1", 5, 0), ("v1", 200, 0)]
    store.maintain(now_ms + HOURS_KEPT_MS + 2 * HOUR_MS)
    assert len(store.plug_history(0)) == 0


def test_maintaining_again_changes_nothing(store: TelemetryStore) -> None:
    now_ms = 50 * HOUR_MS
    store.append(
        [batch_of(*({"received_ms": n * HOUR_MS // 4, "seq": n, "plugged": n % 3 == 0} for n in range(1, 190)))]
    )
    history = documents_of(store.history("v1", 0, 1000))
    assert len(history) == 189
    for _ in range(3):
        store.maintain(now_ms)
    plugs = readings_of(store.plug_history(0))
    store.maintain(now_ms)
    assert readings_of(store.plug_history(0)) == plugs
    assert documents_of(store.history("v1", 0, 1000)) == history


def test_telemetry_is_kept_while_another_thread_asks_and_maintains(store: TelemetryStore) -> None:
    vehicles, hours = 50, 30
    ended = threading.Event()
    failures: list[StoreUnavailable] = []

    def ask_and_maintain() -> None:
        try:
            while not ended.is_set():
                store.maintain(RAW_KEPT_MS + 10 * HOUR_MS)
                store.plug_history(0)
                assert len(store.latest()) <= vehicles
        except StoreUnavailable as error:
            failures.append(error)

    store.append([batch_of({"received_ms": RAW_KEPT_MS + 40 * HOUR_MS, "seq": 5_000})])
    asking = threading.Thread(target=ask_and_maintain)
    asking.start()
    for hour in range(hours):
        documents = [
            {"vehicle": f"v{n}", "received_ms": RAW_KEPT_MS + (11 + hour) * HOUR_MS + n, "seq": hour, "plugged": True}
            for n in range(vehicles)
        ]
        store.append([batch_of(*documents)])
    ended.set()
    asking.join()
    assert failures == []
    assert store.history("v7", 0, 100).seq.tolist() == list(range(hours))
    for _ in range(3):
        store.maintain(RAW_KEPT_MS + 80 * HOUR_MS)
    assert {ms // HOUR_MS - RAW_KEPT_MS // HOUR_MS for ms in store.plug_history(0).received_ms.tolist()} == set(
        range(11, 11 + hours)
    )


def test_points_disturb_nothing(store: TelemetryStore) -> None:
    store.append([batch_of({"seq": 1})])
    store.record([MetricPoint("fleet_reason", 1000, {"reason": 'parked, \n"so" = \\'}, {"vehicles": 1})])
    store.append([batch_of({"seq": 2})])
    assert store.history("v1", 0, 10).seq.tolist() == [1, 2]
    assert store.status().trouble == ""


def test_many_vehicles_fit(store: TelemetryStore) -> None:
    vehicles = 20_000
    for seq in range(3):
        store.append(
            [batch_of(*({"vehicle": f"v{n:05d}", "seq": seq, "charge_percent": n / vehicles} for n in range(vehicles)))]
        )
    latest = store.latest()
    assert latest.vehicle.tolist() == [f"v{n:05d}" for n in range(vehicles)]
    assert set(latest.seq.tolist()) == {2}


def test_a_batch_that_cannot_be_kept_leaves_nothing(store: TelemetryStore) -> None:
    good, bad = batch_of({"seq": 1}), batch_of({"vehicle": None})
    with pytest.raises(StoreUnavailable):
        store.append([good, bad])
    assert len(store.history("v1", 0, 10)) == 0
    store.append([good])
    assert len(store.history("v1", 0, 10)) == 1


def test_what_was_appended_is_there_after_reopening(place: Place) -> None:
    for seq in range(3):
        store = place.make()
        store.open()
        store.append([batch_of({"seq": seq})])
        assert store.history("v1", 0, 10).seq.tolist() == list(range(seq + 1))
        store.close()


def append_until_killed(place: Place, report: Connection) -> None:
    store = place.make()
    store.open()
    for seq in range(1_000_000):
        store.append([batch_of({"seq": seq}), batch_of({"vehicle": "v2", "seq": seq})])
        report.send(seq)


def test_what_was_appended_survives_a_kill(place: Place) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=append_until_killed, args=(place, theirs))
    child.start()
    theirs.close()
    assert child.pid is not None
    while ours.recv() < 50:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    last = 50
    try:
        while True:
            last = ours.recv()
    except EOFError:
        pass
    store = place.make()
    store.open()
    for vehicle in ("v1", "v2"):
        kept = store.history(vehicle, 0, 1_000_000).seq.tolist()
        assert kept == list(range(len(kept)))
        assert len(kept) in (last + 1, last + 2)  # the one under way may have been kept as well
    store.close()


def test_a_place_that_cannot_be_used_is_named(place: Place) -> None:
    (place.folder / "telemetry").write_bytes(b"this is something else, and long enough to be looked at" * 200)
    with pytest.raises(StoreUnavailable, match="telemetry"):
        place.make().open()


def test_a_store_that_is_not_open_says_so(place: Place) -> None:
    store = place.make()
    with pytest.raises(StoreUnavailable):
        store.latest()
    store.close()
