"""Checks URIs, addresses and devices before anything is opened, imported or started."""

import socket
from urllib.parse import urlparse

from cvit.engine.execution.workers import planned_workers
from cvit.engine.planning.request import ANY_CLUSTER, LOCAL, NO_WISHES, Request, named_address
from cvit.engine.tracking.backend import backend_for
from cvit.parameters import ConfigError
from cvit.tracking import CONNECT_TIMEOUT_S, why_unreachable

ANSWER_TIMEOUT_S = 1.0
_VALID_ADDRESSES = f"give host:port (port 6379 by default), {ANY_CLUSTER}, or {LOCAL}"


def check_tracking_uri(uri: str) -> None:
    """Checks a tracking URI without opening it.

    Raises:
        ConfigError: no tracking backend can use it.
    """
    backend_for(uri)


def check_reachable(uri: str) -> None:
    """Raises ConfigError if nothing listens at a tracking server's address."""
    if (reason := why_unreachable(uri)) is not None:
        raise ConfigError(reason)


def check_address(address: str | None) -> None:
    """Raises ConfigError if an address is invalid or nothing listens there; Ray itself would try for minutes."""
    if address is None or address in (LOCAL, ANY_CLUSTER):
        return
    name = named_address(address)
    if urlparse(address).scheme in ("http", "https"):
        raise ConfigError(f"{name} is a job server's, for ray job submit, not a cluster's: {_VALID_ADDRESSES}")
    if address.startswith("ray://"):
        raise ConfigError(f"{name} is not valid: Ray's client would move the sweep to the cluster; {_VALID_ADDRESSES}")
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ConfigError(f"{name} is not valid: {_VALID_ADDRESSES}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S) as connection:
            speaks_http = _speaks_http(connection)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} cannot be reached: {error}") from error
    if speaks_http:
        raise ConfigError(f"{name} is a web server's, such as Ray's dashboard, not a cluster's: {_VALID_ADDRESSES}")


def _speaks_http(connection: socket.socket) -> bool:
    """True if a server answers in HTTP, as Ray's dashboard and job server do; a cluster begins a binary protocol."""
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def check_request(request: Request) -> None:
    """Checks the part of a request that all sweeps of a script have in common.

    Raises:
        ConfigError: the sweeps cannot be run like this.
    """
    check_tracking_uri(request.tracking_uri)
    check_address(request.address)
    check_device(request.device, request.address)
    if request.resources != NO_WISHES:
        planned_workers(request)


def check_device(device: str, address: str | None) -> None:
    """Raises ConfigError if a GPU of this machine is asked for and there is none."""
    if device == "cuda" and address in (None, LOCAL):
        import torch  # takes seconds, which other requests are spared

        if not torch.cuda.is_available():
            raise ConfigError("device 'cuda' is not valid here: this machine has no GPU; use cpu or auto")
