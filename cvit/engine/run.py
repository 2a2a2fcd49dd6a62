"""The main flow of a sweep, from top to bottom: plan → rounds of training → journal and tracking → answer."""

import contextlib
import functools
import shlex
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console

from cvit.data.datasets import Dataset, DatasetInfo, load
from cvit.engine import exit_codes
from cvit.engine.execution import in_process
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.head_watch import watching
from cvit.engine.execution.pack_size import pack_limits
from cvit.engine.execution.queue import ALONE
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers, planned_workers, this_process
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.planning.request import Request
from cvit.engine.planning.rounds import rounds
from cvit.engine.recording.claims import Claims
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import Lease
from cvit.engine.recording.record import record_failures, record_known_results, take_up_pruned
from cvit.engine.terminal.answer import answer_of, surroundings
from cvit.engine.terminal.display import Display
from cvit.engine.terminal.plan_text import print_growth, print_stopped
from cvit.engine.terminal.report import (
    Closing,
    print_closing,
    print_cost,
    print_lost_head,
)
from cvit.engine.terminal.spinner import is_live, spinner
from cvit.engine.tracking.attachments import best_model
from cvit.engine.tracking.backend import FAILED, FINISHED, KILLED
from cvit.engine.tracking.tracker import Tracker
from cvit.errors import one_line
from cvit.machine import hardware, packages, user
from cvit.provenance import code_version, git_commit
from cvit.records import SessionRecord
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError
from cvit.vocabulary import (
    TAG_CODE_VERSION,
    TAG_DATA_FINGERPRINT,
    TAG_GIT_COMMIT,
    TAG_PRESET,
    TAG_SEARCH_SPACE,
    TAG_TASK,
    TAG_USER,
)

if TYPE_CHECKING:
    from cvit.engine.execution.cluster import Cluster

CLOSE_TIMEOUT_S = 60.0
"""The longest wait for the tracking store at the end of a sweep; the next run copies what is still missing."""


