"""Checks URIs, addresses and devices before anything is opened, imported or started."""

import socket

from cvit.config import ConfigError
from cvit.tracking import CONNECT_TIMEOUT_S, why_unreachable
from sweeps.engine.planning.request import IN_PROCESS, Request
from sweeps.engine.tracking.backend import backend_for

ANY_CLUSTER = "auto"
"""The address by which Ray finds a cluster that runs on this machine."""


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
    if address is None or address in (IN_PROCESS, ANY_CLUSTER):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        raise ConfigError(
            f"Ray address {address!r} is not valid: give host:port, ray://host:port, {ANY_CLUSTER}, or {IN_PROCESS}"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Ray address {address!r} cannot be reached: {error}") from error


def check_request(request: Request) -> None:
    """Checks the part of a request that all sweeps of a script have in common.

    Raises:
        ConfigError: the sweeps cannot be run like this.
    """
    check_tracking_uri(request.tracking_uri)
    check_address(request.address)
    check_device(request.device, request.address)
    if request.asha and request.address == IN_PROCESS:
        raise ConfigError("asha is not valid with address 'local': it stops trials that run beside others, in Ray")


def check_device(device: str, address: str | None) -> None:
    """Raises ConfigError if a GPU of this machine is asked for and there is none."""
    if device == "cuda" and address in (None, IN_PROCESS):
        import torch  # takes seconds, which other requests are spared

        if not torch.cuda.is_available():
            raise ConfigError("device 'cuda' is not valid here: this machine has no GPU; use cpu or auto")
