"""A reason why one car gets no work, with the facts and thresholds that it was found by. Pure; finds none itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet_view import FleetView
from coordinator.rules.eligibility import EXPLANATIONS, Circumstances, EligibilityLimits, Reason, Thresholds
from fleet_wire.api import ReasonView
from fleet_wire.policy import QUARTER_MINUTES

__all__ = ["REMEDIES", "explained"]

# What would have to change, and who can do that; of a pair with a job, `coordinator.explain` knows more.
REMEDIES: Final = {
    Reason.OFFLINE: "start its agent, and see that it reaches the broker",
    Reason.CAPS_UNKNOWN: "its agent tells that when it connects: look at the agent's log if this lasts",
    Reason.TELEMETRY_MISSING: "its agent is asked for it: look at the agent's log if this lasts",
    Reason.TELEMETRY_STALE: "look at its link and at its agent's log",
    Reason.CLOCK_WRONG: "set its clock, best by NTP",
    Reason.CONSENT_MISSING: "its owner agrees with `idlewheel owner policy set`; a car that does not take a version on "
    "record says why in its agent's log",
    Reason.CONSENT_REVOKED: "only its owner may agree again, with `idlewheel owner policy set CAR --purpose general`",
    Reason.OWNER_OPTED_OUT: "its owner switches it on, in the car",
    Reason.NOT_PARKED: "nothing to do: it gets work again when it is parked",
    Reason.NOT_PLUGGED_IN: "plug it in",
    Reason.UPDATE_PENDING: "nothing to do: it gets work again after the update",
    Reason.CAMP_MODE: "nothing to do: it gets work again when camp mode ends",
    Reason.SENTRY_MODE: "nothing to do: it gets work again when sentry mode ends",
    Reason.OUTSIDE_HOURS: "wait for the owner's hours, or the owner sets others (--hours)",
    Reason.CHARGE_TOO_LOW: "let it charge, or its owner sets a lower floor (--floor)",
    Reason.DEPARTURE_GUARD: "let it charge, or its owner promises less for the departure (--departure-charge)",
    Reason.BATTERY_TOO_HOT: "nothing to do: it gets work again when it has cooled down",
    Reason.COMPUTE_TOO_HOT: "nothing to do: it gets work again when it has cooled down",
    Reason.CABIN_TOO_HOT: "nothing to do: it gets work again when it has cooled down",
    Reason.LINK_METERED: "give it another link, or its owner allows metered ones (--metered)",
    Reason.LINK_WEAK: "give it a better link, or its owner asks for less (--least-mbps)",
    Reason.LINK_BUDGET_SPENT: "wait for the next month, or its owner allows more (--month-mb)",
    Reason.PRICE_TOO_HIGH: "wait for a cheaper hour, or its owner allows more (--price-ceiling); of a price that is "
    "not known, `idlewheel tariff check FILE` says until when it was",
    Reason.NOT_CHARGING: "let it charge, or its owner lets it work besides (--not-only-charging)",
    Reason.LEAVES_SOON: "nothing to do: it gets work again when it is expected to stay",
    Reason.PAY_TOO_LOW: "pay more (IDLEWHEEL_COORDINATOR_COMPUTE_MICRO_PER_H), or its owner asks less (--least-pay)",
    Reason.POWER_OVER_CAP: "limit what its computer draws, or its owner allows more (--power-cap-w)",
    Reason.QUARANTINED: "nothing to do: it gets work again by itself; its agent's log says what failed",
    Reason.DRAINING: "nothing to do: it gets work again after it has connected anew",
    Reason.CAR_REFUSES: "the car knows its own state best: see the reason that it names",
    Reason.PURPOSE_NOT_AGREED: "its owner agrees to the purpose (--purpose)",
    Reason.JOB_PRICE_CEILING: "wait for a cheaper hour, or give the job a higher ceiling",
    Reason.JOB_SHARE_REACHED: "add other cars, or give the job a greater vehicle share",
    Reason.FAILED_HERE: "nothing to do: the rows are tried on other cars",
}
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MICRO: Final = 1_000_000
_SOON_MS: Final = 600_000


@dataclass(frozen=True, slots=True)
class _Car:
    """One car as the rules saw it."""

    fleet: FleetView
    row: int
    limits: EligibilityLimits
    given: Circumstances

    def column(self, name: str) -> NDArray[Any]:
        return self.fleet.column[name][self.row : self.row + 1]

    def now(self, name: str) -> float:
        return float(self.column(name)[0])

    def threshold(self, name: str) -> float:
        thresholds = Thresholds.of(self.column, self.limits, self.given.now_ms)
        return float(getattr(thresholds, name)[0])

    @property
    def works(self) -> bool:
        return bool(self.now("was_eligible"))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """`name` is `value`, which is on the wrong side of `limit`; `relation` says how."""

    name: str
    value: float
    relation: str
    limit: float
    unit: str


def explained(
    fleet: FleetView, row: int, reason: Reason, limits: EligibilityLimits, given: Circumstances
) -> ReasonView:
    """The reason in a sentence, and where numbers were compared, both of them (None where not known)."""
    car, code = _Car(fleet, row, limits, given), reason.name.lower()
    compared = _COMPARISONS[reason](car) if reason in _COMPARISONS else None
    if compared is None:
        return ReasonView(code, _words(car, reason), remedy=REMEDIES[reason])
    value, limit, unit = compared.value, compared.limit, compared.unit
    shown = "not known" if np.isnan(value) else f"{_number(value)} {unit}"
    text = f"{compared.name} is {shown}, {compared.relation} {_number(limit)} {unit}"
    return ReasonView(code, text, None if np.isnan(value) else value, limit, unit, REMEDIES[reason])


def _stale(car: _Car) -> _Comparison | None:
    if not car.now("received_ms"):
        return None
    age_s = (car.given.now_ms - car.now("received_ms")) / 1000
    return _Comparison("the age of its last telemetry", age_s, "above the allowed", car.limits.stale_ms / 1000, "s")


def _clock(car: _Car) -> _Comparison:
    error_s, allowed_s = car.now("clock_skew_ms") / 1000, car.threshold("clock_ms") / 1000
    return _Comparison("the error of its clock", error_s, "beyond the allowed", allowed_s, "s")


def _charge(car: _Car) -> _Comparison:
    floor, charge = car.now("charge_floor_percent"), car.now("charge_percent")
    if charge >= floor:
        relation = f"and above the owner's floor of {_number(floor)} %, but work begins only at"
        return _Comparison("charge", charge, relation, car.threshold("charge_percent"), "%")
    return _Comparison("charge", charge, "below the owner's floor of", floor, "%")


def _guard(car: _Car) -> _Comparison:
    name = "the charge that it would have at its departure, if it worked,"
    expected, limit = car.threshold("expected_percent"), car.threshold("promised_percent")
    own = car.now("departure_charge_percent")
    promised = car.now("promised_charge_percent") if np.isnan(own) else own
    relation = "below the promised"
    if not car.works:
        relation = f"and with a promise of {_number(promised)} % work begins only at"
    return _Comparison(name, expected, relation, limit, "%")


def _hot(signal: str, threshold: str, name: str) -> Callable[[_Car], _Comparison]:
    def compared(car: _Car) -> _Comparison:
        relation = "and work stops at" if car.works else "and work begins only below"
        return _Comparison(f"{name} temperature", car.now(signal), relation, car.threshold(threshold), "°C")

    return compared


def _weak(car: _Car) -> _Comparison:
    relation = "below the owner's least of"
    if not car.works:
        relation = f"and with an owner's least of {_number(car.now('least_mbps'))} Mbit/s work begins only at"
    return _Comparison(
        "the rate of its link", car.now("link_rate_mbps"), relation, car.threshold("link_mbps"), "Mbit/s"
    )


def _budget(car: _Car) -> _Comparison:
    spent, budget = car.now("link_month_bytes") / _MICRO, car.now("link_budget_bytes") / _MICRO
    return _Comparison("what its link carried in this month", spent, "and its owner allows", budget, "MB")


def _price(car: _Car) -> _Comparison | None:
    price, ceiling = car.now("energy_micro_per_kwh") / _MICRO, car.now("price_ceiling_micro_per_kwh") / _MICRO
    if np.isnan(ceiling):
        return None
    return _Comparison("the price of energy", price, "and the owner's ceiling is", ceiling, "a kWh")


def _pay(car: _Car) -> _Comparison:
    pay, asked = car.given.pay_micro_per_h / _MICRO, car.now("least_pay_micro_per_h") / _MICRO
    return _Comparison("the fee for computing", pay, "below the owner's least of", asked, "an hour")


def _power(car: _Car) -> _Comparison:
    drawn, cap = car.now("compute_power_w"), car.now("power_cap_w")
    return _Comparison("what computing draws", drawn, "and the owner's cap is", cap, "W")


_COMPARISONS: Final[dict[Reason, Callable[[_Car], _Comparison | None]]] = {
    Reason.TELEMETRY_STALE: _stale,
    Reason.CLOCK_WRONG: _clock,
    Reason.CHARGE_TOO_LOW: _charge,
    Reason.DEPARTURE_GUARD: _guard,
    Reason.BATTERY_TOO_HOT: _hot("battery_temperature_c", "battery_c", "battery"),
    Reason.COMPUTE_TOO_HOT: _hot("compute_temperature_c", "compute_c", "computer"),
    Reason.CABIN_TOO_HOT: _hot("cabin_temperature_c", "cabin_c", "cabin"),
    Reason.LINK_WEAK: _weak,
    Reason.LINK_BUDGET_SPENT: _budget,
    Reason.PRICE_TOO_HIGH: _price,
    Reason.PAY_TOO_LOW: _pay,
    Reason.POWER_OVER_CAP: _power,
}


def _unheld(car: _Car) -> str:
    held, stands = int(car.now("consent_version")), int(car.now("policy_version"))
    if not held and not stands:
        return "its owner has agreed to nothing yet"
    text = (
        f"it holds version {held} of its owner's policy, and {f'version {stands}' if stands else 'none'} is on record"
    )
    if held <= stands:
        return text
    return (
        f"{text}: the ledger lost what came later, so let the owner set the policy again (idlewheel owner policy set)"
    )


def _hours(car: _Car) -> str:
    zone = int(car.now("timezone"))
    quarter, name = int(car.given.local_quarters[zone]), car.fleet.timezones[zone]
    if quarter < 0:
        return f"the time in {name} is not known, so that it counts as outside the owner's hours"
    allowed = np.flatnonzero(np.unpackbits(car.fleet.quarters[car.row]))
    if not len(allowed):
        return f"it is outside the owner's hours: there are none in {name}"
    after = allowed[allowed > quarter]
    begin = int((after if len(after) else allowed)[0])
    into_quarter = (car.given.now_ms + car.fleet.utc_offsets_ms[name]) // 60_000 % QUARTER_MINUTES
    now, begins = _time_of(quarter * QUARTER_MINUTES + into_quarter), _time_of(begin * QUARTER_MINUTES)
    return f"it is outside the owner's hours: in {name} it is {now}, and they begin {begins}"


def _time_of(minute: int) -> str:
    """Day and time of a minute of the week."""
    return f"{_DAYS[minute // 1440]} {minute // 60 % 24:02}:{minute % 60:02}"


def _leaving(car: _Car) -> str:
    left_ms, stay = car.now("departure_ms") - car.given.now_ms, car.given.stay_probability
    if 0 <= left_ms <= _SOON_MS:
        return f"it departs in {left_ms / 1000:.0f} s"
    if stay is None:
        return ""
    return f"it is expected to leave too soon: the chance that it stays another minute is {stay[car.row]:.0%}"


_WORDS: Final[dict[Reason, Callable[[_Car], str]]] = {
    Reason.TELEMETRY_STALE: lambda _: "no telemetry of it has come since it is known",
    Reason.CONSENT_MISSING: _unheld,
    Reason.CONSENT_REVOKED: lambda car: f"its owner revoked the consent with version {car.now('policy_version'):.0f}",
    Reason.OUTSIDE_HOURS: _hours,
    Reason.LEAVES_SOON: _leaving,
    Reason.QUARANTINED: lambda car: (
        f"it failed too often and rests for another {(car.now('quarantined_until_ms') - car.given.now_ms) / 1000:.0f} s"
    ),
    Reason.CAR_REFUSES: lambda car: f"the car itself refuses and names {car.fleet.refusal[car.row]}",
}
# Flags that count against a car also when it never told them.
_FLAGS: Final = {
    Reason.OWNER_OPTED_OUT: ("opted_in", "its owner lets it work"),
    Reason.NOT_PARKED: ("moving", "it is moving"),
    Reason.NOT_PLUGGED_IN: ("plugged", "it is plugged in"),
    Reason.UPDATE_PENDING: ("update_pending", "a software update waits for it"),
    Reason.CAMP_MODE: ("camp_mode", "somebody camps in it"),
    Reason.SENTRY_MODE: ("sentry_mode", "it watches its surroundings"),
    Reason.LINK_METERED: ("link_metered", "its link is metered"),
    Reason.NOT_CHARGING: ("charging", "it is charging, and its owner lets it work only then"),
}


def _words(car: _Car, reason: Reason) -> str:
    if reason in _FLAGS:
        signal, fact = _FLAGS[reason]
        return f"it has not said whether {fact}" if car.now(signal) < 0 else EXPLANATIONS[reason]
    return (_WORDS[reason](car) if reason in _WORDS else "") or EXPLANATIONS[reason]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
