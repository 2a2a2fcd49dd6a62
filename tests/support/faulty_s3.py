"""An S3 server of moto's behind a proxy that breaks what it is told: cut connections, refusals, listings that lag,
answers that never come."""

import contextlib
import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "cvit"
KEY, SECRET = "AKIAEXAMPLE", "s3cr3tOfTheTests"

CUT = "cut"
"""The connection ends in the middle of the request's body."""
SLOW_DOWN = "slow down"
"""The answer is 503, as S3 gives it to those who ask too often."""
STALE = "stale"
"""The answer is the one to the same request before."""
SILENCE = "silence"
"""There is no answer until the proxy ends."""

Refusal = tuple[int, str]
"""The answer is an error: its HTTP status, and S3's code for it."""

_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>the server says no</Message></Error>"

Fault = Callable[[str, str], str | Refusal | None]
"""From method and path of a request to what goes wrong with it."""


class FaultyS3(ThreadingHTTPServer):
    """The proxy. `fault` may be changed at any time; `faults` counts how often each was done."""

    daemon_threads = True

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server
        self.fault: Fault = lambda method, path: None
        self.faults: Counter[str | Refusal] = Counter()
        self.ended = threading.Event()
        self.answers: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of a proxy's."""

    def url(self, path: str) -> str:
        """The URL of a storage behind the proxy."""
        return f"s3://{BUCKET}/{path}?endpoint_override=127.0.0.1:{self.server_address[1]}&scheme=http"

    def direct_url(self, path: str) -> str:
        """The URL of the same storage past the proxy, which costs time."""
        return f"s3://{BUCKET}/{path}?endpoint_override={self.server[0]}:{self.server[1]}&scheme=http"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3  # pyright: ignore[reportIncompatibleVariableOverride]

    def _forward(self) -> None:
        fault = self.server.fault(self.command, self.path)
        if fault is not None:
            self.server.faults[fault] += 1
        if fault == CUT:
            if "Transfer-Encoding" in self.headers:
                self.rfile.read(1)
            at_once = struct.pack("ii", 1, 0)  # no goodbye: the client gets a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self.close_connection = True
            return
        body = self._body()
        if fault == SILENCE:
            self.server.ended.wait()
            self.close_connection = True
            return
        if fault == STALE and self.path in self.server.answers:
            status, headers, answer = self.server.answers[self.path]
        elif fault == SLOW_DOWN:
            status, headers, answer = 503, [], b""
        elif isinstance(fault, tuple):
            status, headers, answer = fault[0], [("Content-Type", "application/xml")], _ERROR.format(fault[1]).encode()
        else:
            status, headers, answer = self._ask(body)
            self.server.answers[self.path] = status, headers, answer
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer)))
        else:
            self.send_header("Content-Length", dict(headers).get("Content-Length", "0"))
            answer = b""
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.server)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        try:
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """A server with an empty bucket, and the proxy before it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        set_credentials(patch)
        direct = pafs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        direct.create_dir(BUCKET)
    with FaultyS3((host, port)) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            server.stop()


def set_credentials(patch: pytest.MonkeyPatch, secret: str = SECRET) -> None:
    """Credentials in the environment, for this process and those it starts."""
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
