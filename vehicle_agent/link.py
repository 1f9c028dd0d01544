"""Keeps the vehicle connected: one connection after the other, each under a new epoch. Knows no task and no result."""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

from fleet_link import ConnectOptions, LinkLost, LinkRefused, LinkUnreachable, Will, backoff_s, connect
from fleet_link import Session as Link
from fleet_wire.codec import STATE
from fleet_wire.messages import State
from fleet_wire.topics import FleetTopics, VehicleChannel
from vehicle_agent.errors import AgentError, IdentityTaken
from vehicle_agent.presence import EpochFile
from vehicle_agent.settings import AgentSettings

__all__ = ["EpochBehind", "reconnect_after_s", "stay_connected"]

_log = logging.getLogger(__name__)
_RECEIVED_BYTES = 1 << 20  # at least; what is above our own limit is refused with a message, not by a broken link
_STABLE_S = 10.0
_FIRST_WAIT_S = 4.0


class EpochBehind(AgentError):
    """The broker remembers a later epoch of ours than we do: our disk was lost."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the broker remembers epoch {epoch}")
        self.epoch = epoch


async def stay_connected(
    settings: AgentSettings,
    epochs: EpochFile,
    visit: Callable[[Link, int], Awaitable[None]],
    counters: Counter[str],
    random: Random,
) -> None:
    """Connect and run `visit(link, epoch)` until the link is lost, again and again. Raise IdentityTaken.

    When it is cancelled, an open link stays open: saying goodbye is the visitor's.
    """
    loop = asyncio.get_running_loop()
    tls = _tls(settings)
    attempt = 0
    while True:
        epoch = epochs.next()
        started_s = loop.time()
        try:
            link = await connect(_options(settings, epoch, tls))
            await _visit(link, epoch, visit, epochs)
        except (LinkUnreachable, LinkRefused, LinkLost, EpochBehind) as error:
            if isinstance(error, LinkLost) and error.taken_over:
                raise IdentityTaken(f"another client is connected as {settings.vehicle}") from error
            counters[type(error).__name__] += 1
            _log.info("%s: %s", settings.vehicle, error)
        attempt = 0 if loop.time() - started_s > _STABLE_S else attempt
        await asyncio.sleep(reconnect_after_s(attempt, random))
        attempt += 1


def reconnect_after_s(attempt: int, random: Random) -> float:
    """How long a vehicle waits before attempt `attempt`.

    A restarted broker is back within a second. That must not be the one in which thousands come, so they spread over
    four; a single vehicle is away for two seconds on average, after which its rows would run elsewhere anyway.
    """
    return backoff_s(attempt, random, _FIRST_WAIT_S)


async def _visit(link: Link, epoch: int, visit: Callable[[Link, int], Awaitable[None]], epochs: EpochFile) -> None:
    try:
        await visit(link, epoch)
    except EpochBehind as behind:
        epochs.raise_to(behind.epoch)
        await link.close()
        raise
    except LinkRefused:
        await link.close()
        raise


def _options(settings: AgentSettings, epoch: int, tls: ssl.SSLContext | None) -> ConnectOptions:
    will = Will(
        FleetTopics(settings.fleet).vehicle(settings.vehicle, VehicleChannel.STATE),
        STATE.encode(State(online=False, epoch=epoch)),
        content_type=STATE.content_type,
    )
    return ConnectOptions(
        settings.broker_host,
        settings.broker_port,
        settings.vehicle,
        keep_alive_s=settings.keep_alive_s,
        max_packet_size=max(_RECEIVED_BYTES, settings.max_packet_bytes),
        will=will,
        username=settings.username,
        password=None if settings.password is None else settings.password.get_secret_value().encode(),
        tls=tls,
    )


def _tls(settings: AgentSettings) -> ssl.SSLContext | None:
    if not settings.tls:
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_certificate is not None:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context
