"""Messages to bytes and back, with content types that carry the version. Never touches a socket or a file."""

from typing import Any, Generic, TypeVar, cast

import msgspec

from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import (
    Beat,
    Cancel,
    Caps,
    CoordinatorState,
    Drain,
    Failure,
    Notice,
    Rebirth,
    Refusal,
    Rows,
    State,
    Task,
    Telemetry,
)
from fleet_wire.policy import OwnerPolicy

__all__ = [
    "BEAT",
    "CAPS",
    "CONTROL",
    "COORDINATOR",
    "MAX_PACKET_BYTES",
    "POLICY",
    "RESULT",
    "STATE",
    "TASK",
    "TELEMETRY",
    "VERSION",
    "Control",
    "MessageKind",
    "Result",
]

# The smallest limit among the brokers that we mean to run on; a deployment may raise it.
MAX_PACKET_BYTES = 128 * 1024
VERSION = 1

Control = Cancel | Drain | Rebirth | Notice
Result = Rows | Refusal | Failure
M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


class MessageKind(Generic[M]):
    """One kind of message: its content type, and bytes to message and back."""

    __slots__ = ("_decode", "content_type", "name")

    def __init__(self, name: str, shape: Any) -> None:
        self.name = name
        self.content_type = f"application/vnd.idlewheel.{name}+msgpack; v={VERSION}"
        self._decode = msgspec.msgpack.Decoder(shape).decode

    def encode(self, message: M) -> bytes:
        """Bytes of a message."""
        return _encoder.encode(message)

    def decode(self, payload: bytes | memoryview, content_type: str | None) -> M:
        """Message of bytes from outside. Raises WireError(WRONG_CONTENT_TYPE, UNKNOWN_VERSION or MALFORMED).

        Tensors in the message view `payload`; they are not checked before their `array()` is called.
        """
        if content_type != self.content_type:
            self._check_content_type(content_type)
        try:
            return cast(M, self._decode(payload))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(WireFault.MALFORMED, f"{self.name}: {error}") from None

    def _check_content_type(self, content_type: str | None) -> None:
        """Let pass what differs in spaces alone."""
        expected, _, _ = self.content_type.partition(";")
        given, _, parameter = (content_type or "").partition(";")
        name, _, version = parameter.strip().partition("=")
        if given.strip() != expected or name != "v":
            raise WireError(WireFault.WRONG_CONTENT_TYPE, f"{content_type!r} where {self.content_type!r} belongs")
        if version != str(VERSION):
            raise WireError(WireFault.UNKNOWN_VERSION, f"{content_type!r}; this side speaks version {VERSION}")


STATE: MessageKind[State] = MessageKind("state", State)
CAPS: MessageKind[Caps] = MessageKind("caps", Caps)
TELEMETRY: MessageKind[Telemetry] = MessageKind("telemetry", Telemetry)
TASK: MessageKind[Task] = MessageKind("task", Task)
BEAT: MessageKind[Beat] = MessageKind("beat", Beat)
CONTROL: MessageKind[Control] = MessageKind("control", Control)
RESULT: MessageKind[Result] = MessageKind("result", Result)
POLICY: MessageKind[OwnerPolicy] = MessageKind("policy", OwnerPolicy)
COORDINATOR: MessageKind[CoordinatorState] = MessageKind("coordinator", CoordinatorState)
