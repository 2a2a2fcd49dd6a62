"""Provenance says what a process trains with: the versions of the code and of torch, the device and the CPU.

Each worker says this of itself, since workers on several machines may differ from each other and from the driver.
`python -m cvit.provenance` prints the code version and the hash of the source.
"""

import hashlib
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cvit.results import Provenance

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).parent
_GIT_TIMEOUT_S = 10
_HASH_DIGITS = 8

_known_versions: dict[str, str] = {}
"""Code versions that another process has found out, by the hash of the source."""


def provenance(device: "torch.device") -> Provenance:
    """The provenance of a stage that this process trains on a device."""
    import torch

    return Provenance(
        code_version=code_version(),
        torch_version=str(torch.__version__),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


def code_version() -> str:
    """The package's version and, in a checkout, the commit, such as `0.1.0+1a2b3c4`. Where the commit does not say what
    the code is, the hash of this package's source does: `0.1.0+1a2b3c4-dirty.5d6e7f80`, `0.1.0+source.5d6e7f80`."""
    return _known_versions.get(source_hash()) or _own_code_version()


@cache
def git_commit() -> str:
    """The full hash of the checkout's commit; empty outside a checkout."""
    return _git("rev-parse", "HEAD") if _git("ls-files", "--", Path(__file__).name) else ""


def announce_code_version(source: str, version: str) -> None:
    """Takes over the code version of the driver, if this process has the same source: a worker on another machine has
    the files, but not the repository with the commit."""
    _known_versions[source] = version


@cache
def source_hash() -> str:
    """The first digits of the SHA-256 of the names and contents of this package's Python files."""
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(_PACKAGE).as_posix()}\0{content}\n".encode())
    return total.hexdigest()[:_HASH_DIGITS]


@cache
def _own_code_version() -> str:
    try:
        version = metadata.version("cvit")
    except metadata.PackageNotFoundError:  # it is found by its path, not installed
        version = "unreleased"
    commit = _git("describe", "--always", "--dirty") if _git("ls-files", "--", Path(__file__).name) else ""
    if not commit:
        return f"{version}+source.{source_hash()}"
    return f"{version}+{commit}" + (f".{source_hash()}" if commit.endswith("-dirty") else "")


def _git(*arguments: str) -> str:
    """The output of a git command in this folder; empty if there is no git, or no repository."""
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    print(code_version(), source_hash())
