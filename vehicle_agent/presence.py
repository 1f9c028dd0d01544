"""What the vehicle says about itself: its epoch, and its telemetry as snapshots and deltas. Never sends it."""

from copy import copy
from pathlib import Path

from msgspec import UNSET

from fleet_wire.messages import Telemetry
from fleet_wire.signals import SIGNAL_PATHS, Signals, changed_signals
from vehicle_agent.disk import write_whole

__all__ = ["EpochFile", "TelemetryStream"]


class EpochFile:
    """A number on the disk that grows with every CONNECT."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self) -> int:
        """Return the epoch for a new CONNECT; it is on the disk before this returns."""
        epoch = self._read() + 1
        self._write(epoch)
        return epoch

    def raise_to(self, epoch: int) -> None:
        """Let the next epoch be above one that was seen at the broker, as after the disk was lost."""
        if epoch > self._read():
            self._write(epoch)

    def _read(self) -> int:
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):  # nothing, or not what we wrote: the broker's copy will correct us
            return 0

    def _write(self, epoch: int) -> None:
        write_whole(self._path, str(epoch).encode())


class TelemetryStream:
    """The telemetry of one epoch: numbers the documents and remembers what was sent last."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._seq = 0
        self._sent = Signals()

    def snapshot(self, signals: Signals, now_ms: int) -> Telemetry:
        """All signals."""
        self._sent = copy(signals)  # a delta changes it
        return self._document(signals, now_ms, snapshot=True)

    def delta(self, signals: Signals, now_ms: int) -> Telemetry | None:
        """What changed since it was last sent, None when nothing did.

        A signal that is not known any more can't be told by a delta: then it is a snapshot.
        """
        delta = changed_signals(self._sent, signals)
        if _names(self._sent) - _names(signals):
            return self.snapshot(signals, now_ms)
        names = _names(delta)
        if not names:
            return None
        for name in names:
            setattr(self._sent, name, getattr(delta, name))
        return self._document(delta, now_ms, snapshot=False)

    def _document(self, signals: Signals, now_ms: int, *, snapshot: bool) -> Telemetry:
        document = Telemetry(self._epoch, self._seq, now_ms, snapshot, signals)
        self._seq += 1
        return document


def _names(signals: Signals) -> set[str]:
    return {name for name in SIGNAL_PATHS if getattr(signals, name) is not UNSET}
