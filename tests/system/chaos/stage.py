"""A deployment of real processes behind proxied links, to which the faults of a plan happen. Judges nothing.

A process that ends is started again, as by a supervisor. All its files are in one folder.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

import psutil

from idlewheel import Client
from idlewheel.brokers import Broker, find_mosquitto, free_port
from idlewheel.processes import dying_with_us
from tests.influx import InfluxProcess, require_influxd
from tests.postgres import PostgresProcess, require_postgres
from tests.system.chaos.plan import LINK_KINDS, MESSAGE_KINDS, Fault, Kind, Plan
from tests.system.chaos.proxy import ProxiedLink
from tests.system.chaos.slow_disk import slow_disk
from tests.system.deployment import DEADLINE_S, until

__all__ = ["Ended", "Stage", "on_stage"]

_RESTART_S: Final = 0.3
_STOP_S: Final = 20.0  # what the coordinator allows its steps is less, on a machine that is not full
_DISK_BYTES: Final = 48 << 20
_MOSQUITTO: Final = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 1000
max_queued_messages 1000000
max_packet_size 1048576
log_dest stderr
log_type error
log_type warning
log_type notice
{persistence}
"""
_PERSISTENCE: Final = """\
persistence true
persistence_location {directory}/
autosave_on_changes true
autosave_interval 1
"""


class Ended(Exception):
    """A process ended by itself."""


