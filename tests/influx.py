"""Real InfluxDB servers for tests and benchmarks: Debian's 1.6.7, and 1.8.10 where install_servers.sh built it."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote_plus

import httpx

from idlewheel.brokers import free_port
from idlewheel.processes import dying_with_us
from tests.servers import required

__all__ = ["VERSIONS", "InfluxProcess", "SlowRoad", "find_influxd", "require_influxd"]

VERSIONS: Final = ("1.6.7", "1.8.10")
_START_S: Final = 60.0
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
    reason = f"InfluxDB {version} is not installed (tests/install_servers.sh)"
    return required(find_influxd(version), reason, fails_in_ci=version == "1.6.7" or shutil.which("go") is not None)


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
    def pids(self) -> list[int]:
        """Of the server, if it is not killed."""
        return [] if self._process is None else [self._process.pid]

    def query(self, text: str, database: str = "") -> list[dict[str, object]]:
        """Every series of an answer."""
        answer = httpx.post(f"{self.http}/query", data={"q": text, "db": database, "epoch": "ns"}, timeout=60).json()
        assert "error" not in answer, answer
        return [series for result in answer["results"] for series in result.get("series", ())]


class SlowRoad:
    """A way to a server on which requests whose path and body `stops` are held up until `go_on` is set."""

    def __init__(self, server: InfluxProcess, stops: Callable[[str], bool]) -> None:
        self.go_on: Final = threading.Event()
        self.held = threading.Semaphore(0)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.forward(b"")

            def do_POST(self) -> None:
                self.forward(self.rfile.read(int(self.headers["Content-Length"])))

            def forward(self, body: bytes) -> None:
                if stops(f"{self.path} {unquote_plus(body.decode())}"):
                    outer.held.release()
                    outer.go_on.wait()
                kept = {name: text for name, text in self.headers.items() if name in {"Content-Type", "Authorization"}}
                answer = httpx.request(self.command, server.http + self.path, content=body, headers=kept, timeout=60)
                self.send_response(answer.status_code)
                for name in ("Content-Type", "X-Influxdb-Version"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                if answer.status_code != 204:
                    self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._database_url = f"influx://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, database: str) -> str:
        """The store's URL."""
        return self._database_url + database

    def close(self) -> None:
        """Hold nothing up any more, and end."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
