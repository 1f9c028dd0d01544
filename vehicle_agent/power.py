"""What work draws, by the car's own meters or by its settings. Pure."""

from msgspec import UNSET

from fleet_wire.signals import Signals

__all__ = ["PowerMeter"]


class PowerMeter:
    """`compute_w` is what all threads draw above idle, computing all the time, `awake_w` what being awake draws."""

    def __init__(self, compute_w: float, awake_w: float) -> None:
        self._set_compute_w = compute_w
        self._set_awake_w = awake_w
        self.compute_w = compute_w
        self.awake_w = awake_w

    def learn(self, signals: Signals, power_share: float = 1.0) -> None:
        """Take a reading, of a car that may draw this part of its full power.

        An idle computer draws nothing: what it drew last while this cable is in is remembered.
        """
        if signals.plugged is not True:
            self.compute_w = self._set_compute_w
        elif signals.compute_power_w is not UNSET and signals.compute_power_w > 0:
            self.compute_w = signals.compute_power_w / power_share
        if signals.charging is True:  # which keeps it awake anyway
            self.awake_w = 0.0
        else:
            self.awake_w = self._set_awake_w if signals.awake_power_w is UNSET else signals.awake_power_w
