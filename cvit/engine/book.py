"""The book of a session: the journal and its copy in the tracking store, opened and closed together."""

import shlex
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cvit.engine import exit_codes
from cvit.engine.ahead import import_all
from cvit.engine.planning.progress import Progress
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.record import record_known_results
from cvit.engine.session import Ending, Session
from cvit.engine.terminal.surroundings import needed_at_the_end, needed_for_files, surroundings
from cvit.engine.tracking.attachments import best_model
from cvit.engine.tracking.backend import FAILED
from cvit.engine.tracking.tracker_process import Copy, tracker_for
from cvit.errors import one_line
from cvit.machine import hardware, packages, user
from cvit.provenance import code_version, git_commit
from cvit.records import SessionRecord
from cvit.redaction import redacted
from cvit.storage import StorageError
from cvit.vocabulary import (
    TAG_CODE_VERSION,
    TAG_DATA_FINGERPRINT,
    TAG_GIT_COMMIT,
    TAG_PRESET,
    TAG_SEARCH_SPACE,
    TAG_TASK,
    TAG_USER,
)

CLOSE_TIMEOUT_S = 60.0
"""The longest wait for the tracking store at the end of a sweep; the next run copies what is still missing."""
LONGEST_START_S = 15.0
"""The longest time for which nothing is copied because training has not begun."""


class Book:
    """The journal and its copy in the tracking store: opened together, and closed with the session's one ending.

    Attributes:
        ending: FAILED, unless the session sets another one before the book is closed.
        while_copying: called when the session is over, while the tracker copies the rest.
        optuna_lines: where a search can be looked at in Optuna, or why its copy there is incomplete.
        tracking_error: why the tracking store is incomplete; set when the book is closed.
        storage_error: why the journal is incomplete; set when the book is closed.
    """

    def __init__(self, progress: Progress, journal: Journal, session: Session) -> None:
        self._progress, self._journal = progress, journal
        self._tags = {TAG_CODE_VERSION: code_version(), TAG_TASK: progress.plan.study.task}
        self._tags[TAG_PRESET] = session.request.preset
        if progress.plan.search is not None:
            self._tags[TAG_SEARCH_SPACE] = progress.plan.search.space_text
        self._tags |= {name: text for name, text in ((TAG_USER, user()), (TAG_GIT_COMMIT, git_commit())) if text}
        if session.info is not None:
            self._tags[TAG_DATA_FINGERPRINT] = session.info.fingerprint
        self._session, self._is_ready = session, not progress.todo
        self.ending = Ending(FAILED, exit_codes.FAILED_TRIALS)
        self.while_copying: Callable[[], object] = lambda: None
        self.optuna_lines: list[str] = []
        self.tracking_error: str | None = None
        self.storage_error: str | None = None
        self._write_plan()
        study = progress.plan.study
        if progress.todo:
            journal.record_session(SessionRecord(study_key=study.key, packages=packages(), hardware=hardware()))
        journal.flush()  # the tracker reads it
        uri, needs = session.request.tracking_uri, needed_for_files if progress.todo else needed_at_the_end
        around = surroundings(session.storage)
        copy = Copy(uri, study.sweep, self._keys(), session.storage, around, needs(study.sweep))
        self.tracker = tracker_for(copy, self._check_before_copying, session.spare)
        journal.listen(self.tracker.feed)
        if progress.todo:
            threading.Thread(target=self._import_meanwhile, name="imports", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def _import_meanwhile(self) -> None:
        """Imports what the end of the sweep needs here, while workers train."""
        self._session.timing.begun.wait(LONGEST_START_S)
        self._import_answer()

    def _import_answer(self) -> None:
        import_all(needed_at_the_end(self._progress.plan.study.sweep))

    def _check_before_copying(self) -> None:
        """Raises LeaseLost if this driver may not write any more; a thread calls it before the tracker writes.

        The first answer waits for the first training step, which copying would delay.
        """
        if not self._is_ready:
            self._session.timing.begun.wait(LONGEST_START_S)
            self._is_ready = True
        self._session.check()

    def record_plan(self) -> None:
        """Records the plan, or that it has grown, and the results that the storage has already.

        Raises:
            StorageError: the storage cannot be written.
        """
        self.tracker.expect(self._keys())
        self._write_plan()
        self._export_search()

    def _write_plan(self) -> None:
        self._journal.record_plan(self._progress.plan.study, self._progress.plan.trials, self._tags)
        record_known_results(self._progress, self._journal)

    def _keys(self) -> set[str]:
        plan = self._progress.plan
        return {plan.study.key, *(trial.key for trial in plan.trials)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.timing.begun.set()
        try:
            self._journal.flush()
            self._export_search()
        except StorageError as failure:
            self.storage_error = str(failure)
        try:
            if kind is None:
                self._import_answer()  # a thread may be about to, and two at once may break pandas
                if self.storage_error is None and self.ending.exit_code != exit_codes.INTERRUPTED:
                    self._attach_answer()
                self.while_copying()
        finally:
            if not self.tracker.close(self.ending.status, CLOSE_TIMEOUT_S):
                self.tracking_error = self.tracker.error or f"not done within {CLOSE_TIMEOUT_S:.0f} s"

    def _attach_answer(self) -> None:
        from cvit.engine.terminal.answer import answer_of

        study = self._progress.plan.study
        self.tracker.attach(study.key, answer_of(self._session.storage, study.sweep, study.key))
        if self._session.request.log_models:
            self.tracker.attach(*best_model(self._progress, self._session.storage))

    def _export_search(self) -> None:
        """Copies a search to its Optuna storage. If that fails, the sweep goes on: the next time, all is copied."""
        url = self._session.request.optuna_storage
        if url is None or self._progress.plan.search is None:
            return
        from cvit.engine.recording.optuna_studies import export_search  # Optuna is not needed otherwise

        self._session.check()
        records, shown = self._journal.records, redacted(url)
        try:
            export_search(self._progress, records, url)
        # SQLAlchemy, the drivers of databases and Optuna raise errors of any kind.
        except Exception as error:  # noqa: BLE001
            reason = redacted(one_line(error))
            self.optuna_lines = [f"{shown} is incomplete ({reason}); running the command again copies the search"]
        else:
            self.optuna_lines = [f"Optuna studies:      optuna-dashboard {shlex.quote(shown)}"]
