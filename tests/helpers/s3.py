"""An S3 server for the tests (moto's, as a process of its own), and a proxy before it that fails.

Both listen on free ports of the loopback. Tests that need them skip where moto is not installed:
pip install 'lrd-pipeline[dev]'.
"""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any

import pytest

MISSING = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
needs_server = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SERVE = """
import logging, sys, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Ends with the process that holds its stdin."""
FAILURES = ("throttled", "broken", "lost before", "lost after", "cut")
FRAMING = ("content-length", "transfer-encoding", "connection", "expect")
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>asked for by a test</Message></Error>"


@contextmanager
def server() -> Iterator[str]:
    """An empty S3 server; its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def make_bucket(address: str, name: str) -> None:
    request = urllib.request.Request(f"http://{address}/{name}", data=b"", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def environment(address: str) -> dict[str, str]:
    """What a process needs to take this server for S3."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{address}"}


class Faults:
    """What a proxy does to requests, and how often it did."""

    def __init__(self, share: float = 0.0, seed: int = 0) -> None:
        """share: of the requests that fail, in each of the ways `FAILURES` by turns."""
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self.reset(share)

    def reset(self, share: float = 0.0) -> None:
        """Nothing else fails from now on, and counts begin anew."""
        self.share, self.slow_share, self.slow_seconds = share, 0.0, 0.0
        self.only: str | None = None
        """The one way in which requests fail."""
        self.match = "*"
        """Method and path of requests that may fail, as a shell pattern."""
        self.denied = False
        self.requests = 0
        self.slow, self.slow_times = 0, 1 << 30
        """Slow ones so far, and at most."""
        self.failed: Counter[str] = Counter()

    def next(self, request: str) -> tuple[str | None, bool]:
        """How this request fails, if it does, and whether it is slow."""
        with self._lock:
            self.requests += 1
            if self.denied:
                return "denied", False
            fails, slow = self._rng.random() < self.share, self._rng.random() < self.slow_share
            slow = slow and self.slow < self.slow_times
            way = self.only or FAILURES[self.failed.total() % len(FAILURES)]
            if not fnmatch(request, self.match):
                return None, False
            if fails:
                self.failed[way] += 1
            self.slow += slow
            return (way if fails else None), slow


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_expect_100(self) -> bool:
        return True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _forward(self) -> None:
        faults = self.server.faults
        way, is_slow = faults.next(f"{self.command} {self.path}")
        if self.headers.get("Expect") and way not in ("throttled", "broken", "denied"):
            self.send_response_only(100)
            self.end_headers()
        if way in ("throttled", "broken", "denied"):
            code, name = {
                "throttled": (503, "SlowDown"),
                "broken": (500, "InternalError"),
                "denied": (403, "AccessDenied"),
            }[way]
            # The body that was announced is not read: the connection cannot serve another request.
            self.close_connection = True
            body = ERROR.format(name).encode()
            self._answer(code, [("Content-Type", "application/xml")], body, len(body))
            return
        if way == "lost before":
            self._hang_up()
            return
        content = self._content()
        headers = {name: text for name, text in self.headers.items() if name.lower() not in FRAMING}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=120)
        upstream.request(self.command, self.path, content, headers)
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        if way == "lost after":
            self._hang_up()
            return
        if is_slow:
            time.sleep(faults.slow_seconds)
        length = int(answer.headers.get("Content-Length") or len(body))
        if way == "cut" and body:
            self._answer(answer.status, answer.getheaders(), body[: len(body) // 2], length)
            self._hang_up()
            return
        if way == "cut":
            self._hang_up()
            return
        self._answer(answer.status, answer.getheaders(), body, length)

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def _answer(self, code: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        self.send_response_only(code)
        for name, value in headers:
            if name.lower() not in FRAMING:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults = upstream, faults

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, as those do that are killed."""


@contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """A server that passes requests on to another and lets some of them fail; its address."""
    serving = _Proxy(upstream, faults)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{serving.server_address[1]}"
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()


@contextmanager
def as_environment(variables: dict[str, str]) -> Iterator[None]:
    """These variables for this process and those that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
