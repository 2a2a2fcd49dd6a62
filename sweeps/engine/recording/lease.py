"""A lease lets one driver at a time run a sweep in a storage: the driver holds it, and renews it while it lives.

    STORAGE/leases/<sweep>/<token>.json    one per driver that holds the lease or asks for it

It works on folders and on object stores, which have no locks: each driver writes a file of its own, then reads those of
the others. Of two drivers that ask at once, at least one sees the other; the one with the smaller token goes first, and
the other waits until it knows whether the first got the lease. Clocks are never compared: a driver on another machine
counts as alive as long as its file keeps changing, by the watcher's own monotonic clock.
"""

import contextlib
import itertools
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from cvit.errors import one_line
from cvit.storage import Storage, StorageError, decode_records, encode_record
from cvit.vocabulary import LEASES_FOLDER
from sweeps.engine.recording.process_identity import host_and_pid, is_dead, is_here, this_process

BEAT_S = 5.0
"""Time between two renewals."""
EXPIRY_S = 60.0
"""A driver whose lease has not changed for this long counts as dead."""
POLL_S = 0.5
"""Time between two looks at the other drivers' files, while asking."""
LOOKS_BEFORE_A_REFUSAL = 2
"""The number of looks before a driver on this machine counts as alive: one that was just killed is gone by then."""
LOOKS_BEFORE_A_WORD = 4
"""The number of looks before the user is told about the wait: a driver that is just ending is gone by then."""


class SweepInUse(StorageError):
    """Another driver runs the sweep; the message is one line that names it."""


@contextlib.contextmanager
def lease(storage: Storage, sweep: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a sweep's lease. If another driver takes it over, because this one was suspended for long, this process
    gets a SIGTERM.

    Args:
        say: called with one line if there is a wait, or if the lease is lost.

    Raises:
        SweepInUse: another living driver holds it.
        StorageError: the storage cannot be read or written.
    """
    own_lease = _Lease(storage, sweep, say)
    try:
        own_lease.ask()
    except OSError as error:
        raise StorageError(f"storage {storage.url!r} cannot be used: {one_line(error)}") from error
    try:
        yield
    finally:
        own_lease.give_back()


class _Lease:
    """This driver's lease file, and a thread that renews it."""

    def __init__(self, storage: Storage, sweep: str, say: Callable[[str], None]) -> None:
        self._storage, self._sweep, self._say = storage, sweep, say
        self._folder, self._token = f"{LEASES_FOLDER}/{sweep}", uuid.uuid4().hex
        self._started, self._beats, self._holds = time.monotonic(), 0, False
        self._removed: list[str] = []
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def ask(self) -> None:
        """Asks for the lease, and returns once it is held."""
        try:
            self._write()
            self._thread.start()
            self._wait_for_turn()
            self._holds = True
            self._write()
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Ends the lease; it expires by itself if the storage cannot be reached any more."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(BEAT_S)
        with contextlib.suppress(OSError):
            self._storage.delete(self._path(self._token))

    def _path(self, token: str) -> str:
        return f"{self._folder}/{token}.json"

    def _write(self) -> None:
        with self._writing:
            self._beats += 1
            record = {
                "process": this_process(),
                "holds": self._holds,
                "beats": self._beats,
                "seconds": time.monotonic() - self._started,
                "removed": self._removed,
            }
            self._storage.write(self._path(self._token), encode_record(record))

    def _others(self) -> dict[str, bytes]:
        """The lease files of other drivers, by token."""
        tokens = [name.removesuffix(".json") for name in self._storage.names(self._folder)]
        contents = {token: self._read(token) for token in tokens if token != self._token}
        return {token: data for token, data in contents.items() if data is not None}

    def _read(self, token: str) -> bytes | None:
        """The content of a lease file; None if it has been deleted meanwhile. Object stores report that by several
        errors, so the names are listed again."""
        try:
            return self._storage.read(self._path(token))
        except OSError:
            if f"{token}.json" in self._storage.names(self._folder):
                raise
            return None

    def _wait_for_turn(self) -> None:
        """Returns when no other driver holds the lease or comes before this one; raises SweepInUse if one does."""
        seen: dict[str, tuple[bytes, float]] = {}  # contents, and the time of their last change
        beating: set[str] = set()
        for look in itertools.count():
            others = self._others()
            if not others:
                return
            for token, data in others.items():
                now, other = time.monotonic(), _decoded(data)
                before, since = seen.get(token, (data, now))
                if before != data:
                    beating.add(token)
                    since = now
                seen[token] = data, since
                if is_dead(other["process"]) or now - since > EXPIRY_S:
                    self._remove(token)
                elif (other["holds"] or token < self._token) and (token in beating or self._is_still_here(other, look)):
                    raise SweepInUse(self._refusal(other))
            if look == LOOKS_BEFORE_A_WORD:
                self._say(
                    f"{self._sweep}: another driver has it; checking for up to {EXPIRY_S:.0f} s whether it is alive"
                )
            self._ended.wait(POLL_S)

    @staticmethod
    def _is_still_here(other: dict[str, Any], look: int) -> bool:
        """True if the other driver lives on this machine, and not only because it has just been killed: the system
        takes a moment to end a process."""
        return look >= LOOKS_BEFORE_A_REFUSAL and is_here(other["process"])

    def _remove(self, token: str) -> None:
        self._removed.append(token)
        self._write()  # if its owner wakes up, it finds this
        self._storage.delete(self._path(token))

    def _refusal(self, other: dict[str, Any]) -> str:
        host, pid = host_and_pid(other["process"])
        return (
            f"sweep {self._sweep!r} in storage {self._storage.url!r} is being run by process {pid} on {host}, "
            f"for {other['seconds'] / 60:.0f} min now; wait for it or stop it"
        )

    def _beat(self) -> None:
        """Renews the lease until it is given back or lost."""
        while not self._ended.wait(BEAT_S):
            # A storage that fails for a while is no reason to stop here: the training handles it.
            with contextlib.suppress(OSError):
                if self._is_lost():
                    self._say(f"{self._sweep}: another driver has taken this sweep over; stopping")
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    return
                self._write()

    def _is_lost(self) -> bool:
        """True if another driver has taken the lease over."""
        is_removed = f"{self._token}.json" not in self._storage.names(self._folder)
        return is_removed or any(self._token in _decoded(data)["removed"] for data in self._others().values())


def _decoded(data: bytes) -> dict[str, Any]:
    """The record in a lease file. A damaged file counts as a held lease: its changes still show a living driver."""
    records = decode_records(data)
    return records[0] if records else {"process": "", "holds": True, "seconds": 0.0, "removed": []}
