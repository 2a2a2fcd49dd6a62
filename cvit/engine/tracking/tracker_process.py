"""The tracker in a process of its own: MLflow's import and its work are off the driver's interpreter.

The process is started while the driver starts its workers, and imports what it will need. Later it gets a journal; the
driver sends records and goes on. The process asks it before everything that it writes whether the sweep is still
the driver's, and is killed with it. If it dies by itself, the next one reads the journal and continues.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self

from cvit.engine.recording.journal import read_records
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.recording.process_identity import this_process
from cvit.engine.signals import stops_wait
from cvit.engine.tracking.attachments import Attachment
from cvit.engine.tracking.backend import backend_for, imports_for
from cvit.engine.tracking.run_facts import Surroundings
from cvit.engine.tracking.tracker import Tracker
from cvit.errors import one_line
from cvit.records import Record
from cvit.storage import Storage
from cvit.vocabulary import NO_TRACKING

MOST_STARTS = 3
"""After so many processes that died, the rest of the journal is left to the next run of the sweep."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from cvit.engine.tracking.tracker_main import serve; serve()"
)
FEED, ATTACH, EXPECT, CLOSE, ASK, ANSWER, CLOSED = "feed", "attach", "expect", "close", "ask", "answer", "closed"
"""The kinds of messages; the last but one answers the tracker's question whether it may write."""
_GRACE_S, _PAUSE_S = 1.0, 0.05


class Copier(Protocol):
    """Copies a journal to a tracking store, here or in a process of its own; see `Tracker`."""

    place: str
    error: str | None

    def feed(self, records: list[Record]) -> None: ...
    def attach(self, study_key: str, attachment: Attachment | None) -> None: ...
    def expect(self, planned: set[str]) -> None: ...
    def how_to_look(self) -> list[str]: ...
    def close(self, status: str, timeout_s: float) -> bool: ...


@dataclass(frozen=True)
class Copy:
    """The copy that a tracker is to make.

    Attributes:
        uri: tracking URI.
        planned: keys of this driver's study and trials.
        storage: where the sweep's journal is.
        surroundings: what the journal does not say about its runs.
        imports: modules that attachments need, which a process imports as soon as it may write, unless it was a spare
            one.
    """

    uri: str
    sweep: str
    planned: set[str]
    storage: Storage
    surroundings: Surroundings = field(default_factory=Surroundings)
    imports: Sequence[str] = ()


class Spare:
    """A tracker's process that has nothing to copy yet, and imports what it will need. It ends with the context, unless
    a tracker has taken it."""

    def __init__(self, uri: str, imports: Sequence[str], is_patient: bool) -> None:
        """
        Args:
            is_patient: its imports leave the processor to this process.
        """
        needs = [*imports, *imports_for(uri)]
        self._process = None if uri == NO_TRACKING else _start_process((needs, is_patient))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if (started := self.take()) is not None:
            process, connection = started
            connection.close()
            process.kill()
            process.wait()

    def take(self) -> "_Started | None":
        """The process and the connection to it, once; None after that, and without tracking."""
        started, self._process = self._process, None
        return started


_Started = tuple[subprocess.Popen[bytes], Connection]


def _start_process(first: Any) -> _Started:
    """Starts a process, and sends it the first message: the modules to import, and whether that is to be patient."""
    ours, theirs = Pipe()
    with theirs, stops_wait():
        # In a process group of its own, no signal of a terminal reaches it: Ctrl-C is the driver's affair. In a session
        # of its own, it would have half of the processor, whatever its priority.
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    _try_to_send(ours, first)
    return process, ours


def _try_to_send(connection: Connection, message: Any) -> None:
    """Sends a message to a process, which may not be there any more."""
    with contextlib.suppress(OSError):  # it has died already: the end of its connection says so
        connection.send(message)


def tracker_for(copy: Copy, check: Callable[[], None], spare: Spare | None = None) -> Copier:
    """A tracker of a journal whose records so far are in the storage; those to come are fed.

    Args:
        check: called before everything that is written; it raises LeaseLost if this driver may not write any more.
        spare: a process that is started already.

    Raises:
        ConfigError: the tracking URI is not valid.
    """
    if copy.uri == NO_TRACKING:  # nothing to do that would be worth a process
        records = read_records(copy.storage, copy.sweep)
        return Tracker(copy.uri, copy.sweep, copy.planned, records, check, copy.surroundings)
    return TrackerProcess(copy, check, spare)


