"""Looks at what a user named before anything is opened, imported or started."""

import socket
from pathlib import Path
from urllib.parse import urlparse

from cvit.config import ConfigError
from cvit.vocabulary import TRACKING_SCHEMES
from sweeps.engine.planning.request import IN_PROCESS, Request

CONNECT_TIMEOUT_S = 5.0


def check_tracking_uri(uri: str) -> None:
    """Looks at a tracking URI without opening it.

    Raises:
        ConfigError: MLflow could not use it.
    """
    scheme = urlparse(uri).scheme.partition("+")[0]
    if scheme not in TRACKING_SCHEMES:
        raise ConfigError(f"tracking URI {uri!r} is not valid: it must begin with one of {', '.join(TRACKING_SCHEMES)}")
    if scheme == "sqlite" and not Path(uri.partition(":///")[2]).absolute().parent.is_dir():
        raise ConfigError(
            f"tracking URI {uri!r}: there is no folder {Path(uri.partition(':///')[2]).absolute().parent}"
        )


def check_reachable(uri: str) -> None:
    """Raises ConfigError where nothing listens at a tracking server's address."""
    server = urlparse(uri)
    if server.scheme not in ("http", "https"):
        return
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((server.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"tracking server {server.hostname}:{port} cannot be reached: {error}") from error


def check_address(address: str | None) -> None:
    """Raises ConfigError where nothing listens at a cluster's address; Ray itself would look for it for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return  # none, or a word that Ray knows, such as auto
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Ray address {address!r} cannot be reached: {error}") from error


def check_request(request: Request) -> None:
    """Looks at what every sweep of a script has in common.

    Raises:
        ConfigError: the sweeps could not be run so.
    """
    check_tracking_uri(request.tracking_uri)
    check_address(request.address)
    check_device(request.device, request.address)
    if request.asha and request.address == IN_PROCESS:
        raise ConfigError("asha is not valid with address 'local': it stops trials that run beside others, in Ray")


def check_device(device: str, address: str | None) -> None:
    """Raises ConfigError where a GPU of this machine is asked for and there is none."""
    if device == "cuda" and address in (None, IN_PROCESS):
        import torch  # seconds, which nobody else has to wait for here

        if not torch.cuda.is_available():
            raise ConfigError("device 'cuda' is not valid here: this machine has no GPU; use cpu or auto")
