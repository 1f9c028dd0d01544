"""Real InfluxDB servers for tests and benchmarks: Debian's 1.6.7, and 1.8.10 where install_servers.sh built it."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import httpx
import pytest

from idlewheel.brokers import free_port
from idlewheel.processes import dying_with_us

__all__ = ["VERSIONS", "InfluxProcess", "find_influxd", "require_influxd"]

VERSIONS: Final = ("1.6.7", "1.8.10")
_START_S: Final = 30.0
_CONFIG: Final = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
dir = "{folder}/meta"
[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{port}"
log-enabled = false
auth-enabled = {auth}
max-body-size = {most_body_bytes}
[logging]
level = "warn"
[continuous_queries]
enabled = false
"""


def find_influxd(version: str) -> str | None:
    """Path of a server of this version."""
    if version == "1.6.7":
        return shutil.which("influxd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin"]))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "idlewheel" / "influxd-1.8.10"
    return str(path) if path.exists() else None


def require_influxd(version: str) -> str:
    """Where it is missing, skip; under CI, fail, unless it is one that is only there where Go is."""
    program = find_influxd(version)
    if program is not None:
        return program
    reason = f"InfluxDB {version} is not installed (tests/install_servers.sh)"
    if os.environ.get("CI") and (version == "1.6.7" or shutil.which("go")):
        pytest.fail(reason)
    pytest.skip(reason)


class InfluxProcess:
    """A server on free loopback ports, which stay the same over `kill` and `start`. Its files are in `folder`."""

    def __init__(self, program: str, folder: Path, *, auth: bool = False, most_body_bytes: int = 25_000_000) -> None:
        self.port: Final = free_port()
        self.http: Final = f"http://127.0.0.1:{self.port}"
        self._log = folder / "influxd.log"
        config = folder / "influxd.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder,
                port=self.port,
                rpc_port=free_port(),
                auth=str(auth).lower(),
                most_body_bytes=most_body_bytes,
            )
        )
        self._command = [program, "-config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, account: str = "") -> str:
        """The store's URL."""
        return f"influx://{account}127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_us(),  # noqa: PLW1509
            )
        ends = time.monotonic() + _START_S
        while True:
            try:
                if httpx.get(f"{self.http}/ping").status_code == 204:
                    return
            except httpx.HTTPError:
                pass
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < ends, self._log.read_text()
            time.sleep(0.05)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it answer nothing, with its port open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def query(self, text: str, database: str = "") -> list[dict[str, object]]:
        """Every series of an answer."""
        answer = httpx.post(f"{self.http}/query", data={"q": text, "db": database, "epoch": "ns"}, timeout=60).json()
        assert "error" not in answer, answer
        return [series for result in answer["results"] for series in result.get("series", ())]
