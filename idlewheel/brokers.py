"""Starts a real MQTT 5 broker as a child process on loopback: Mosquitto, or the one that ships in a wheel.

For demos, laptops and tests; never for a fleet on a network, whose configuration is in broker_config/.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

from fleet_link import ConnectOptions, LinkError, connect
from idlewheel.processes import dying_with_us

__all__ = [
    "Broker",
    "BrokerChoice",
    "BrokerFailed",
    "BrokerKind",
    "find_mosquitto",
    "free_port",
    "is_answering",
    "start_broker",
]

BrokerKind = Literal["mosquitto", "embedded"]
BrokerChoice = Literal["auto", "mosquitto", "embedded"]

_HOST: Final = "127.0.0.1"
_START_S: Final = 30.0
_STOP_S: Final = 5.0
_PROBE_S: Final = 2.0
_PROBE_EVERY_S: Final = 0.05
_PACKET_BYTES: Final = 1 << 20

# Mosquitto's defaults (20 in flight, 1000 queued) drop QoS 1 messages under load; Nagle's algorithm costs 40 ms a hop.
# Version 2.0.11 counts what waited as if it still did, so any limit on that is reached in the end (docs/benchmarks.md).
# Started as root it would change to a user who may not write where we do.
_MOSQUITTO: Final = """\
user root
listener {port} {host}
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 1000
max_queued_messages 2000000000
max_packet_size {packet_bytes}
log_dest stderr
log_type error
log_type warning
persistence false
"""
# Segments are kept in memory for each filter: the default of ten of 100 MB would be up to 1 GB a filter. A subscriber
# that lags by more than two of them loses what is older, though its sender got a PUBACK.
_EMBEDDED: Final = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 2

[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 0

[v5.1.connections]
connection_timeout_ms = 5000
max_payload_size = {packet_bytes}
max_inflight_count = 100
dynamic_filters = true
"""

_held: Final[list[socket.socket]] = []


class BrokerFailed(Exception):
    """The broker can't be started, or does not answer; the message ends with what it logged last."""


class Broker:
    """A broker's process. Its port stays the same over `kill` and another `start`."""

    host: Final = _HOST

    def __init__(self, kind: BrokerKind, port: int, command: list[str], log: Path) -> None:
        self.kind: Final = kind
        self.port: Final = port
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id of the running broker, for those who measure it."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process and return when a publish comes back. Raise BrokerFailed."""
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C must reach us alone, so that the broker is stopped last.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dying_with_us(),
            )
        try:
            async with asyncio.timeout(_START_S):
                while self._process.returncode is None and not await is_answering(self.host, self.port):  # noqa: ASYNC110
                    await asyncio.sleep(_PROBE_EVERY_S)
        except TimeoutError:
            await self.kill()
            raise self._failure(f"did not answer within {_START_S:.0f} s") from None
        except BaseException:
            await self.kill()
            raise
        if self._process.returncode is not None:
            raise self._failure(f"ended with {self._process.returncode}")

    async def stop(self) -> None:
        """Ask the process to end, and make it when it does not."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the process at once (SIGKILL)."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _failure(self, what: str) -> BrokerFailed:
        tail = self._log.read_text(errors="replace")[-500:].strip()
        return BrokerFailed(f"{self.kind} broker on port {self.port} {what}: {tail or 'it logged nothing'}")


@contextlib.asynccontextmanager
async def start_broker(kind: BrokerChoice, directory: Path) -> AsyncIterator[Broker]:
    """Run a broker on a free loopback port, with its files in `directory`, which must exist; it keeps nothing.

    `auto` takes Mosquitto when it is installed.
    """
    if kind == "auto":
        kind = "embedded" if find_mosquitto() is None else "mosquitto"
    port = free_port()
    command = _mosquitto(directory, port) if kind == "mosquitto" else _embedded(directory, port)
    broker = Broker(kind, port, command, directory / "broker.log")
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def find_mosquitto() -> str | None:
    """Path of the Mosquitto server; Debian puts it where a user's PATH does not look."""
    return shutil.which(
        "mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )


async def is_answering(host: str, port: int) -> bool:
    """Say whether a publish comes back: a broker may be dead behind an open port."""
    name = f"probe-{os.getpid()}"
    options = ConnectOptions(host, port, name, connect_timeout_s=_PROBE_S)
    try:
        async with asyncio.timeout(_PROBE_S):
            session = await connect(options)
            try:
                await session.subscribe([(f"idlewheel/{name}", 1)])
                await session.publish(f"idlewheel/{name}", b"?")
                session.acknowledge(await session.receive())
            finally:
                await session.close()
    except (LinkError, TimeoutError):
        return False
    return True


def free_port() -> int:
    """A TCP port on loopback for a server of ours: nobody else gets it while this process lives.

    A socket that is bound to it, and never listens, keeps the kernel from giving it away before the server is up, or
    while it is down: to another server, or to a connection as its own end. The server must set SO_REUSEADDR, as all do.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((_HOST, 0))
    _held.append(held)
    return int(held.getsockname()[1])


def _mosquitto(directory: Path, port: int) -> list[str]:
    program = find_mosquitto()
    if program is None:
        raise BrokerFailed("Mosquitto is not installed (on Debian: apt-get install mosquitto)")
    file = directory / "mosquitto.conf"
    file.write_text(_MOSQUITTO.format(host=_HOST, port=port, packet_bytes=_PACKET_BYTES))
    return [program, "-c", str(file)]


def _embedded(directory: Path, port: int) -> list[str]:
    file = directory / "rumqttd.toml"
    file.write_text(_EMBEDDED.format(host=_HOST, port=port, packet_bytes=_PACKET_BYTES))
    # It logs every packet as an error span below CRITICAL.
    return [sys.executable, "-m", "iotcore", "--config", str(file), "--log-level", "CRITICAL"]
