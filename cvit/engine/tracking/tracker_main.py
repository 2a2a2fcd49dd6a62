"""The tracker's process: it copies the journal, then what the driver sends, and ends with the driver in any case."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from cvit.engine.ahead import import_all
from cvit.engine.environment import prepare
from cvit.engine.own_process import end_with_parent
from cvit.engine.recording.journal import read_records
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.tracking.tracker import Tracker
from cvit.engine.tracking.tracker_process import ANSWER, ASK, ATTACH, CLOSE, CLOSED, EXPECT, FEED, Copy

PATIENT_PRIORITY = 10
"""The priority of patient imports, as a nice value: between that of the driver and that of Ray's workers, 15."""


def serve() -> None:
    """Copies until the driver closes it or dies. Its arguments are a descriptor and the driver's process id."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the driver says when it ends
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != int(sys.argv[3]):
        return  # the driver had died before
    connection = Connection(int(sys.argv[2]))
    try:
        _import(*connection.recv())
        _copy(connection, connection.recv())
    except (EOFError, OSError):  # the driver has died: whatever is under way must not be finished
        os._exit(1)


def _import(names: Sequence[str], is_patient: bool) -> None:
    """Imports modules before there is a second thread that would import them too.

    Args:
        is_patient: a thread of a low priority does it, so that the driver goes first. Without privileges a priority
            cannot be raised again, and what is written later is not to wait.
    """
    prepare()

    def work() -> None:
        if is_patient and sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PATIENT_PRIORITY)
        import_all(names)

    thread = threading.Thread(target=work, name="imports")
    thread.start()
    thread.join()


def _copy(connection: Connection, copy: Copy) -> None:
    driver = _Driver(connection)
    early = driver.messages_before_first_answer()
    # In this thread, before the tracker's imports MLflow: what both import is to be imported by one at a time.
    import_all(copy.imports)
    records = read_records(copy.storage, copy.sweep)
    tracker = Tracker(copy.uri, copy.sweep, copy.planned, records, driver.check, copy.surroundings)

    def close(status: str, timeout_s: float) -> None:
        threading.Thread(target=_close, args=(tracker, driver, status, timeout_s), daemon=True).start()

    actions: dict[str, Callable[..., None]] = {
        FEED: tracker.feed,
        ATTACH: tracker.attach,
        EXPECT: tracker.expect,
        CLOSE: close,
        ANSWER: driver.answered,
    }
    for kind, *news in early:
        actions[kind](*news)
    while True:
        kind, *news = connection.recv()
        actions[kind](*news)


def _close(tracker: Tracker, driver: "_Driver", status: str, timeout_s: float) -> None:
    """Waits for the tracker while the driver's answers go on coming in."""
    is_complete = tracker.close(status, timeout_s)
    driver.tell((CLOSED, is_complete, tracker.error, tracker.how_to_look()))
    os._exit(0)


class _Driver:
    """The driver as its tracker sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._asking, self._telling = connection, threading.Lock(), threading.Lock()
        self._answers: queue.SimpleQueue[tuple[str | None, bool]] = queue.SimpleQueue()

    def messages_before_first_answer(self) -> list[Any]:
        """Asks the driver whether anything may be written, which it answers once training has begun. Whatever the
        answer is: the tracker asks again."""
        self.tell((ASK,))
        messages = []
        while (message := self._connection.recv())[0] != ANSWER:
            messages.append(message)
        return messages

    def tell(self, message: tuple[Any, ...]) -> None:
        with self._telling:
            self._connection.send(message)

    def answered(self, refusal: str | None, is_lost: bool) -> None:
        """Takes the answer to the last question."""
        self._answers.put((refusal, is_lost))

    def check(self) -> None:
        """Returns if the driver may still write.

        Raises:
            LeaseLost: another driver has taken the sweep over.
            OSError: it cannot be told.
        """
        with self._asking:
            self.tell((ASK,))
            refusal, is_lost = self._answers.get()
        if refusal is not None:
            raise LeaseLost(refusal) if is_lost else OSError(refusal)
