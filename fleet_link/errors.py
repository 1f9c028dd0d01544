"""What can go wrong on a link, each error with its facts. Never raised for anything above MQTT."""

__all__ = [
    "LinkError",
    "LinkLost",
    "LinkRefused",
    "LinkUnreachable",
    "OutboxFull",
    "PacketTooLarge",
]

_SESSION_TAKEN_OVER = 0x8E


class LinkError(Exception):
    """Anything that a link may raise."""


class LinkUnreachable(LinkError):
    """The server can't be reached, or did not answer CONNECT in time: worth another attempt."""


class LinkRefused(LinkError):
    """The server said no, or its CONNACK had said so already. `reason_code` is MQTT's, `name` its name."""

    def __init__(self, reason_code: int, name: str, what: str) -> None:
        super().__init__(f"{what} refused: {name} (0x{reason_code:02X})")
        self.reason_code = reason_code
        self.name = name


class LinkLost(LinkError):
    """The connection has ended. `code` is the DISCONNECT reason, when one was sent or received."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code

    @property
    def taken_over(self) -> bool:
        """Another connection uses our client id: reconnecting at once would only throw it out in turn."""
        return self.code == _SESSION_TAKEN_OVER


class PacketTooLarge(LinkError):
    """A packet above the server's Maximum Packet Size; it was not sent."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"packet of {size_bytes} bytes; the server takes {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class OutboxFull(LinkError):
    """`publish_soon` has no room left: wait for `drain` first."""
