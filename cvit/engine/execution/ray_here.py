"""The places that a Ray on this machine needs: a folder for its sockets and logs, and its token. This module does not
import Ray, so that a machine on which it cannot start is told at once."""

import contextlib
import os
import secrets
import shutil
import socket
import uuid
from pathlib import Path

from cvit.errors import one_line
from cvit.parameters import ConfigError

LONGEST_SOCKET_PATH = 107
"""The most bytes that the path of a Unix socket may have."""
NEEDED_BYTES = 100 * 2**20
"""Free space for a session: logs, and what does not fit into shared memory. Where it runs out, Ray's processes die of a
bus error."""
_LONGEST_IN_SESSION = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket in Ray's folder."""


def session_folder() -> str:
    """The folder in which Ray makes its sessions: `ray` in RAY_TMPDIR, or else the first that can be used of `ray` in
    TMPDIR, `/tmp/ray`, and one of this user's own.

    Raises:
        ConfigError: Ray could not work there.
    """
    if chosen := os.environ.get("RAY_TMPDIR"):
        folder = os.path.join(os.path.abspath(chosen), "ray")
        if (reason := _reason_not_usable(folder)) is not None:
            raise ConfigError(f"RAY_TMPDIR {chosen!r} is not valid for Ray: {reason}; set it to a folder such as /tmp")
        return folder
    chosen = os.environ.get("TMPDIR")
    candidates = [os.path.join(os.path.abspath(chosen), "ray")] if chosen else []
    candidates += ["/tmp/ray", f"/tmp/ray-{os.geteuid()}"]
    reasons = []
    for folder in candidates:
        reason = _reason_not_usable(folder) or _reason_not_own(folder)
        if reason is None:
            return folder
        reasons.append(reason)
    raise ConfigError(
        f"Ray has no folder for its sockets: {'; '.join(reasons)}. "
        "Set RAY_TMPDIR to a folder with a short name that can be written"
    )


def _reason_not_usable(folder: str) -> str | None:
    """The reason why Ray cannot have its sockets in a folder; None if a socket could be opened there."""
    excess = len(os.fsencode(folder + _LONGEST_IN_SESSION)) - LONGEST_SOCKET_PATH
    if excess > 0:
        return f"{folder} is {excess} bytes too long for the path of a socket"
    probe = os.path.join(folder, f".cvit-{uuid.uuid4().hex[:8]}")
    try:
        os.makedirs(folder, exist_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(probe)
        os.unlink(probe)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder} cannot be used ({error.strerror or one_line(error)})"
    if free < NEEDED_BYTES:
        return f"{folder} has {free / 2**20:.0f} MiB left of {NEEDED_BYTES / 2**20:.0f} that Ray needs"
    return None


def _reason_not_own(folder: str) -> str | None:
    """The reason if a folder is another user's, who could replace the files that Ray's processes read."""
    return None if os.stat(folder).st_uid == os.geteuid() else f"{folder} is another user's"


def provide_token() -> None:
    """Gives a Ray that starts here a token by the environment, where it could not keep one in the home folder."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        place = Path.home() / ".ray" / "auth_token"
        place.parent.mkdir(parents=True, exist_ok=True)
        works = os.access(place if place.exists() else place.parent, os.R_OK if place.exists() else os.W_OK)
    except (OSError, RuntimeError):  # no home folder, or none that can be written
        works = False
    if not works:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
