"""Looks at a running cluster before Ray attaches to it. Ray itself would try for 20 s, print a warning each second, and
then only say that it failed."""

import os
import socket

from cvit.engine.planning.request import ANY_CLUSTER, named_address
from cvit.errors import one_line
from cvit.parameters import ConfigError

TIMEOUT_S = 5.0
_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first question that Ray itself asks a cluster's control store."""


def check_cluster(address: str) -> None:
    """Checks that a cluster answers at an address and lets this machine in.

    Raises:
        ConfigError: nothing answers, something else does, or the cluster refuses this machine's token.
    """
    name = named_address(address)
    if address == ANY_CLUSTER:
        place = _running_here()
        name += f" (RAY_ADDRESS names {place})" if os.environ.get("RAY_ADDRESS") else f" ({place})"
    else:
        place = address
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} cannot be reached: {error}") from error
    answer = _answer(place, "")
    if answer == "UNIMPLEMENTED":
        raise ConfigError(f"{name} is not the port of a cluster's control store, 6379 by default")
    if answer == "UNAUTHENTICATED":
        _use_token(place, name)


def _running_here() -> str:
    """host:port of the cluster that RAY_ADDRESS names or that runs on this machine."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return canonicalize_bootstrap_address_or_die(ANY_CLUSTER)
    except (ConnectionError, ValueError) as error:
        if named := os.environ.get("RAY_ADDRESS"):
            raise ConfigError(f"{named_address(named)} is not valid: give host:port") from error
        raise ConfigError(
            f"Ray address {ANY_CLUSTER!r}: no cluster runs on this machine. Start one with ray start --head, or give "
            f"host:port; without --address, Ray starts here by itself"
        ) from error


def _use_token(place: str, name: str) -> None:
    """Has Ray show this machine's token to a cluster that asks for one; raises ConfigError if it is not let in."""
    from ray._private.authentication import authentication_token_setup
    from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

    where = "in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token (docs/CLUSTER.md)"
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ConfigError(f"{name} wants a token. Set RAY_AUTH_MODE=token, and put the cluster's {where}")
    try:
        token = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    except Exception as error:
        reason = one_line(error).partition(". ")[0]
        raise ConfigError(f"{name} asks for a token, and this machine's cannot be read: {reason}") from error
    if not token:
        raise ConfigError(f"{name} wants a token. Set RAY_AUTH_MODE=token, and put the cluster's {where}")
    if _answer(place, token) == "UNAUTHENTICATED":
        raise ConfigError(f"{name} refuses this machine's token, so put the cluster's {where}")
    authentication_token_setup._enable_token_auth()  # Ray does it by itself only for a cluster that it starts


def _answer(place: str, token: str) -> str:
    """The name of the status with which a server answers; empty if that cannot be found out, and Ray must."""
    try:
        import grpc  # comes with ray[default], which attaching to a cluster does not need
    except ImportError:
        return ""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary(_CLUSTER_ID)(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)  # pyright: ignore[reportAttributeAccessIssue]
    return "OK"
