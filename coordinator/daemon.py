"""The coordinator's composition root: makes the parts from settings, runs them as named tasks, and ends them in order.

Nothing is decided here. `python -m coordinator.daemon` prints one JSON line on standard output when it serves.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import secrets
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import uvloop
from pydantic import ValidationError

from coordinator.adapters.duckdb_store import DuckdbStore
from coordinator.adapters.http import build_app, open_listener, serve
from coordinator.adapters.influx_server import InfluxAddress
from coordinator.adapters.influx_store import InfluxStore
from coordinator.adapters.input_rows import InputRows
from coordinator.adapters.object_blobs import ObjectBlobs
from coordinator.adapters.onnx_inspector import OnnxInspector
from coordinator.adapters.onnx_runner import OnnxRunner
from coordinator.adapters.sqlite_ledger import SqliteLedger
from coordinator.adapters.state_file import StateFile
from coordinator.blob_watch import BlobWatch
from coordinator.brain import Brain, wall_clock_ms
from coordinator.commands import CheckBlob, FindOut, LookBack
from coordinator.core import Core, CorePolicy
from coordinator.desk import CoordinatorDesk
from coordinator.dispatch import Dispatch
from coordinator.errors import BadTariff, LedgerHeld, Rejected, StoreUnavailable
from coordinator.fleet_view import FleetView
from coordinator.foresight import ForesightTerms
from coordinator.hindsight import Hindsight
from coordinator.ingest import Ingest
from coordinator.link import Announcement, IdentityTaken, Link, TelemetryWriter
from coordinator.memory import AvailabilityMemory
from coordinator.observation import Observer, ServiceState, keep_observing, look_last
from coordinator.policy_drafts import read_fleet_policy
from coordinator.ports import Ledger, TelemetryStore
from coordinator.referee import Referee
from coordinator.rules.pay import PayTerms
from coordinator.rules.tariff import flat_tariffs, zone_named
from coordinator.settings import CoordinatorSettings
from coordinator.tariff_file import read_tariffs
from coordinator.trial import Trial
from fleet_link import ConnectOptions, SpanSink, Tracer, open_spans
from fleet_wire.topics import FleetTopics

__all__ = ["THREAD_SWITCH_S", "main", "run_coordinator"]

_STOP_STEP_S = 5.0
# A thread that sends waits for the interpreter once a piece: behind a thread that computes, with the usual 5 ms,
# telemetry went into InfluxDB at two thirds of the speed.
THREAD_SWITCH_S = 0.0005
_MAINTAIN_EVERY_S = 300.0
_LOOK_AGAIN_S = 0.1  # whether the ledger is free
_log = logging.getLogger(__name__)


class _Stopped(Exception):
    """A signal asked for the end."""


async def run_coordinator(
    settings: CoordinatorSettings, random_source: random.Random, spans: SpanSink | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; then let go of the broker, finish the commit under way, look a last time at what
    happened, and close the store when it has that. While another coordinator writes the ledger, wait to take over.

    `spans` hears of what is done for traced jobs; whoever gives it closes it.
    Raises BadTariff, StoreUnavailable, IdentityTaken, Rejected (the fleet policy) or OSError (the HTTP address) when it
    can't go on.
    """
    core = Core(_policy(settings), FleetView(timezones=[settings.timezone]), secret=secrets.token_bytes(32))
    settings.data.mkdir(parents=True, exist_ok=True)
    ledger = _ledger(settings)
    brain = Brain(core, ledger)
    stop = _stop_signal()
    try:
        if await _take_over(brain, stop):
            await _serve(settings, random_source, spans, brain, ledger, stop)
    finally:
        await brain.close()


async def _take_over(brain: Brain, stop: asyncio.Event) -> bool:
    """Open the ledger, as soon as nobody else writes it; whether that was before we were to stop."""
    waits = False
    while not stop.is_set():
        try:
            await _open(brain, stop)
        except LedgerHeld as held:
            if not waits:
                _say(standby=True, reason=held.detail)
            waits = True
        except StoreUnavailable as error:
            if stop.is_set():
                break
            if not waits:
                raise
            _log.warning("standing by: %s", error)
        else:
            return not stop.is_set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_AGAIN_S)
    return False


