"""One MQTT 5 connection as a thin asyncio session, and spans. Knows no Idlewheel topic or message."""

from fleet_link.backoff import backoff_s
from fleet_link.errors import LinkError, LinkLost, LinkRefused, LinkUnreachable, OutboxFull, PacketTooLarge
from fleet_link.inbox import Message
from fleet_link.options import ConnectOptions, ServerLimits, Will
from fleet_link.session import Session, connect
from fleet_link.spans import SpanSink, Tracer, open_spans

__all__ = [
    "ConnectOptions",
    "LinkError",
    "LinkLost",
    "LinkRefused",
    "LinkUnreachable",
    "Message",
    "OutboxFull",
    "PacketTooLarge",
    "ServerLimits",
    "Session",
    "SpanSink",
    "Tracer",
    "Will",
    "backoff_s",
    "connect",
    "open_spans",
]