class Stage:
    """Processes by name: `coordinator`, `broker`, `store`, `ledger`, and cars as `car-1`. Links as `car-1/broker`."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.client = Client(self.url)
        self.links: dict[str, ProxiedLink] = {}
        self.ended: list[str] = []  # processes that ended by themselves, and how
        self.crashes = 0
        self.notes: list[str] = []
        self._rng = Random(plan.seed)
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._disks: dict[str, Path] = {}
        self._full: set[str] = set()
        self._suffering: set[asyncio.Task[None]] = set()
        self.broker: Broker
        self.store: InfluxProcess | None = None
        self.postgres: PostgresProcess | None = None

    @property
    def cars(self) -> list[str]:
        return [f"car-{number}" for number in range(1, self.plan.cars + 1)]

    def folder(self, name: str) -> Path:
        """Where a process keeps its files."""
        return self.directory / name

    # The processes ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything and wait until all cars may work."""
        (self.directory / "tmp").mkdir()
        for name in ("broker", "coordinator", *self.cars):
            self.folder(name).mkdir()
        for fault in self.plan.faults:
            if fault.kind is Kind.DISK:
                self._mount(fault.target)
            elif fault.kind is Kind.CLOCK:
                self._clock(fault.target).write_text("0")
            elif fault.kind is Kind.LIE and not fault.at_s:
                self._lies(fault.target).write_text(str(fault.amount))
        port = free_port()
        persistence = _PERSISTENCE.format(directory=self.folder("broker")) if self.plan.broker_keeps else ""
        configuration = self.folder("broker") / "mosquitto.conf"
        configuration.write_text(_MOSQUITTO.format(port=port, persistence=persistence))
        program = find_mosquitto()
        assert program is not None
        self.broker = Broker("mosquitto", port, [program, "-c", str(configuration)], self.directory / "broker.log")
        await self.broker.start()
        if self.plan.store == "influx":
            self.folder("store").mkdir()
            self.store = InfluxProcess(require_influxd("1.6.7"), self.folder("store"))
            await asyncio.to_thread(self.store.start)
        if self.plan.ledger == "postgres":
            self.postgres = PostgresProcess(require_postgres())
            await asyncio.to_thread(self.postgres.start)
        for name, target, mqtt in [("coordinator/broker", port, True)] + [
            link
            for car in self.cars
            for link in ((f"{car}/broker", port, True), (f"{car}/http", self.http_port, False))
        ]:
            self.links[name] = ProxiedLink(name, target, self._rng, mqtt=mqtt)
            await self.links[name].open()
        (self.directory / "fleet-policy.json").write_text('{"owner": "operator", "purposes": ["general"]}')
        for name in ("coordinator", *self.cars):
            await self.start(name)
        await until(
            lambda: self._eligible() >= len(self.cars), f"all {len(self.cars)} cars may work", deadline_s=DEADLINE_S
        )

    def _eligible(self) -> int:
        try:
            return self.client.health().vehicles_eligible
        except Exception:  # noqa: BLE001 - it is not up yet
            return 0

    async def start(self, name: str) -> None:
        """Start a car or the coordinator, and don't wait until it can work."""
        arguments, environment = self._command(name)
        if self._clock(name).exists():
            arguments = ["tests.system.chaos.clock", str(self._clock(name)), *arguments]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                env={**os.environ, **self._environment(), **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_us(),
            )
        self._processes[name] = process
        self._watching[name] = asyncio.create_task(self._watch(name, process), name=f"watch {name}")

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Note an end that nobody asked for, and start it again."""
        code = await process.wait()
        if self._processes.get(name) is not process:
            return
        self.ended.append(f"{name} ended by itself with {code}{' on a full disk' if name in self._full else ''}")
        await asyncio.sleep(_RESTART_S)
        if self._processes.get(name) is process:
            await self.start(name)

    def _command(self, name: str) -> tuple[list[str], dict[str, str]]:
        if name == "coordinator":
            environment = {
                "BROKER_PORT": str(self.links["coordinator/broker"].port),
                "HTTP_PORT": str(self.http_port),
                "DATA": str(self.folder(name)),
                "FLEET": "test",
                "STORE": "" if self.store is None else self.store.url("fleet"),
                "LEDGER": "" if self.postgres is None else self.postgres.url,
                "FLEET_POLICY": str(self.directory / "fleet-policy.json"),
            }
            return ["coordinator.daemon"], {f"IDLEWHEEL_COORDINATOR_{key}": value for key, value in environment.items()}
        environment = {"HTTP_URL": f"http://127.0.0.1:{self.links[f'{name}/http'].port}"}
        port = str(self.links[f"{name}/broker"].port)
        return ["tests.system.chaos.car", name, port, str(self.folder(name)), str(self._lies(name))], {
            f"IDLEWHEEL_AGENT_{key}": value for key, value in environment.items()
        }

    def _clock(self, name: str) -> Path:
        return self.directory / f"{name}.clock"

    def _lies(self, name: str) -> Path:
        return self.directory / f"{name}.lies"

    def _environment(self) -> dict[str, str]:
        return {"IDLEWHEEL_CHAOS": self.mark, "TMPDIR": str(self.directory / "tmp"), "PYTHONFAULTHANDLER": "1"}

    # What happens to them --------------------------------------------------------------------------------------------

    async def suffer(self, fault: Fault) -> None:
        """Let a fault happen, and end."""
        if fault.kind in LINK_KINDS or fault.kind in MESSAGE_KINDS:
            await self.links[fault.target].suffer(fault)
            return
        match fault.kind:
            case Kind.KILL:
                await self._kill(fault.target, fault.for_s)
            case Kind.PAUSE:
                await self._pause(fault.target, fault.for_s)
            case Kind.CLOCK:
                clock = self._clock(fault.target)
                clock.write_text(str(fault.amount))
                await asyncio.sleep(fault.for_s)
                clock.write_text("0")
            case Kind.DISK:
                await self._fill(fault.target, fault.for_s)
            case Kind.SLOW_DISK:
                await self._slow_down(fault)
            case Kind.LEAVE:
                self.signal(fault.target, signal.SIGUSR1)
                await asyncio.sleep(fault.for_s)
                self.signal(fault.target, signal.SIGUSR2)
            case Kind.REVOKE:
                await self._revoke(fault.target)
            case Kind.LIE:
                await self._lie(fault)

    async def _lie(self, fault: Fault) -> None:
        lies = self._lies(fault.target)
        lies.write_text(str(fault.amount))
        if fault.for_s:
            await asyncio.sleep(fault.for_s)
            lies.unlink()

    async def _kill(self, target: str, for_s: float) -> None:
        if target == "ledger":
            assert self.postgres is not None
            await asyncio.to_thread(self.postgres.kill)
            await asyncio.sleep(for_s)
            await asyncio.to_thread(self.postgres.start)
        elif target == "broker":
            await self.broker.kill()
            await asyncio.sleep(for_s)
            await self.broker.start()
        elif target == "store":
            assert self.store is not None
            self.store.kill()
            await asyncio.sleep(for_s)
            await asyncio.to_thread(self.store.start)
        elif target.endswith("/worker"):
            worker = await self._worker(target)
            if worker is not None:
                _send(worker.pid, signal.SIGKILL)
        else:
            await self.kill(target)
            await asyncio.sleep(for_s)
            await self.start(target)

    async def kill(self, name: str) -> None:
        """SIGKILL to a car or the coordinator, and wait until it is gone."""
        process = self._processes.pop(name)
        if process.returncode is None:
            process.kill()
        await process.wait()
        self.crashes += 1
        if name == "coordinator":
            await self.look_into_ledger()

    async def look_into_ledger(self) -> None:
        """What must hold when the coordinator has died; the runner says it."""

    async def _pause(self, target: str, for_s: float) -> None:
        if target.endswith("/worker"):
            worker = await self._worker(target)
            pids = [] if worker is None else [worker.pid]
        else:
            pids = self._pids(target)
        for each in pids:
            _send(each, signal.SIGSTOP)
        await asyncio.sleep(for_s)
        for each in pids:
            _send(each, signal.SIGCONT)

    def _pids(self, target: str) -> list[int]:
        """Of a target's processes; none while it is killed. PostgreSQL has one for each connection, too."""
        match target:
            case "ledger":
                assert self.postgres is not None
                return self.postgres.pids
            case "store":
                assert self.store is not None
                return self.store.pids
            case "broker":
                return [self.broker.pid]
            case _:
                return [pid for name, pid in self.pids().items() if name == target]

    async def _worker(self, target: str) -> psutil.Process | None:
        """The worker process of a car, once it has one."""
        car = target.partition("/")[0]
        for _ in range(100):
            with contextlib.suppress(psutil.Error, KeyError):
                for child in psutil.Process(self._processes[car].pid).children():
                    if "vehicle_agent.worker" in child.cmdline():
                        return child
            await asyncio.sleep(0.02)
        self.notes.append(f"{car} had no worker")
        return None

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a car or the coordinator, if it runs."""
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            _send(process.pid, number)

    async def _revoke(self, car: str) -> None:
        async def revoke() -> None:
            while True:
                try:
                    await asyncio.to_thread(self.client.revoke, car)
                except Exception:  # noqa: BLE001 - the coordinator is away: an owner tries again
                    await asyncio.sleep(0.1)
                else:
                    return

        async with asyncio.timeout(DEADLINE_S):
            await revoke()

    # Disks -----------------------------------------------------------------------------------------------------------

    def _mount(self, name: str) -> None:
        """A small file system of its own; where that may not be, its files can't grow when the disk is full."""
        folder = self.folder(name)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={_DISK_BYTES}".encode()) == 0:
            self._disks[name] = folder
        else:
            self.notes.append(f"no tmpfs for {name} ({os.strerror(ctypes.get_errno())}): RLIMIT_FSIZE instead")

    async def _fill(self, name: str, for_s: float) -> None:
        self._full.add(name)
        folder = self._disks.get(name)
        if folder is None:
            pid = self._processes[name].pid
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
            await asyncio.sleep(for_s)
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            return
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")
        await asyncio.sleep(for_s)
        filler.unlink()

    async def _slow_down(self, fault: Fault) -> None:
        """The disk of a target, and of whatever takes its place meanwhile."""
        log = self.directory / f"{fault.target}.slow-disk.log"
        held_up, complaint = await slow_disk(
            lambda: self._pids(fault.target), fault.for_s, fault.amount, log, self._environment()
        )
        why = f" ({complaint})" if complaint else ""
        self.notes.append(f"slow disk: {held_up} calls of {fault.target} were held up{why}")

    # The end ---------------------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """Of the processes that run."""
        return {name: process.pid for name, process in self._processes.items() if process.returncode is None}

    async def stop(self) -> list[str]:
        """Ask everything to end, in order; say what did not."""
        objections = []
        for name in [*self.cars, "coordinator"]:
            process = self._processes.pop(name, None)
            if process is None or process.returncode is not None:
                continue
            _send(process.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_S):
                    code = await process.wait()
            except TimeoutError:
                objections.append(f"{name} did not end within {_STOP_S:g} s of SIGTERM: its log says where it stood")
                _send(process.pid, signal.SIGABRT)
                await process.wait()
            else:
                if code not in {0, -signal.SIGTERM}:  # the latter of one that had just been started
                    objections.append(f"{name} ended with {code} on SIGTERM")
        return objections

    async def close(self) -> None:
        """End whatever is left, and leave nothing but files behind."""
        self.client.close()
        processes, self._processes = self._processes, {}
        for process in processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        for task in self._watching.values():
            task.cancel()
        for link in self.links.values():
            await link.close()
        if hasattr(self, "broker"):
            await self.broker.stop()
        if self.store is not None:
            self.store.kill()
        if self.postgres is not None:
            self.postgres.close()

    def unmount(self) -> None:
        """Copy what is on small disks, so that it can be looked at, and let go of them."""
        libc = ctypes.CDLL(None, use_errno=True)
        for folder in self._disks.values():
            kept = folder.with_name(f"{folder.name}.kept")
            shutil.copytree(folder, kept)
            libc.umount2(str(folder).encode(), 2)
            folder.rmdir()
            kept.rename(folder)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def on_stage(stage: Stage) -> AsyncIterator[Stage]:
    """A stage that is set, and cleared in any case."""
    try:
        await stage.open()
        yield stage
    finally:
        await stage.close()
        stage.unmount()
