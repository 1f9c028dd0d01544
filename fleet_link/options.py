"""What one side asks for when it connects, and what the server answered. Data only."""

import ssl
from dataclasses import dataclass

from mqtt5 import ConnAckPacket

__all__ = ["ConnectOptions", "ServerLimits", "Will"]


@dataclass(frozen=True, slots=True)
class Will:
    """What the server publishes for us when the connection ends without our goodbye."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True
    delay_s: int = 0
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """One connection. The inbox bounds stop reading from the socket, the outbox bounds stop publishers.

    `max_packet_size` is the largest packet that we take and that we send, if the server doesn't set a lower one:
    some brokers announce no limit and drop the connection that exceeds it.

    Keep `inbox_messages` above `receive_max`: then the server's own window stops it first, and acknowledgements
    of what we publish are never stuck behind an inbox that nobody empties.
    """

    host: str
    port: int
    client_id: str
    clean_start: bool = True
    session_expiry_s: int = 0
    keep_alive_s: int = 30
    receive_max: int = 1000
    max_packet_size: int = 1 << 20
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    tls: ssl.SSLContext | None = None
    connect_timeout_s: float = 10
    inbox_messages: int = 4096
    inbox_bytes: int = 16 << 20
    outbox_messages: int = 4096
    outbox_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What CONNACK said, with MQTT's defaults filled in and our own limits applied: the figures that hold."""

    session_present: bool
    receive_max: int
    max_packet_size: int
    max_qos: int
    keep_alive_s: int
    retain_available: bool

    @staticmethod
    def of(connack: ConnAckPacket, options: ConnectOptions) -> "ServerLimits":
        """Read a CONNACK; where it is silent, what we asked for or MQTT's default holds."""
        return ServerLimits(
            session_present=connack.session_present,
            receive_max=connack.receive_max,
            max_packet_size=min(options.max_packet_size, _said(connack.max_packet_size, options.max_packet_size)),
            max_qos=int(connack.max_qos),
            keep_alive_s=_said(connack.server_keep_alive, options.keep_alive_s),
            retain_available=connack.retain_available,
        )


def _said(said: int | None, asked: int) -> int:
    return asked if said is None else said
