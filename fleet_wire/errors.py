"""What can be wrong with bytes from outside, as one error type that carries its reason. Never for our own mistakes."""

from enum import StrEnum

__all__ = ["WireError", "WireFault"]


class WireFault(StrEnum):
    """Why a message, topic or tensor was refused; counted under this name."""

    MALFORMED = "malformed"
    UNKNOWN_VERSION = "unknown_version"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    BAD_TOPIC = "bad_topic"
    FOREIGN_FLEET = "foreign_fleet"
    BAD_TENSOR = "bad_tensor"
    OVERSIZED = "oversized"
    CORRUPT = "corrupt"


class WireError(ValueError):
    """Bytes from outside that do not follow the protocol. Nothing was changed by them."""

    def __init__(self, fault: WireFault, detail: str) -> None:
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault
        self.detail = detail
