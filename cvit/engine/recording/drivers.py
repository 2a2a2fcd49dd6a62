"""The drivers that use a storage, as their lease files show them, and which of them live.

Clocks are never compared: a driver on another machine counts as alive as long as its file keeps changing, by the
watcher's own monotonic clock. On this machine the system tells, if it shows the process.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from cvit.engine.recording.process_identity import host_and_pid, is_alive, is_dead
from cvit.storage import Storage, decode_records, encode_record
from cvit.vocabulary import LEASES_FOLDER

EXPIRY_S = 60.0
"""A driver whose lease file has not changed for this long counts as dead, unless this machine knows better."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The content of a driver's lease file.

    Attributes:
        token: the driver's own name, of which the file's name is made.
        process: its identity; empty if the file is damaged.
        holds: False while it still asks for the lease.
        beats: the number of times that the file was written.
        seconds: its age.
        removed: tokens of drivers that it took for dead and whose leases it has taken over.
        claims: keys of the stages that it trains.
    """

    token: str
    process: str = ""
    holds: bool = True
    beats: int = 0
    seconds: float = 0.0
    removed: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The driver as a person knows it."""
        host, pid = host_and_pid(self.process)
        return f"process {pid} on {host}"


_KINDS = {"process": str, "holds": bool, "beats": int, "seconds": (int, float), "removed": list, "claims": list}
"""The types of what stands in a lease file."""
_LEASE_FILE = re.compile(r"(?P<token>[0-9a-f]+)\.json")


def lease_path(sweep: str, token: str) -> str:
    """The path of a lease file below the storage."""
    return f"{LEASES_FOLDER}/{sweep}/{token}.json"


def encode_driver(driver: Driver) -> bytes:
    """The driver as the content of its lease file."""
    return encode_record({name: value for name, value in asdict(driver).items() if name != "token"})


def decode_driver(token: str, data: bytes) -> Driver:
    """The driver in a lease file. A damaged file counts as a held lease: its changes still show a living driver."""
    records = decode_records(data)
    values = records[0] if records else {}  # a version before wrote no claims, a later one may write more
    return Driver(token=token, **{n: values[n] for n, kind in _KINDS.items() if isinstance(values.get(n), kind)})


def drivers_of(storage: Storage, sweep: str, own_token: str) -> dict[str, bytes]:
    """The lease files of the other drivers of a sweep, by token."""
    matches = map(_LEASE_FILE.fullmatch, storage.names(f"{LEASES_FOLDER}/{sweep}"))
    tokens = [match["token"] for match in matches if match]  # no other file is ever deleted
    files = {token: read_lease(storage, sweep, token) for token in tokens if token != own_token}
    return {token: data for token, data in files.items() if data is not None}


def drivers_in(storage: Storage, own_token: str) -> Iterator[tuple[str, str, bytes]]:
    """(sweep, token, lease file) of the other drivers of all sweeps in a storage."""
    for sweep in storage.names(LEASES_FOLDER):
        for token, data in drivers_of(storage, sweep, own_token).items():
            yield sweep, token, data


def read_lease(storage: Storage, sweep: str, token: str) -> bytes | None:
    """The content of a lease file; None if there is none. Object stores report that by several errors, so the names
    are listed again."""
    try:
        return storage.read(lease_path(sweep, token))
    except OSError:
        if f"{token}.json" in storage.names(f"{LEASES_FOLDER}/{sweep}"):
            raise
        return None


@dataclass
class Watch:
    """Tells which drivers live, by looking at their lease files again and again."""

    _seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    """Contents, and the time of their last change, by token."""
    _beating: set[str] = field(default_factory=set)

    def look(self, token: str, data: bytes) -> None:
        """Takes note of a lease file."""
        now = time.monotonic()
        before, since = self._seen.get(token, (data, now))
        if before != data:
            self._beating.add(token)
            since = now
        self._seen[token] = data, since

    def has_beaten(self, token: str) -> bool:
        """True if the lease file has changed since it was first seen."""
        return token in self._beating

    def is_dead(self, driver: Driver) -> bool:
        """True if a driver has ended, or its file has not changed for long while nothing else tells that it lives."""
        _, since = self._seen[driver.token]
        is_late = time.monotonic() - since > EXPIRY_S
        return is_dead(driver.process) or (is_late and not is_alive(driver.process))