class TrackerProcess:
    """The driver's handle of its tracker's process.

    Attributes:
        place: the name of the store on the screen.
        error: why something is not copied.
    """

    def __init__(self, copy: Copy, check: Callable[[], None], spare: Spare | None = None) -> None:
        self._backend = backend_for(copy.uri)
        self.place = f"{self._backend.title} at {copy.uri}"
        self.error: str | None = None
        self._copy = replace(copy, surroundings=replace(copy.surroundings, driver=this_process()))
        self._check = check
        self._is_complete, self._lines, self._num_starts = False, self._backend.how_to_look(), 0
        self._ended, self._sending = threading.Event(), threading.Lock()
        self._outbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._repeated: list[tuple[Any, ...]] = []
        """Messages that another process would have to get too; the records are in the journal."""
        self._start(spare)
        for name, target in (("tracker's records", self._send), ("tracker's questions", self._answer)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def feed(self, records: list[Record]) -> None:
        """Takes records to copy."""
        self._outbox.put((FEED, records))

    def attach(self, study_key: str, attachment: Attachment | None) -> None:
        """Takes what belongs to a study beside its records, if there is anything; the process makes its files."""
        if attachment is not None:
            self._put_for_all((ATTACH, study_key, attachment))

    def expect(self, planned: set[str]) -> None:
        """Takes more keys of this driver's, before records of them are fed."""
        self._put_for_all((EXPECT, planned))

    def how_to_look(self) -> list[str]:
        """The lines that tell a person where to look at the sweep's runs."""
        return self._lines

    def close(self, status: str, timeout_s: float) -> bool:
        """Ends the runs that are still open with a status, as `Tracker.close` does."""
        self._put_for_all((CLOSE, status, timeout_s))
        self._ended.wait(timeout_s + 2 * _GRACE_S)
        self._ended.set()
        self._process.kill()
        self._process.wait()
        return self._is_complete and self.error is None

    def _put_for_all(self, message: tuple[Any, ...]) -> None:
        self._repeated.append(message)
        self._outbox.put(message)

    def _start(self, spare: Spare | None = None) -> None:
        """Starts a process, or takes the spare one, which then reads the journal so far."""
        self._num_starts += 1
        started = spare.take() if spare is not None else None
        self._process, self._connection = started or _start_process(((), False))
        _try_to_send(self._connection, self._copy)

    def _send(self) -> None:
        """Sends what is taken, in order."""
        while True:
            message = self._outbox.get()
            while not self._ended.is_set():
                try:
                    self._send_one(self._connection, message)
                    break
                except OSError:  # it has died; another one gets it
                    time.sleep(_PAUSE_S)

    def _send_one(self, connection: Connection, message: Any) -> None:
        with self._sending:
            connection.send(message)

    def _answer(self) -> None:
        """Answers the process, and starts another one if it dies."""
        while not self._ended.is_set():
            try:
                kind, *news = self._connection.recv()
            except (EOFError, OSError):
                self._replace()
                continue
            if kind == ASK:
                with contextlib.suppress(OSError):
                    self._send_one(self._connection, (ANSWER, *self._refusal()))
            else:
                self._is_complete, self.error, self._lines = news
                self._ended.set()

    def _refusal(self) -> tuple[str | None, bool]:
        """Why nothing may be written now, and whether that is for good."""
        try:
            self._check()
        except LeaseLost as error:
            return str(error), True
        except Exception as error:  # noqa: BLE001 -- whatever it is, nothing must be written
            return one_line(error), False
        return None, False

    def _replace(self) -> None:
        """Starts another process for one that has died, unless that has happened too often."""
        if self._ended.is_set():
            return
        code = self._process.wait()
        self._connection.close()
        if self._num_starts == MOST_STARTS:
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.error = f"its process died {MOST_STARTS} times, the last time by {reason}"
            self._ended.set()
            return
        self._start()
        for message in list(self._repeated):
            self._outbox.put(message)