async def _open(brain: Brain, stop: asyncio.Event) -> None:
    """Open the ledger, but don't wait for its server when we are to stop."""
    opening, stopping = asyncio.create_task(brain.open()), asyncio.create_task(stop.wait())
    await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not opening.done():
        brain.give_up()
    await opening


async def _serve(
    settings: CoordinatorSettings,
    random_source: random.Random,
    spans: SpanSink | None,
    brain: Brain,
    ledger: Ledger,
    stop: asyncio.Event,
) -> None:
    core = brain.core
    listener = open_listener(settings.http_host, settings.http_port)
    host, port = listener.getsockname()[:2]
    http_url = settings.public_http_url or f"http://{host}:{port}"
    topics = FleetTopics(settings.fleet)
    blobs = (
        ObjectBlobs.at_url(settings.blobs_url) if settings.blobs_url else ObjectBlobs.in_folder(settings.data / "blobs")
    )
    inputs = InputRows(blobs)
    store = _store(settings, core.fleet, random_source)
    refusals: Counter[str] = Counter()
    tracer = Tracer(random_source, spans)
    dispatch = Dispatch(topics, inputs, core, lambda event: brain.put([event]), settings.max_packet_bytes, tracer)
    referee = Referee(core, inputs, blobs, OnnxRunner(), lambda event: brain.put([event]))
    watch = BlobWatch(blobs, lambda event: brain.put([event]))
    hindsight = Hindsight(brain, ledger, core.counters)
    telemetry = TelemetryWriter(store)
    link = Link(
        options=_connect_options(settings),
        topics=topics,
        announcement=Announcement(settings.coordinator_id, http_url),
        ingest=Ingest(settings.fleet, settings.max_packet_bytes, refusals),
        brain=brain,
        telemetry=telemetry,
        blobs=blobs,
        dispatch=dispatch,
        counters=refusals,
        rng=random_source,
        tracer=tracer,
    )
    desk = CoordinatorDesk(
        settings.fleet,
        brain,
        ledger,
        blobs,
        inputs,
        OnnxInspector(),
        refusals,
        link.connected.is_set,
        tracer,
        store.status,
        Trial(inputs, blobs, partial(OnnxRunner, niceness=0)).check,  # a client waits for it
    )
    observer = Observer(core)
    memory = AvailabilityMemory(core, StateFile(settings.data / "availability.npz"), telemetry.plug_history)

    def service() -> ServiceState:
        return ServiceState(
            connected=link.connected.is_set(),
            telemetry=link.telemetry_waits,
            messages=link.message_waits,
            commits=brain.commits,
            waiting_ms=telemetry.lag_ms,
            store=store.status(),
            events_waiting=brain.waiting,
            refusals=refusals + dispatch.counters + referee.counters + watch.counters,
        )

    await telemetry.open()
    await memory.recall(wall_clock_ms())
    try:
        async with asyncio.TaskGroup() as tasks:
            thinking = tasks.create_task(
                brain.run(dispatch.put, _asking(referee, watch, hindsight), lambda: dispatch.has_room), name="brain"
            )
            thinking.add_done_callback(lambda _: brain.give_up())  # nor is a request to wait for a server any more
            tasks.create_task(brain.tick(link.listens), name="ticker")
            tasks.create_task(telemetry.run(), name="telemetry")
            tasks.create_task(dispatch.run(), name="dispatch")
            tasks.create_task(referee.run(), name="referee")
            tasks.create_task(watch.run(), name="blob watch")
            tasks.create_task(hindsight.run(), name="hindsight")
            tasks.create_task(link.run(), name="link")
            tasks.create_task(serve(build_app(desk, blobs, refusals, lambda: observer.latest), listener), name="http")
            tasks.create_task(
                keep_observing(observer, service, wall_clock_ms, store.record, settings.observe_every_s),
                name="observer",
            )
            tasks.create_task(memory.keep_saving(settings.save_every_s), name="memory")
            tasks.create_task(_until_set(stop), name="signals")
            await link.connected.wait()
            # Not every broker sends retained messages to a session that it kept, so those are asked that we knew.
            tasks.create_task(telemetry.remember(lambda known: brain.put([known])), name="remember")
            tasks.create_task(telemetry.maintain(_MAINTAIN_EVERY_S), name="maintainer")
            _say(ready=True, http=http_url)
    except* _Stopped:
        pass
    finally:
        async with asyncio.timeout(_STOP_STEP_S):
            await memory.save()
            await brain.close()
            look_last(observer, service(), wall_clock_ms(), store.record)
            await telemetry.close()


