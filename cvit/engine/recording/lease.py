"""A lease lets one driver at a time run a sweep in a storage: the driver holds it, and renews it while it lives.

    STORAGE/leases/<sweep>/<token>.json    one per driver that holds the lease or asks for it

It works on folders and on object stores, which have no locks: each driver writes a file of its own, then reads those of
the others. Of two drivers that ask at once, at least one sees the other; the one with the smaller token goes first, and
the other waits until it knows whether the first got the lease. A driver that takes over writes that into its own file
before it deletes the other's. So a driver that was suspended, and has written its file again, finds the word of the
other or is found by it.

The holder writes nothing else, no record and no run, without having renewed its lease shortly before (`Lease.check`):
others wait for longer than that before they take over.
"""

import contextlib
import itertools
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from cvit.engine.recording import drivers
from cvit.engine.recording.drivers import (
    Driver,
    Watch,
    decode_driver,
    drivers_of,
    encode_driver,
    lease_path,
    read_lease,
)
from cvit.engine.recording.process_identity import is_alive, this_process
from cvit.errors import Refused, one_line
from cvit.storage import Storage, StorageError
from cvit.vocabulary import LEASES_FOLDER

BEAT_S = 5.0
"""Time between two renewals."""
POLL_S = 0.5
"""Time between two looks at the other drivers' files, while asking."""
LOOKS_BEFORE_A_REFUSAL = 2
"""The number of looks before a driver on this machine counts as alive: one that was just killed is gone by then."""
LOOKS_BEFORE_A_WORD = 4
"""The number of looks before the user is told about the wait: a driver that is just ending is gone by then."""
SURE_SHARE = 0.5
"""The share of `EXPIRY_S` for which a renewal is proof enough that no other driver has taken over."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps, unlike the monotonic clock of Linux."""


class SweepInUse(StorageError):
    """Another driver runs the sweep; the message is one line that names it."""


class LeaseLost(StorageError):
    """Another driver has taken the sweep over, or may do so; the message is one line. Nothing may be written."""


@contextlib.contextmanager
def lease(storage: Storage, sweep: str, say: Callable[[str], None]) -> Iterator["Lease"]:
    """Holds a sweep's lease. If another driver takes it over, because this one was suspended for long, the main thread
    gets a SIGTERM, and the KeyboardInterrupt that comes of it leaves the context as LeaseLost. A driver in another
    thread, which no signal reaches, notices it when it wants to write.

    Args:
        say: called with one line if there is a wait.

    Raises:
        SweepInUse: another living driver holds it.
        LeaseLost: another driver has taken it over meanwhile.
        StorageError: the storage cannot be read or written.
    """
    own_lease = Lease(storage, sweep)
    try:
        own_lease.ask(say)
    except OSError as error:
        raise StorageError(f"storage {storage.url!r} cannot be used: {one_line(error)}") from error
    try:
        yield own_lease
    except KeyboardInterrupt:
        own_lease.raise_if_lost()
        raise
    finally:
        own_lease.give_back()


