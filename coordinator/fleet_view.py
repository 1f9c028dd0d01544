"""What is known of every vehicle right now, in columns. Only keeps; never decides and never forgets a vehicle."""

from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from sys import intern
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from coordinator.events import BOOLEAN_SIGNALS, NUMBER_SIGNALS, TelemetryBatch
from fleet_wire.messages import Caps, State
from fleet_wire.policy import WEEK_QUARTERS, OwnerPolicy, allowed_quarters

__all__ = ["FleetView", "TelemetryOutcome"]

_NEVER = _NO_DELAY = np.iinfo(np.int64).max
_DELAY_WINDOW_MS = 300_000
_COLUMNS: dict[str, tuple[str, float]] = {
    "online": ("?", False),
    "was_eligible": ("?", False),
    "draining": ("?", False),
    "epoch": ("i8", -1),
    "seq_epoch": ("i8", -1),
    "snapshot_epoch": ("i8", -1),
    "seq": ("i8", -1),
    "received_ms": ("i8", 0),
    "rebirth_ms": ("i8", 0),
    "slots": ("i4", 0),
    "consent_version": ("i8", 0),
    "leases": ("i4", 0),
    "backlog_ms": ("f8", 0.0),
    # Signs of life: `beat_ms` is how often the car promised them while it holds leases, 0 that it did not.
    "beat_ms": ("i4", 0),
    "heard_ms": ("i8", 0),
    "busy_since_ms": ("i8", 0),
    "silent": ("?", False),
    "rows_done": ("i8", 0),
    "energy_mwh": ("i8", 0),
    "pay_micro": ("i8", 0),
    # The owner's policy; version 0 is none. What is not limited is NaN.
    "policy_version": ("i8", 0),
    "policy_sent_ms": ("i8", 0),
    "revoked": ("?", False),
    "purposes": ("u8", 0),
    "timezone": ("i2", 0),
    "charge_floor_percent": ("f8", np.nan),
    "promised_charge_percent": ("f8", np.nan),
    "price_ceiling_micro_per_kwh": ("f8", np.nan),
    "charge_coincident_only": ("?", False),
    "metered_allowed": ("?", False),
    "least_mbps": ("f8", 0.0),
    "link_budget_bytes": ("f8", np.nan),
    "power_cap_w": ("f8", np.nan),
    "least_pay_micro_per_h": ("f8", 0.0),
    # What the coordinator holds of the car besides.
    "plugged_since_ms": ("i8", -1),
    "clock_skew_ms": ("i8", 0),
    "delay_ms": ("i8", _NO_DELAY),
    "delay_before_ms": ("i8", _NO_DELAY),
    "delay_since_ms": ("i8", 0),
    "charging_since_ms": ("i8", _NEVER),
    "energy_micro_per_kwh": ("f8", np.nan),
    "region": ("i4", 0),
    "stated_power_w": ("f8", np.nan),
    "quarantined_until_ms": ("i8", 0),
    "strikes": ("i4", 0),
    "checks_passed": ("i8", 0),
    "convictions": ("i4", 0),
    "rest_until_ms": ("i8", 0),
    "leases_kept": ("f8", 0.0),
    "leases_ended": ("f8", 0.0),
    "stay_ms": ("f8", np.nan),
    **dict.fromkeys(BOOLEAN_SIGNALS, ("i1", -1)),
    **dict.fromkeys(NUMBER_SIGNALS, ("f8", np.nan)),
}
_SIGNALS = {*BOOLEAN_SIGNALS, *NUMBER_SIGNALS}
_LAST_VERSION = 1 << 52  # a car that names a later one is not followed: the protocol ends at twice that
_FIRST_CAPACITY = 64
_MOST_PURPOSES = 64
_MOST_REGIONS = 1000  # each is a series in the store for good, and any car may make one up


@dataclass(frozen=True, slots=True)
class TelemetryOutcome:
    """What a batch of telemetry did: `gaps` are vehicles of which something was missed, by index."""

    gaps: list[int]
    applied: int
    out_of_order: int


