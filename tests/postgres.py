"""A real PostgreSQL server for tests and benchmarks: Debian's, on a free loopback port, with files of its own.

It refuses to be root's, so where tests are, it is nobody's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

import psutil
import psycopg

from idlewheel.brokers import free_port
from idlewheel.processes import dying_with_us
from tests.servers import required

__all__ = ["PostgresProcess", "find_postgres", "require_postgres"]

_START_S: Final = 30.0
_PAGE_BYTES: Final = 8192
_FOLDERS: Final = Path("/usr/lib/postgresql")
_USER: Final = "nobody"
_AS_USER: Final = (
    ["setpriv", f"--reuid={_USER}", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
    if os.geteuid() == 0
    else []
)


def find_postgres() -> Path | None:
    """Folder of the newest server's programs: Debian keeps them out of PATH."""
    on_path = shutil.which("initdb")
    found = sorted(_FOLDERS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    return None if on_path is None else Path(on_path).resolve().parent


def require_postgres() -> Path:
    """Where it is missing, skip; under CI, fail."""
    return required(find_postgres(), "PostgreSQL is not installed (tests/install_servers.sh)")


class PostgresProcess:
    """A server on a free loopback port, which stays the same over `kill` and `start`.

    Its folder is one of its own, as those of pytest are closed to its user.
    """

    def __init__(self, programs: Path) -> None:
        self.port: Final = free_port()
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="idlewheel-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "postgres.log"
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its only database."""
        return f"postgresql://idlewheel@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, at the first time with an empty cluster, and wait until it answers."""
        if not self._data.exists():
            self._make_cluster()
        self._process = self._spawned()
        ends = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                pass
            else:
                return
            assert time.monotonic() < ends, self._log.read_text()
            time.sleep(0.02)
            if self._process.poll() is not None:  # processes of the one that was killed have not all noticed yet
                self._process = self._spawned()

    def _make_cluster(self) -> None:
        if _AS_USER:
            shutil.chown(self._folder, _USER)
        command = [*_AS_USER, str(self._programs / "initdb"), "-D", str(self._data), "-U", "idlewheel"]
        command += [
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            "--no-sync",
            "--data-checksums",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stderr

    def _spawned(self) -> subprocess.Popen[bytes]:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self._folder}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*_AS_USER, self._programs / "postgres", "-D", self._data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=None if _AS_USER else dying_with_us(),  # noqa: PLW1509
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it at once. SIGINT ends it in order, and its connections with it.

        Processes that serve a connection outlive a killed server for a moment: they are waited for, too.
        """
        if self._process is not None:
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(number)
            self._process.wait()
            self._process = None
            _, left = psutil.wait_procs(children, _START_S)
            assert not left

    def close(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """Of the server, and of those that serve its connections; none while it is killed."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._process.pid, *(each.pid for each in psutil.Process(self._process.pid).children())]
        return []

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While it and its connections stand still: they are open and answer nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        while psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:  # until then it may take others
            time.sleep(0.001)
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def damage(self, url: str, relation: str, page: int) -> None:
        """Flip bytes of a page of a table or index on the disk, as a bad one would; starts it again."""
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("SELECT pg_relation_filepath(%s)", [relation]).fetchone()
        assert found is not None
        self.kill(signal.SIGINT)
        with (self._data / found[0]).open("r+b") as file:
            file.seek(page * _PAGE_BYTES + 4_000)
            flipped = bytes(byte ^ 0xFF for byte in file.read(64))
            assert len(flipped) == 64
            file.seek(-64, os.SEEK_CUR)
            file.write(flipped)
        self.start()

    def make_ledger(self) -> str:
        """Make an empty schema, which costs less than a database; its URL."""
        name = f"ledger_{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"{self.url}?options=-csearch_path%3D{name}"