class Lease:
    """This driver's lease file, and a thread that renews it.

    Attributes:
        token: the driver's name in the storage.
        sweep: the sweep that it holds.
        claims: keys of the stages that it trains. It is replaced, never changed, since the thread reads it.
    """

    def __init__(self, storage: Storage, sweep: str) -> None:
        self._storage, self.sweep, self.token = storage, sweep, uuid.uuid4().hex
        self.claims: frozenset[str] = frozenset()
        self._started, self._beats, self._holds = time.monotonic(), 0, False
        self._removed: list[str] = []
        self._renewed_at = _now()
        self._loss: str | None = None
        self._is_loss_known = False
        self._asker = threading.current_thread()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def ask(self, say: Callable[[str], None]) -> None:
        """Asks for the lease, and returns once it is held."""
        try:
            self.write()
            self._thread.start()
            self._wait_for_turn(say)
            self._holds = True
            self._renew()
            self.raise_if_lost()
        except KeyboardInterrupt:
            self.give_back()
            self.raise_if_lost()
            raise
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Ends the lease; it expires by itself if the storage cannot be reached any more."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(BEAT_S)
        with contextlib.suppress(OSError):
            self._storage.delete(lease_path(self.sweep, self.token))

    def check(self) -> None:
        """Returns if this driver holds the lease for certain. That costs nothing, unless the last renewal was long ago,
        because the driver was suspended or its thread has failed.

        Raises:
            LeaseLost: another driver has taken the sweep over.
            OSError: the storage cannot be reached, so it cannot be told.
        """
        if self._loss is None and not self._is_sure():
            self._renew_unless_broken()
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Raises LeaseLost if the lease is known to be lost."""
        if self._loss is not None:
            self._is_loss_known |= threading.current_thread() is self._asker
            raise LeaseLost(self._loss)

    def write(self) -> None:
        """Writes the lease file."""
        with self._writing:
            if self._ended.is_set():
                return
            self._beats += 1
            own = Driver(
                token=self.token,
                process=this_process(),
                holds=self._holds,
                beats=self._beats,
                seconds=time.monotonic() - self._started,
                removed=tuple(self._removed),
                claims=tuple(sorted(self.claims)),
            )
            self._storage.write(lease_path(self.sweep, self.token), encode_driver(own))

    def _is_sure(self) -> bool:
        return _now() - self._renewed_at < SURE_SHARE * drivers.EXPIRY_S

    def _renew(self) -> None:
        """Renews the lease, unless it is lost."""
        started = _now()
        if self._loss is not None:
            return
        is_there = read_lease(self._storage, self.sweep, self.token) is not None
        if is_there:
            self.write()
        others = [decode_driver(token, data) for token, data in self._others().items()]
        takers = [other.name for other in others if self.token in other.removed]
        if takers:
            self._lose(f"{takers[0]} has taken it over")
        elif not is_there and LEASES_FOLDER not in self._storage.names(""):
            raise Refused("the storage was removed while the sweep ran")  # the journal ends the sweep
        elif not is_there:
            self._lose("its lease was removed, by another driver or by hand")
        else:
            self._renewed_at = started

    def _renew_unless_broken(self) -> None:
        """Renews the lease; an error that no storage raises, and that will not pass, loses it."""
        try:
            self._renew()
        except OSError:
            raise
        except Exception as error:
            if self._is_sure():
                raise
            self._lose(f"its lease cannot be renewed ({type(error).__name__}: {one_line(error)})")

    def _lose(self, reason: str) -> None:
        self._loss = f"sweep {self.sweep!r} is no longer this driver's: {reason}; it stops and writes nothing more"

    def _others(self) -> dict[str, bytes]:
        return drivers_of(self._storage, self.sweep, self.token)

    def _wait_for_turn(self, say: Callable[[str], None]) -> None:
        """Returns when no other driver holds the lease or comes before this one; raises SweepInUse if one does."""
        watch = Watch()
        for look in itertools.count():
            self.raise_if_lost()
            others = self._others()
            if not others:
                return
            for token, data in others.items():
                other = decode_driver(token, data)
                watch.look(token, data)
                # A driver that was just killed still seems to live: the system takes a moment to end a process.
                is_living = watch.has_beaten(token) or (look >= LOOKS_BEFORE_A_REFUSAL and is_alive(other.process))
                if watch.is_dead(other):
                    self._remove(token, data)
                elif (other.holds or token < self.token) and is_living:
                    raise SweepInUse(self._refusal(other))
            if look == LOOKS_BEFORE_A_WORD:
                say(
                    f"{self.sweep}: another driver has it; checking for up to {drivers.EXPIRY_S:.0f} s "
                    "whether it is alive"
                )
            self._ended.wait(POLL_S)

    def _remove(self, token: str, data: bytes) -> None:
        """Takes over from a dead driver. If it wakes up before this is written, its file has changed, and it has the
        lease; if it wakes up afterwards, it finds this."""
        self._removed.append(token)
        self.write()
        if read_lease(self._storage, self.sweep, token) in (data, None):
            self._storage.delete(lease_path(self.sweep, token))
        else:
            self._removed.remove(token)
            self.write()

    def _refusal(self, other: Driver) -> str:
        return (
            f"sweep {self.sweep!r} in storage {self._storage.url!r} is being run by {other.name}, "
            f"for {other.seconds / 60:.0f} min now; wait for it or stop it"
        )

    def _beat(self) -> None:
        """Renews the lease until it is given back or lost."""
        while not self._ended.wait(BEAT_S):
            # Whatever fails for a while is no reason to stop here: `check` lets nothing be written meanwhile.
            with contextlib.suppress(BaseException):
                self._renew_unless_broken()
            if self._loss is not None:
                break
        is_needed = self._loss is not None and not self._is_loss_known and not self._ended.is_set()
        if is_needed and self._asker is threading.main_thread() and self._asker.is_alive():
            # It also interrupts a main thread that waits, unless it is just about to; so drivers wait in short turns.
            signal.pthread_kill(self._asker.ident or 0, signal.SIGTERM)


def _now() -> float:
    return time.clock_gettime(_CLOCK)