@dataclass(slots=True)
class FleetView:
    """One row a vehicle, by `index`; `held` are the chunks of open leases by row and job.

    A vehicle costs less than 1 KiB, even with a policy of its own (`python -m benchmarks --only scheduling`).
    """

    ids: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    refusal: list[str] = field(default_factory=list)
    models: list[tuple[str, ...]] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    purpose_bits: dict[str, int] = field(default_factory=dict)
    timezones: list[str] = field(default_factory=lambda: ["UTC"])
    regions: list[str] = field(default_factory=lambda: [""])
    prices: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    utc_offsets_ms: dict[str, int] = field(default_factory=lambda: {"UTC": 0})
    held: dict[int, dict[str, set[int]]] = field(default_factory=dict)
    column: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {
            name: np.full(_FIRST_CAPACITY, value, dtype=kind) for name, (kind, value) in _COLUMNS.items()
        }
    )
    unwilling: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, dtype=np.bool_))
    quarters: NDArray[np.uint8] = field(
        default_factory=lambda: np.zeros((_FIRST_CAPACITY, WEEK_QUARTERS // 8), dtype=np.uint8)
    )
    _policies: list[bytes] = field(default_factory=list)
    _packed_last: bytes = b""

    def __len__(self) -> int:
        return len(self.ids)

    def live(self, name: str) -> NDArray[Any]:
        """The column of all known vehicles, as a view."""
        return self.column[name][: len(self.ids)]

    def row(self, vehicle: str) -> int:
        """Index of a vehicle, which becomes known by this."""
        found = self.index.get(vehicle)
        if found is not None:
            return found
        row = len(self.ids)
        if row == len(self.unwilling):
            self._grow()
        self.ids.append(vehicle)
        self.index[vehicle] = row
        self.refusal.append("")
        self.models.append(())
        self.engines.append("")
        self._policies.append(b"")
        return row

    def _grow(self) -> None:
        more = max(_FIRST_CAPACITY, len(self.unwilling) // 8)
        for name, (kind, value) in _COLUMNS.items():
            self.column[name] = np.concatenate([self.column[name], np.full(more, value, dtype=kind)])
        self.unwilling = np.concatenate([self.unwilling, np.zeros(more, dtype=np.bool_)])
        self.quarters = np.concatenate([self.quarters, np.zeros((more, WEEK_QUARTERS // 8), dtype=np.uint8)])

    def is_outdated(self, vehicle: str, state: State) -> bool:
        """Whether a birth is of an earlier epoch than the one that counts, or a Will of another."""
        row = self.row(vehicle)  # first, as it may make the columns anew
        known = int(self.column["epoch"][row])
        return state.epoch < known or (not state.online and state.epoch != known and known >= 0)

    def set_state(self, vehicle: str, state: State) -> bool:
        """Take a birth or Will that is not outdated; return whether it changed anything."""
        row = self.row(vehicle)
        known = int(self.column["epoch"][row])
        changed = bool(self.column["online"][row]) != state.online or known != state.epoch
        if known != state.epoch:
            self.column["draining"][row] = self.column["silent"][row] = False
            self.column["beat_ms"][row] = 0
        self.column["online"][row] = state.online
        self.column["epoch"][row] = state.epoch
        if self.column["seq_epoch"][row] > state.epoch:
            # Telemetry named an epoch that never was: forget it, or all that comes would be older for ever.
            self.column["seq_epoch"][row] = self.column["seq"][row] = -1
        return changed

    def region(self, vehicle: str) -> str:
        """The region that a vehicle names, empty when it is not known; may be asked in any thread."""
        row = self.index.get(vehicle)
        return "" if row is None else self.regions[self.column["region"][row]]

    def set_caps(self, vehicle: str, caps: Caps) -> bool:
        """Take what a vehicle can do; return whether it holds another consent than before."""
        row = self.row(vehicle)
        is_bound_anew = bool(self.column["consent_version"][row] != caps.consent_version)
        self.models[row] = tuple(map(intern, caps.models))
        self.engines[row] = intern(f"{caps.execution_provider} {caps.architecture} {caps.runtime_version}")
        self.column["slots"][row] = caps.slots
        self.column["consent_version"][row] = caps.consent_version
        region = self.column["region"][row] = self._region(caps.region)
        self.column["energy_micro_per_kwh"][row] = self.prices[region] if region < len(self.prices) else np.nan
        return is_bound_anew

    def _region(self, name: str) -> int:
        """Place of a region in `regions`; those beyond what is sensible count as not named."""
        if name in self.regions:
            return self.regions.index(name)
        if len(self.regions) == _MOST_REGIONS:
            return 0
        self.regions.append(name)
        return len(self.regions) - 1

    def set_prices(self, prices: NDArray[np.float64]) -> None:
        """Take what a kWh costs now in each of `regions`; NaN where nobody knows."""
        self.prices = prices
        self.live("energy_micro_per_kwh")[:] = prices[self.live("region")]

    def set_policy(self, vehicle: str, policy: OwnerPolicy) -> None:
        """Take the owner's policy, which replaces the one before."""
        row = self.row(vehicle)
        packed = _pack(policy)
        if packed != self._packed_last:  # where one operator owns the fleet, all have the same
            self._packed_last = packed
        self._policies[row] = self._packed_last
        self.quarters[row] = np.packbits(np.frombuffer(allowed_quarters(policy), dtype=np.uint8))
        if policy.timezone not in self.timezones:
            self.timezones.append(policy.timezone)
        values = {
            "policy_version": policy.version,
            "revoked": policy.revoked,
            "purposes": reduce(or_, map(self._agreed_mask, policy.purposes), 0),
            "timezone": self.timezones.index(policy.timezone),
            "charge_floor_percent": policy.charge_floor_percent,
            "promised_charge_percent": _or_nan(policy.departure_charge_percent),
            "price_ceiling_micro_per_kwh": _or_nan(policy.price_ceiling_micro_per_kwh),
            "charge_coincident_only": policy.charge_coincident_only,
            "metered_allowed": policy.link.metered_allowed,
            "least_mbps": policy.link.least_mbps,
            "link_budget_bytes": _or_nan(policy.link.month_bytes),
            "power_cap_w": _or_nan(policy.power_cap_w),
            "least_pay_micro_per_h": policy.least_pay_micro_per_h,
        }
        for name, value in values.items():
            self.column[name][row] = value

    def policy(self, vehicle: str) -> OwnerPolicy | None:
        """The policy that stands for a vehicle; None when none does."""
        row = self.index.get(vehicle)
        packed = b"" if row is None else self._policies[row]
        return OwnerPolicy(*astuple(_unpack(packed))) if packed else None

    def next_policy_version(self, vehicle: str) -> int:
        """The version after the one that stands, and after the one that the vehicle says it holds.

        Where a ledger came from a backup the vehicle's is the later one, and it takes none that is not above that.
        """
        row = self.index.get(vehicle)
        if row is None:
            return 1
        stands, held = int(self.column["policy_version"][row]), int(self.column["consent_version"][row])
        return 1 + (max(stands, held) if held < _LAST_VERSION else stands)

    def purpose_mask(self, purpose: str) -> int:
        """The bit of a purpose in the column `purposes`; 0 where no owner agreed to it, or all bits are given out."""
        place = self.purpose_bits.get(purpose)
        return 0 if place is None else 1 << place

    def _agreed_mask(self, purpose: str) -> int:
        """The same for one that an owner agrees to: only those get bits, for anybody may name one in a job."""
        if len(self.purpose_bits) < _MOST_PURPOSES:
            self.purpose_bits.setdefault(purpose, len(self.purpose_bits))
        return self.purpose_mask(purpose)

    def apply(self, batch: TelemetryBatch) -> TelemetryOutcome:
        """Take telemetry, in the order of the batch; documents older than what is known are left out."""
        rows = np.fromiter((self.row(vehicle) for vehicle in batch.vehicle), dtype=np.int64, count=len(batch))
        accepted, gap = self._in_sequence(rows, batch)
        out_of_order = len(batch) - int(np.count_nonzero(accepted))
        unknown = self.column["epoch"][rows] < 0
        gaps = sorted(set(rows[accepted & (gap | unknown)].tolist()))
        if out_of_order:
            rows = rows[accepted]
        self._store(rows, batch, accepted if out_of_order else None)
        return TelemetryOutcome(gaps, len(rows), out_of_order)

    def remember(self, latest: TelemetryBatch) -> list[int]:
        """Take what a store knows from before, for people to see; returns the rows of its vehicles.

        It counts as no telemetry of a connection, so that no vehicle works by it, and is left out where a vehicle has
        spoken since.
        """
        rows = np.fromiter((self.row(vehicle) for vehicle in latest.vehicle), dtype=np.int64, count=len(latest))
        silent = self.column["seq_epoch"][rows] < 0
        self.column["received_ms"][rows[silent]] = latest.received_ms[silent]
        signals = {name: values[silent] for name, values in latest.signals.items()}
        self._store_signals(rows[silent], signals, np.ones(int(silent.sum()), dtype=np.bool_))
        found: list[int] = rows.tolist()
        return found

    def _store(self, rows: NDArray[np.int64], batch: TelemetryBatch, only: NDArray[np.bool_] | None) -> None:
        def chosen(values: NDArray[Any]) -> NDArray[Any]:
            return values if only is None else values[only]

        self._learn_clocks(rows, chosen(batch.epoch), chosen(batch.received_ms), chosen(batch.ts_ms))
        # Of several documents of one vehicle the last one counts: assignment goes in order.
        self.column["seq_epoch"][rows] = chosen(batch.epoch)
        self.column["seq"][rows] = chosen(batch.seq)
        self.column["received_ms"][rows] = chosen(batch.received_ms)
        full = chosen(batch.snapshot)
        self.column["snapshot_epoch"][rows[full]] = chosen(batch.epoch)[full]
        self._store_signals(rows, {name: chosen(values) for name, values in batch.signals.items()}, full)
        charging, since = self.column["charging"], self.column["charging_since_ms"]
        since[rows] = np.where(charging[rows] == 1, np.minimum(since[rows], chosen(batch.received_ms)), _NEVER)
        for row, refusal, is_full in zip(rows.tolist(), chosen(batch.refusal).tolist(), full.tolist(), strict=True):
            if refusal is not None or is_full:
                self.refusal[row] = refusal or ""
                self.unwilling[row] = bool(refusal)

    def _store_signals(
        self, rows: NDArray[np.int64], signals: dict[str, NDArray[Any]], snapshot: NDArray[np.bool_]
    ) -> None:
        """A delta sets what it holds; a snapshot is everything that is known, so what it does not hold is forgotten."""
        for name, values in signals.items():
            present = values >= 0 if name in BOOLEAN_SIGNALS else ~np.isnan(values)
            present |= snapshot
            self.column[name][rows[present]] = values[present]
        if snapshot.any():
            full = rows[snapshot]
            for name in _SIGNALS - signals.keys():
                self.column[name][full] = _COLUMNS[name][1]
        stated_w = signals.get("compute_power_w")
        if stated_w is not None:
            np.fmax.at(self.column["stated_power_w"], rows, stated_w)

    def _learn_clocks(
        self,
        rows: NDArray[np.int64],
        epoch: NDArray[np.int64],
        received_ms: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
    ) -> None:
        """How far each clock is behind ours (ahead: below zero): the least delay of late, as the others also waited.

        Of late is since the last window began but one, and in this epoch: a clock may have been set before a CONNECT.
        """
        least, before, since = (self.column[name] for name in ("delay_ms", "delay_before_ms", "delay_since_ms"))
        is_new = epoch != self.column["seq_epoch"][rows]
        ended = is_new | (received_ms - since[rows] >= _DELAY_WINDOW_MS)
        if ended.any():
            turned = rows[ended]
            before[turned] = np.where(is_new[ended], _NO_DELAY, least[turned])
            least[turned] = _NO_DELAY
            since[turned] = received_ms[ended]
        np.minimum.at(least, rows, received_ms - ts_ms)
        self.column["clock_skew_ms"][rows] = np.minimum(least[rows], before[rows])

    def _in_sequence(
        self, rows: NDArray[np.int64], batch: TelemetryBatch
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which documents are newer than all before them, and which of those have a hole before them."""
        order = np.argsort(rows, kind="stable")
        sorted_rows, epoch, seq = rows[order], batch.epoch[order], batch.seq[order]
        first = np.diff(sorted_rows, prepend=-1) != 0
        before_epoch = np.where(first, self.column["seq_epoch"][sorted_rows], np.roll(epoch, 1))
        before_seq = np.where(first, self.column["seq"][sorted_rows], np.roll(seq, 1))
        newer = (epoch > before_epoch) | ((epoch == before_epoch) & (seq > before_seq))
        follows = (epoch == before_epoch) & (seq == before_seq + 1)
        accepted = np.empty(len(batch), dtype=np.bool_)
        gap = np.empty(len(batch), dtype=np.bool_)
        accepted[order] = newer
        gap[order] = ~follows & ~batch.snapshot[order]
        if newer.all():
            return accepted, gap
        return self._in_sequence_slowly(rows, batch)

    def _in_sequence_slowly(
        self, rows: NDArray[np.int64], batch: TelemetryBatch
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The same one by one: after a document that is left out, the next must be newer than those before *it*."""
        accepted = np.zeros(len(batch), dtype=np.bool_)
        gap = np.zeros(len(batch), dtype=np.bool_)
        last: dict[int, tuple[int, int]] = {}
        columns = zip(rows.tolist(), batch.epoch.tolist(), batch.seq.tolist(), batch.snapshot.tolist(), strict=True)
        for place, (row, epoch, seq, snapshot) in enumerate(columns):
            before = last.get(row) or (int(self.column["seq_epoch"][row]), int(self.column["seq"][row]))
            if (epoch, seq) > before:
                last[row] = (epoch, seq)
                accepted[place] = True
                gap[place] = not snapshot and (epoch, seq) != (before[0], before[1] + 1)
        return accepted, gap


class _PolicyFields(OwnerPolicy, array_like=True, frozen=True):
    """A policy without the names of its fields."""


_unpack = msgspec.msgpack.Decoder(_PolicyFields).decode


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _pack(policy: OwnerPolicy) -> bytes:
    """A policy without its last fields, as far as they say nothing."""
    values = list(astuple(policy))
    while values[-1] is None:
        values.pop()
    return msgspec.msgpack.encode(values)
