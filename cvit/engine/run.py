"""The main flow of a sweep, from top to bottom: plan → rounds of training → journal and tracking → answer."""

import contextlib
import functools

from cvit.engine import exit_codes
from cvit.engine.ahead import import_all
from cvit.engine.book import Book
from cvit.engine.execution import forked
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.head_watch import watching
from cvit.engine.execution.pack_size import pack_limits
from cvit.engine.execution.queue import ALONE
from cvit.engine.execution.site import Site
from cvit.engine.execution.workers import planned_workers
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.planning.rounds import rounds
from cvit.engine.recording.claims import Claims
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.record import record_failures, take_up_pruned
from cvit.engine.session import Ending, Session
from cvit.engine.terminal.display import Display
from cvit.engine.terminal.operators import ready_operators
from cvit.engine.terminal.plan_text import print_growth, print_stopped
from cvit.engine.terminal.report import (
    Answer,
    Closing,
    print_closing,
    print_cost,
    print_lost_head,
    read_answer,
)
from cvit.engine.terminal.spinner import is_live, spinner
from cvit.engine.tracking.backend import FAILED, FINISHED, KILLED
from cvit.storage import StorageError

_TRAINS_WITH_RAY = "cvit.engine.execution.execute"
"""The module with which Ray Tune and pandas are imported."""


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
            with (
                spinner(console, f"decoding {session.info.stored.noun}s", session.forecast)
                if session.info
                else contextlib.nullcontext()
            ):
                _ = session.dataset, session.workers  # bad images, no cluster: before anything is recorded
            ready_operators(session.console, session.workers, session.forecast)
            if session.cluster is not None:
                import_all([_TRAINS_WITH_RAY])  # before the book is open, whose thread imports pandas too
        answers: list[Answer] = []
        with contextlib.ExitStack() as stack, Book(progress, journal, session) as book:
            book.while_copying = lambda: answers.append(_end(progress, session, book))
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
    storage_error = print_closing(console, progress, request, answers[0], closing)
    if storage_error is not None:
        return Ending(FAILED, exit_codes.FAILED_TRIALS, storage_error=storage_error)
    return book.ending


def _end(progress: Progress, session: Session, book: Book) -> Answer:
    """Ends the workers, and reads the answer, if the storage works."""
    session.end_workers()
    if book.ending.storage_error or book.storage_error:
        return Answer()
    console = session.console
    return read_answer(progress, session.storage, console.width if console.is_terminal else None)


def _raise_if_lost(session: Session) -> None:
    if session.lease is not None:
        session.lease.raise_if_lost()


def _train_rounds(progress: Progress, journal: Journal, book: Book, session: Session) -> Ending:
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
        limits = pack_limits(progress.todo, session.workers, max_pack, session.warm, session.forecast.work_s)
    claims = ALONE if session.lease is None else Claims(session.storage, session.lease)
    site = Site(session.dataset, session.storage, session.workers, limits, session.timing, claims)
    with Display(progress, session.console, session.forecast) as display:
        if session.warm is not None:
            return forked.train_stages(progress, journal, display, site, session.warm)
        if session.cluster is None:
            from cvit.engine.execution import in_process  # imports torch

            return in_process.train_stages(progress, journal, display, site)
        from cvit.engine.execution import execute  # imports Ray

        with _watched_head(progress, session.cluster.head_address, session):
            return execute.train_stages(progress, journal, display, site)


def _watched_head(progress: Progress, address: str | None, session: Session) -> contextlib.AbstractContextManager[None]:
    """Watches the head of a cluster. If it is lost, Ray ends this process; before that, the command that continues the
    sweep is printed."""
    if address is None:
        return contextlib.nullcontext()
    return watching(address, functools.partial(print_lost_head, session.console, progress, session.request, address))
