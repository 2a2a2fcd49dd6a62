"""A real MLflow server that can be killed and started again, and a proxy that does to it what networks do."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.support.mlflow_stores import empty_store

Fault = Literal["", "before", "after", "cut", "hang"]
"""The fate of a request: nothing happens to it; a 500 before it reaches the server, or in place of its answer; a
connection cut in place of the answer; no answer at all until the proxy is mended."""


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class MlflowServer:
    """Started on demand, always on the same port and store."""

    def __init__(self, folder: Path) -> None:
        self.store = empty_store(folder)
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--workers", "1", "--backend-store-uri", self.store),
            *("--default-artifact-root", str(self._folder / "artifacts")),
        ]
        log = (self._folder / "server.log").open("ab")
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.2)
            finally:
                connection.close()
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        """Ends it at once, its workers with it."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


class FaultyProxy:
    """Passes requests on to a server on this machine; `fault` says what befalls each, `delay_s` how late it is."""

    def __init__(self, port: int) -> None:
        self.fault: Callable[[str], Fault] = lambda path: ""
        self.delay_s: Callable[[str], float] = lambda path: 0.0
        self.mended = threading.Event()
        self.faults = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.fault(self.path)
                proxy.faults += fault != ""
                if fault == "before":
                    self._answer(500, b"out of order")
                    return
                if fault == "hang":
                    proxy.mended.wait(60)
                    self.close_connection = True
                    return
                time.sleep(proxy.delay_s(self.path))
                status, answer = 502, b"no server"
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    status, answer = response.status, response.read()
                    connection.close()
                except OSError:
                    pass
                if fault == "after":
                    status, answer = 500, b"the answer was lost"
                if fault == "cut":
                    self.close_connection = True
                    return
                self._answer(status, answer)

            do_GET = do_POST = do_DELETE = _pass_on

            def _answer(self, status: int, body: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client did not wait

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.mended.set()
        self._server.shutdown()
        self._server.server_close()
