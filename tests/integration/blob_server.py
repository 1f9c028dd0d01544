"""A real HTTP server of blobs for tests: ranges, uploads, and the faults that a test asks for."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BlobServer(ThreadingHTTPServer):
    """`cut_after` ends each answer early; `ignore_ranges` sends the whole blob whatever is asked for.

    While `go_on` is cleared, nobody who asks is answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None
        self.ignore_ranges = False
        self.status: int | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: BlobServer

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        server.go_on.wait()
        if server.status is not None or self.path not in server.blobs:
            self.send_error(server.status or 404)
            return
        blob = server.blobs[self.path]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and not server.ignore_ranges else 0
        if start > len(blob):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(blob) - start))
        self.end_headers()
        self.wfile.write(blob[start:][: server.cut_after])

    def do_PUT(self) -> None:
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        self.server.blobs[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_blobs() -> Iterator[BlobServer]:
    with BlobServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
