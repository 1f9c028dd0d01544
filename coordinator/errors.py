"""Errors that reach people, each with its code, and whose fault it was. Vendor exceptions never leave their adapter."""

__all__ = [
    "BadTariff",
    "CoordinatorError",
    "LedgerHeld",
    "LedgerLost",
    "Rejected",
    "ResourceMissing",
    "StoreUnavailable",
]


class CoordinatorError(Exception):
    """An error of the coordinator; `code` is for programs, `detail` says to a person what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class BadTariff(CoordinatorError):
    """Theirs, the operator's: a tariff file that cannot be relied on. Found at start, before anything is promised."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad_tariff", detail)


class Rejected(CoordinatorError):
    """Theirs: a request or a model that cannot be accepted. Nothing was changed."""


class ResourceMissing(CoordinatorError):
    """Theirs: a job, vehicle, model or blob that is not here."""


class StoreUnavailable(CoordinatorError):
    """Ours: a store did not do what it was asked."""


class LedgerHeld(StoreUnavailable):
    """Nobody's: another coordinator writes this ledger, and this one may wait to take over."""

    def __init__(self, detail: str) -> None:
        super().__init__("ledger_held", detail)


class LedgerLost(StoreUnavailable):
    """Nobody's: another coordinator has taken over. What was not committed before is its to do."""

    def __init__(self, detail: str) -> None:
        super().__init__("ledger_taken_over", detail)