@dataclass(frozen=True)
class Session:
    """Everything about one run of a sweep that does not change while it runs.

    Attributes:
        info: the description of the data set; None for a task that needs none.
        cluster: Ray, which starts at the first use of its workers; None trains in this process.
        timing: counts the time spent on training and around it.
        forecast: tells how much time is left.
        lease: None for a dry run, which writes nothing.
    """

    request: Request
    info: DatasetInfo | None
    storage: Storage
    console: Console
    cluster: "Cluster | None"
    timing: Timing
    forecast: Forecast
    lease: Lease | None = None

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The data set, decoded at the first use. Raises DataError if an image cannot be decoded."""
        return load(self.info) if self.info is not None else None

    def check(self) -> None:
        """Raises LeaseLost if this driver may not write any more."""
        if self.lease is not None:
            self.lease.check()

    @property
    def workers(self) -> Workers:
        """The workers of the cluster, or this process. Raises ConfigError if the cluster cannot be used."""
        if self.cluster is not None:
            return self.cluster.workers
        return this_process(self.request.device, self.request.resources)


@dataclass(frozen=True)
class Ending:
    """The ending of a session.

    Attributes:
        status: its status in the tracking store.
        storage_error: why the storage could not be written any more.
        training_error: why the training could not go on.
    """

    status: str
    exit_code: int
    storage_error: str | None = None
    training_error: str | None = None


def run_sweep(progress: Progress, session: Session) -> Ending:
    """Trains the missing stages of a plan that is printed already, records their results, and prints the answer.

    Returns:
        Its ending, with the exit code: 0; 1 if trials failed or the storage did; 130 after Ctrl-C.

    Raises:
        ConfigError: the cluster cannot be used.
        DataError: an image cannot be decoded.
        LeaseLost: another driver has taken the sweep over.
    """
    console, request = session.console, session.request
    journal = Journal(session.storage, progress.plan.study.sweep, session.check)
    if request.dry_run:
        print_cost(console, progress, planned_workers(request), request.max_pack)
        return Ending(FINISHED, exit_codes.FINISHED)
    try:
        if progress.todo:
            with spinner(console, "decoding images", session.forecast) if session.info else contextlib.nullcontext():
                _ = session.dataset, session.workers  # bad images, no cluster: before anything is recorded
        with contextlib.ExitStack() as stack, Book(progress, journal, session) as book:
            book.ending = _train_rounds(progress, journal, book, session)
            if is_live(console):  # shown while the book is closed
                stack.enter_context(spinner(console, f"copying to {book.tracker.place}", session.forecast))
    except KeyboardInterrupt:
        _raise_if_lost(session)
        print_stopped(console, progress, request)
        return Ending(KILLED, exit_codes.INTERRUPTED)
    _raise_if_lost(session)
    session.forecast.remember(session.storage, session.timing.start_up_s)
    if not progress.is_finished:
        with contextlib.suppress(StorageError):  # the closing text says so
            progress.read_steps(session.storage, with_results=True)
    closing = Closing(
        is_interrupted=book.ending.exit_code == exit_codes.INTERRUPTED,
        time_line=session.timing.line(progress.num_ended_here),
        tracking_place=book.tracker.place,
        tracking_error=book.tracking_error,
        how_to_look=[*book.tracker.how_to_look(), *book.optuna_lines],
        storage_error=book.ending.storage_error or book.storage_error,
        training_error=book.ending.training_error,
    )
    storage_error = print_closing(console, progress, request, session.storage, closing)
    if storage_error is not None:
        return Ending(FAILED, exit_codes.FAILED_TRIALS, storage_error=storage_error)
    return book.ending


def _raise_if_lost(session: Session) -> None:
    if session.lease is not None:
        session.lease.raise_if_lost()


def _train_rounds(progress: Progress, journal: Journal, book: "Book", session: Session) -> Ending:
    """Trains one round after another; a grid has one, a search several."""
    try:
        for number in rounds(progress, session.storage):
            if number > 0:
                take_up_pruned(progress, journal)
                book.record_plan()
                print_growth(session.console, progress)
            if progress.todo:
                record_failures(progress, journal, _train(progress, journal, session))
    except KeyboardInterrupt:
        return Ending(KILLED, exit_codes.INTERRUPTED)
    except StorageError as error:
        return Ending(FAILED, exit_codes.FAILED_TRIALS, storage_error=str(error))
    except TrainingError as error:
        return Ending(FAILED, exit_codes.FAILED_TRIALS, training_error=str(error))
    if progress.is_finished:
        return Ending(FINISHED, exit_codes.FINISHED)
    return Ending(FAILED, exit_codes.FAILED_TRIALS)


def _train(progress: Progress, journal: Journal, session: Session) -> dict[str, Outcome]:
    """Trains the stages of one round and displays the progress; returns the outcome of every stage, by key."""
    session.forecast.follow(progress, session.workers)
    max_pack = session.request.max_pack
    measuring = spinner(session.console, "measuring pack sizes", session.forecast)
    with measuring if max_pack is None else contextlib.nullcontext():
        limits = pack_limits(progress.todo, session.workers, max_pack)
    claims = ALONE if session.lease is None else Claims(session.storage, session.lease)
    site = Site(session.dataset, session.storage, session.workers, limits, session.timing, claims)
    with Display(progress, session.console, session.forecast) as display:
        if session.cluster is None:
            return in_process.train_stages(progress, journal, display, site)
        from cvit.engine.execution import execute  # imports Ray

        with _watched_head(progress, session.cluster.head_address, session):
            return execute.train_stages(progress, journal, display, site)


class Book:
    """The journal and its copy in the tracking store: opened together, and closed with the session's one ending.

    Attributes:
        ending: FAILED, unless the session sets another one before the book is closed.
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
        self._session = session
        self.ending = Ending(FAILED, exit_codes.FAILED_TRIALS)
        self.optuna_lines: list[str] = []
        self.tracking_error: str | None = None
        self.storage_error: str | None = None
        self._write_plan()
        study = progress.plan.study
        if progress.todo:
            journal.record_session(SessionRecord(study_key=study.key, packages=packages(), hardware=hardware()))
        self.tracker = Tracker(
            session.request.tracking_uri,
            study.sweep,
            self._keys(),
            journal.records,
            session.check,
            surroundings(session.storage),
        )
        journal.listen(self.tracker.feed)

    def __enter__(self) -> Self:
        return self

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
        try:
            self._journal.flush()
            self._export_search()
        except StorageError as error:
            self.storage_error = str(error)
        if kind is None and self.storage_error is None and self.ending.exit_code != exit_codes.INTERRUPTED:
            study = self._progress.plan.study
            self.tracker.attach(study.key, answer_of(self._session.storage, study.sweep, study.key))
            if self._session.request.log_models:
                self.tracker.attach(*best_model(self._progress, self._session.storage))
        if not self.tracker.close(self.ending.status, CLOSE_TIMEOUT_S):
            self.tracking_error = self.tracker.error or f"not done within {CLOSE_TIMEOUT_S:.0f} s"

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


def _watched_head(progress: Progress, address: str | None, session: Session) -> contextlib.AbstractContextManager[None]:
    """Watches the head of a cluster. If it is lost, Ray ends this process; before that, the command that continues the
    sweep is printed."""
    if address is None:
        return contextlib.nullcontext()
    return watching(address, functools.partial(print_lost_head, session.console, progress, session.request, address))
