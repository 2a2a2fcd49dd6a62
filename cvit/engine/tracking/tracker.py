"""The tracker copies the journal to a tracking backend: a run per study, and one below it per trial.

One thread does all the writing, in a process of its own (`tracker_process.py`), off the training path. A store that
cannot be reached delays the copy, never the training; sending a record again adds nothing, so after any interruption
the copy simply goes on.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cvit import vocabulary as v
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.recording.process_identity import is_dead, is_here
from cvit.engine.tracking.attachments import Attachment, Attachments, environment_of
from cvit.engine.tracking.backend import (
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    Archive,
    Backend,
    Change,
    ExistingRun,
    Refused,
    Together,
    backend_for,
)
from cvit.engine.tracking.journal_runs import JournalRuns
from cvit.engine.tracking.run_facts import NOWHERE, Surroundings
from cvit.engine.tracking.tracked_run import TrackedRun
from cvit.errors import short_line
from cvit.records import Record, SessionRecord

_FLUSH_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 30.0
_LONGEST_PAUSE_AT_THE_END_S = 2.0
_LONGEST_ERROR = 200
_MOST_RUNS_TOGETHER, _MOST_POINTS_TOGETHER = 200, 20_000
"""The most that is written at once: less than a second of a database, which others read meanwhile."""


class Tracker:
    """The copier. `feed` takes journal records and returns at once; `close` waits until the store has them all.

    Attributes:
        place: the name of the store on the screen.
        error: why something is not copied.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        planned: set[str],
        records: Iterable[Record],
        check: Callable[[], None] = lambda: None,
        surroundings: Surroundings = NOWHERE,
    ) -> None:
        """
        Args:
            uri: tracking URI.
            sweep: name of the sweep.
            planned: keys of this driver's study and trials.
            records: the journal so far.
            check: called before everything that is written; it raises LeaseLost if this driver may not write any more.
            surroundings: what the journal does not say about its runs.

        Raises:
            ConfigError: the URI is not valid.
        """
        self._backend, self._sweep, self._check = backend_for(uri), sweep, check
        self._is_complete, self._surroundings = False, surroundings
        self.place = f"{self._backend.title} at {uri}"
        self._inbox: queue.SimpleQueue[list[Record] | tuple[str, Attachment] | None] = queue.SimpleQueue()
        self._journal = JournalRuns(sweep, planned, surroundings)
        self._attachments = Attachments()
        self._is_connected = False
        self._final_status: str | None = None
        self._deadline = float("inf")
        self._may_have_duplicates = False
        self._refusal: str | None = None
        self.error: str | None = None
        for record in records:
            self._add_if_whole(record)
        self._thread = threading.Thread(target=self._copy, name="tracker", daemon=True)
        self._thread.start()

    def feed(self, records: list[Record]) -> None:
        """Takes records to copy."""
        self._inbox.put(records)

    def attach(self, study_key: str, attachment: Attachment | None) -> None:
        """Takes what belongs to a study beside its records, if there is anything; the tracker's thread makes its
        files."""
        if attachment is not None:
            self._inbox.put((study_key, attachment))

    def expect(self, planned: set[str]) -> None:
        """Takes more keys of this driver's, before records of them are fed."""
        self._journal.planned = self._journal.planned | planned

    def how_to_look(self) -> list[str]:
        """The lines that tell a person where to look at the sweep's runs."""
        return self._backend.how_to_look()

    def close(self, status: str, timeout_s: float) -> bool:
        """Ends the runs that are still open with a status (FINISHED, FAILED, KILLED).

        Returns:
            Whether everything was copied within the time; `error` says why not. The rest is in the journal and is
            copied by the next run of the sweep.
        """
        self._final_status, self._deadline = status, time.monotonic() + timeout_s
        self._inbox.put(None)
        self._thread.join(timeout_s + 1)
        return self._is_complete and self.error is None

    @property
    def _store(self) -> Backend:
        """The backend, for one call, unless this driver may not write any more."""
        self._check()
        return self._backend

    def _copy(self) -> None:
        """Copies until the end, or until an error that nobody foresaw, which must not look like the end."""
        try:
            self._copy_all()
        except BaseException as error:  # noqa: BLE001
            self.error = f"{type(error).__name__}: {short_line(error, _LONGEST_ERROR)}"

    def _copy_all(self) -> None:
        pause, is_closing = _FLUSH_INTERVAL_S, False
        while True:
            is_closing |= self._take(0 if is_closing else pause)
            try:
                if not self._is_connected:
                    self._connect()
                self._write_changed()
                if is_closing:
                    self._end_open_runs()
                self._write_attachments()
                self.error, pause = self._refusal, _FLUSH_INTERVAL_S
                if is_closing:
                    self._is_complete = True
                    return
            except LeaseLost:
                raise
            # Whatever the store raises (network, SQL, its own errors), training goes on and the copy is tried again.
            except Exception as error:  # noqa: BLE001
                self.error = short_line(error, _LONGEST_ERROR)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                if is_closing:
                    if time.monotonic() > self._deadline:
                        return
                    time.sleep(min(pause, _LONGEST_PAUSE_AT_THE_END_S))

    def _write_changed(self) -> None:
        """Brings all runs up to date: studies first, since each trial's run is below its study's."""
        runs = self._journal.by_key
        changed = [run for run in runs.values() if run.changed and run.study_key in runs]
        for run in changed:
            if run.is_study:
                self._write_unless_refused(run)
        trials = [run for run in changed if not run.is_study]
        if not isinstance(self._backend, Together):
            for run in trials:
                self._write_unless_refused(run)
            return
        for together in _parts(trials):
            self._write_together(together, self._backend)

    def _write_together(self, runs: Sequence[TrackedRun], backend: Together) -> None:
        """Brings runs up to date at once; what cannot be written so is written run by run."""
        for study_key in {run.study_key for run in runs if run.run_id is None}:
            if self._journal.by_key[study_key].run_id is None:
                self._create(self._journal.by_key[study_key])
        changes = [self._change(run) for run in runs]
        self._check()
        try:
            ids = backend.write_together(changes)
        except Exception:  # noqa: BLE001
            self._may_have_duplicates |= any(change.new is not None for change in changes)
            ids = [None] * len(runs)  # if it is an outage, the next call says so
        for run, run_id in zip(runs, ids, strict=True):
            if run_id is not None:
                run.run_id, run.is_open = run_id, self._journal.status_of(run) == RUNNING
                run.settle()
        remaining = [run for run, run_id in zip(runs, ids, strict=True) if run_id is None]
        if backend.calls_at_once == 1:
            for run in remaining:
                self._write_unless_refused(run)
            return
        with ThreadPoolExecutor(backend.calls_at_once) as pool:
            for written in [pool.submit(self._write_unless_refused, run) for run in remaining]:
                written.result()

    def _change(self, run: TrackedRun) -> Change:
        """The part of a trial's run that the store does not have."""
        status = self._journal.status_of(run)
        if run.run_id is not None and run.was_copied_before and run.points:
            self._leave_out_copied(run, run.run_id)
        return Change(
            run_id=run.run_id,
            new=self._journal.new_run(run) if run.run_id is None else None,
            params=run.params,
            tags=run.tags,
            points=run.points,
            data=run.data,
            status=None if status == RUNNING and (run.is_open or run.run_id is None) else status,
            end_time_ms=None if status == RUNNING else run.end_time_ms or _now_ms(),
        )

    def _write_unless_refused(self, run: TrackedRun) -> None:
        """Brings a run up to date; a run that the store refuses, as when somebody has deleted it, holds up no other."""
        try:
            self._write(run)
        except Refused as error:
            run.settle()
            run.is_open = False
            self._refusal = f"run of {run.key}: {short_line(error, _LONGEST_ERROR)}"

    def _take(self, timeout_s: float) -> bool:
        """Takes all records that have come in, waiting a while for the first; True once `close` was called."""
        deadline = time.monotonic() + timeout_s
        is_closing = False
        while True:
            try:
                records = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return is_closing
            if records is None:
                is_closing, deadline = True, 0.0
                continue
            if isinstance(records, tuple):
                self._attachments.take(*records)
                continue
            for record in records:
                self._add_if_whole(record)

    def _add_if_whole(self, record: Record) -> None:
        """Adds a record; one that makes no sense holds up no other."""
        try:
            if isinstance(record, SessionRecord):
                self._attachments.take(record.study_key, environment_of(record))
            else:
                self._journal.add(record)
        except Exception as error:  # noqa: BLE001
            self._refusal = f"a record of the journal: {type(error).__name__}: {short_line(error, _LONGEST_ERROR)}"

    def _connect(self) -> None:
        study = next((study for key, study in self._journal.studies.items() if key in self._journal.planned), None)
        if study is None:
            raise LookupError("the journal's record of the study is damaged")
        if isinstance(self._backend, Archive):
            self._backend.store_files_below(self._surroundings.storage)
        self._store.connect(self._sweep, study)
        self._adopt()
        self._is_connected = True

    def _adopt(self) -> None:
        """Finds the runs of earlier drivers by their keys and decides what becomes of them.

        A run that has ended as the journal says is left alone. A run that a dead driver left RUNNING is continued
        where this driver's plan has it, else ended as KILLED. The runs of a living driver are left alone.
        """
        runs = self._store.existing(self._journal.planned)
        drivers = {r.tags.get(v.TAG_STUDY_KEY, ""): r.tags[v.TAG_DRIVER] for r in runs if v.TAG_DRIVER in r.tags}
        for existing in runs:
            run = self._journal.by_key.get(existing.key)
            if run is not None:
                self._adopt_run(run, existing)
            study_key = existing.tags.get(v.TAG_STUDY_KEY, "")
            is_orphan = study_key in self._journal.planned or self._is_gone(drivers.get(study_key, ""), study_key)
            is_unfinished = run is None or run.status is None
            if existing.status == RUNNING and is_unfinished and existing.key not in self._journal.planned and is_orphan:
                self._store.set_status(existing.id, KILLED)

    def _adopt_run(self, run: TrackedRun, existing: ExistingRun) -> None:
        run.run_id, run.is_open, run.was_copied_before = existing.id, existing.status == RUNNING, True
        # A store may refuse another text for a parameter, and a version before may have written one: 0 for auto.
        run.params = {name: value for name, value in run.params.items() if name not in existing.params}
        if run.status is None:
            is_settled = run.key not in self._journal.planned
        else:
            names = (v.TAG_STATUS, v.TAG_ROLE, v.TAG_STUDY_KEY)  # somebody may have removed one
            is_whole = all(existing.tags.get(name) == run.tags.get(name) for name in names)
            is_settled = is_whole and existing.status in (FINISHED, FAILED)
        if run.is_study and v.TAG_ANSWER in existing.tags:
            run.tags.pop(v.TAG_NOTE, None)  # the one in the store has the answer
        if existing.has_data:
            run.data = None
        self._attachments.leave_out(run.key, existing.tags)
        if is_settled:
            if run.status is None:
                self._attachments.forget(run.key)
            lacking = {name: text for name, text in run.tags.items() if name not in existing.tags}
            self._settle(run, lacking if run.status is not None else {})

    def _settle(self, run: TrackedRun, lacking: dict[str, str]) -> None:
        """Forgets what an earlier session has copied. A run of an earlier version still gets the tags that it lacks."""
        data = run.data if run.status is not None else None
        run.settle()
        run.tags, run.data, run.changed = lacking, data, bool(lacking) or data is not None

    def _is_gone(self, driver: str, study_key: str) -> bool:
        """True if a study's driver is dead. Who runs a study of this journal holds its lease, and that is this driver:
        unless the same study is run from another storage too, on this machine, an earlier driver is dead."""
        return not driver or is_dead(driver) or (study_key in self._journal.by_key and not is_here(driver))

    def _write(self, run: TrackedRun) -> None:
        """Brings one run up to date. Each part may be repeated without harm."""
        status = self._journal.status_of(run)
        run_id = run.run_id
        if run_id is None:
            run_id = self._create(run)
        elif not run.is_open and status == RUNNING:
            self._store.set_status(run_id, RUNNING)
        run.is_open = True
        if run.was_copied_before and run.points:
            self._leave_out_copied(run, run_id)
        self._store.write(run_id, run.params, run.tags, run.points)
        if run.data is not None and isinstance(self._backend, Archive):
            self._check()
            self._backend.use_data(run_id, run.data)
        if status != RUNNING:
            self._store.set_status(run_id, status, run.end_time_ms)
            run.is_open = False
        run.settle()

    def _write_attachments(self) -> None:
        runs, planned = self._journal.by_key, self._journal.planned
        run_ids = {key: run.run_id for key, run in runs.items() if run.run_id and key in planned}
        self._attachments.write(lambda: self._store, run_ids)
        self._refusal = self._refusal or self._attachments.error

    def _leave_out_copied(self, run: TrackedRun, run_id: str) -> None:
        """A step measured twice, because a checkpoint and the journal were damaged, must not be there twice."""
        copied = run.steps_copied_before
        for metric in {name for name, *_ in run.points} - copied.keys():
            copied[metric] = set(self._store.written_steps(run_id, metric))
        run.points = [point for point in run.points if point[1] not in copied[point[0]]]

    def _create(self, run: TrackedRun) -> str:
        """Gives a run, and before it its study's, an id in the store."""
        if not run.is_study and self._journal.by_key[run.study_key].run_id is None:
            self._create(self._journal.by_key[run.study_key])
        try:
            run.run_id = self._store.create(self._journal.new_run(run))
        except Refused:
            raise
        except Exception:
            self._may_have_duplicates = True  # it may have been created, and found too late
            raise
        return run.run_id

    def _end_open_runs(self) -> None:
        assert self._final_status is not None
        for run in self._journal.by_key.values():
            if run.is_open and run.run_id is not None and run.key in self._journal.planned:
                self._store.set_status(run.run_id, self._final_status)
                run.is_open = False
        if self._may_have_duplicates:
            self._store.existing(self._journal.planned)  # which leaves one for each key


def _parts(runs: Sequence[TrackedRun]) -> Iterator[list[TrackedRun]]:
    """The runs, in parts that are not too large to be written at once."""
    part: list[TrackedRun] = []
    num_points = 0
    for run in runs:
        if part and (len(part) == _MOST_RUNS_TOGETHER or num_points + len(run.points) > _MOST_POINTS_TOGETHER):
            yield part
            part, num_points = [], 0
        part.append(run)
        num_points += len(run.points)
    if part:
        yield part


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
