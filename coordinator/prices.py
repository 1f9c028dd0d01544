"""What energy costs every vehicle now, and what a lease that is granted now promises. Looks tariffs up; makes none."""

from collections import Counter
from dataclasses import dataclass, field
from math import isnan
from zoneinfo import ZoneInfo

import numpy as np

from coordinator.fleet_view import FleetView
from coordinator.rules.months import Month, month_of
from coordinator.rules.pay import PayTerms
from coordinator.rules.tariff import Tariffs

__all__ = ["Prices", "Promise"]

Promise = tuple[int, int, int, int]
"""The last fields of a LeaseRecord: consent version, tariff, fee and month."""


@dataclass(slots=True)
class Prices:
    """Keeps the fleet view's column `energy_micro_per_kwh`, and counts how often a region was without a price."""

    tariffs: Tariffs
    terms: PayTerms
    zone: ZoneInfo
    every_ms: int
    fleet: FleetView
    counters: Counter[str]
    _looked_ms: int = -1
    _month: Month = field(default_factory=lambda: Month(0, 0, 0))

    def update(self, now_ms: int) -> bool:
        """Look up the price of each region, now and then and when there is a new one; say whether any changed.

        A clock that was set back is no reason to wait.
        """
        fleet = self.fleet
        if len(fleet.prices) == len(fleet.regions) and 0 <= now_ms - self._looked_ms < self.every_ms:
            return False
        self._looked_ms = now_ms
        prices = np.array([self.tariffs.price(region, now_ms) for region in fleet.regions], dtype=np.float64)
        if np.array_equal(prices, fleet.prices, equal_nan=True):
            return False
        lost = np.isnan(prices)
        lost[: len(fleet.prices)] &= ~np.isnan(fleet.prices)
        if lost.any():
            self.counters["region_price_unknown"] += int(np.count_nonzero(lost))
        fleet.set_prices(prices)
        return True

    def promise(self, row: int, now_ms: int) -> Promise:
        """What a lease for a vehicle relies on and promises; where energy costs less than nothing, no refund."""
        if now_ms not in self._month:
            self._month = month_of(now_ms, self.zone)
        price = self.fleet.column["energy_micro_per_kwh"].item(row)
        tariff = 0 if isnan(price) else max(0, int(price))
        consent = self.fleet.column["policy_version"].item(row)
        return consent, tariff, self.terms.compute_micro_per_h, self._month.number