def _asking(
    referee: Referee, watch: BlobWatch, hindsight: Hindsight
) -> Callable[[Sequence[FindOut | CheckBlob | LookBack]], None]:
    """Hand what the core wants to know to whoever finds it out."""

    def ask(commands: Sequence[FindOut | CheckBlob | LookBack]) -> None:
        referee.put([command for command in commands if isinstance(command, FindOut)])
        watch.put([command for command in commands if isinstance(command, CheckBlob)])
        hindsight.put([command for command in commands if isinstance(command, LookBack)])

    return ask


def _ledger(settings: CoordinatorSettings) -> Ledger:
    url = settings.ledger.get_secret_value()
    if not url:
        return SqliteLedger(settings.data / "ledger.sqlite")
    try:
        from coordinator.adapters.postgres_ledger import (  # noqa: PLC0415 - an extra, which only who asks for it has
            PostgresLedger,
        )
    except ImportError:
        raise StoreUnavailable(
            "ledger_unavailable", "what talks to PostgreSQL is not installed: pip install 'idlewheel[postgres]'"
        ) from None
    holder = f"{settings.coordinator_id} on {socket.gethostname()}, process {os.getpid()}"
    return PostgresLedger(url, settings.fleet, holder, settings.ledger_lease_s)


def _store(settings: CoordinatorSettings, fleet: FleetView, random_source: random.Random) -> TelemetryStore:
    if url := settings.store.get_secret_value():
        spill = settings.data / "telemetry-spill"
        return InfluxStore(InfluxAddress.parse(url), spill, fleet.region, random_source)
    return DuckdbStore(settings.data / "telemetry.duckdb")


def _policy(settings: CoordinatorSettings) -> CorePolicy:
    tariffs = flat_tariffs(settings.energy_micro_per_kwh)
    if settings.tariff_file is not None:
        tariffs = read_tariffs(settings.tariff_file, settings.timezone)
    return CorePolicy(
        pay=PayTerms(settings.compute_micro_per_h),
        tariffs=tariffs,
        zone=zone_named(settings.timezone),
        foresight=ForesightTerms(time_scale=settings.time_scale),
        fleet_policy=None if settings.fleet_policy is None else read_fleet_policy(settings.fleet_policy),
    )


def _say(**fields: object) -> None:
    """A line for whoever started us, who waits for it."""
    print(json.dumps(fields), flush=True)  # noqa: T201


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _until_set(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _Stopped


def _connect_options(settings: CoordinatorSettings) -> ConnectOptions:
    tls = None
    if settings.broker_ca_file is not None:
        tls = ssl.create_default_context(cafile=settings.broker_ca_file)
        if settings.broker_cert_file is not None:
            tls.load_cert_chain(settings.broker_cert_file, settings.broker_key_file)
    password = settings.broker_password
    return ConnectOptions(
        host=settings.broker_host,
        port=settings.broker_port,
        client_id=settings.coordinator_id,
        clean_start=False,
        session_expiry_s=settings.session_expiry_s,
        max_packet_size=settings.max_received_packet_bytes,
        username=settings.broker_username,
        password=None if password is None else password.get_secret_value().encode(),
        tls=tls,
    )


def main() -> int:
    """Run the daemon with settings from the environment; return its exit code."""
    try:
        settings = CoordinatorSettings()
    except ValidationError as invalid:
        for fault in invalid.errors():
            name = "__".join(str(part) for part in fault["loc"]).upper()
            sys.stderr.write(f"coordinator: IDLEWHEEL_COORDINATOR_{name}: {fault['msg']}\n")
        return 1
    code = 0
    sys.setswitchinterval(THREAD_SWITCH_S)
    spans = open_spans("idlewheel-coordinator", os.environ)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_coordinator(settings, random.Random(), spans))
    except* (BadTariff, StoreUnavailable, IdentityTaken, Rejected, OSError) as errors:
        for text in dict.fromkeys(str(error) for error in errors.exceptions):
            sys.stderr.write(f"coordinator: {text}\n")
        code = 1
    finally:
        if spans is not None:
            spans.close()
    return code


if __name__ == "__main__":
    ended = main()
    # All that is to be kept is. To take the interpreter apart as well takes seconds on a busy machine, and would wait
    # for threads that still ask a server which does not answer.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)
