"""The runs of a sweep as its journal has them: of each, what its records say and the store does not have yet."""

import json

from cvit import vocabulary as v
from cvit.engine.recording.process_identity import this_process
from cvit.engine.tracking.backend import FAILED, FINISHED, KILLED, RUNNING, NewRun
from cvit.engine.tracking.run_facts import (
    Surroundings,
    data_of,
    facts_of_end,
    facts_of_study,
    facts_of_trial,
    load_points,
    study_note,
)
from cvit.engine.tracking.tracked_run import TrackedRun
from cvit.parameters import as_text
from cvit.records import EndRecord, PointsRecord, StudyRecord, SystemRecord, TrialRecord


class JournalRuns:
    """The runs of a sweep's studies and trials.

    Attributes:
        planned: keys of this driver's study and trials.
        by_key: the runs.
        studies: the first record of each study.
    """

    def __init__(self, sweep: str, planned: set[str], surroundings: Surroundings) -> None:
        """
        Args:
            surroundings: what the journal does not say about its runs.
        """
        self._sweep, self._surroundings = sweep, surroundings
        self.planned = planned
        self.by_key: dict[str, TrackedRun] = {}
        self.studies: dict[str, StudyRecord] = {}
        self._code_versions: dict[str, dict[str, None]] = {}
        """The code versions that trained the trials of each study."""

    def add(self, record: PointsRecord | EndRecord | StudyRecord | TrialRecord | SystemRecord) -> None:
        """Adds a record to what is to be written of its run."""
        key = record.study_key if isinstance(record, StudyRecord | SystemRecord) else record.trial_key
        run = self.by_key.setdefault(key, TrackedRun(key))
        match record:
            case StudyRecord():
                self._add_study(run, record)
            case TrialRecord():
                self._add_trial(run, record)
                return  # nothing to copy until something is measured
            case PointsRecord():
                run.points += record.points
                run.start_time_ms = run.start_time_ms or record.points[0][3]
            case SystemRecord():
                run.points += load_points(record, run.start_time_ms)
            case EndRecord():
                run.status, run.end_time_ms = record.status, record.time_ms
                run.tags |= facts_of_end(record, run.planned_tags, self._surroundings)
                run.tags |= {**record.tags, v.TAG_STATUS: record.status, v.TAG_NOTE: record.note}
                self._add_code_versions(run)
        run.changed = True

    def _add_trial(self, run: TrackedRun, record: TrialRecord) -> None:
        if not run.study_key:
            run.study_key, run.params, run.planned_tags = record.study_key, record.params, record.tags
            run.tags |= {
                **record.tags,
                v.TAG_ROLE: v.ROLE_TRIAL,
                v.TAG_TRIAL_KEY: run.key,
                v.TAG_STUDY_KEY: run.study_key,
                v.TAG_SWEEP: self._sweep,
                **facts_of_trial(record, self.studies.get(run.study_key), self._surroundings),
            }
            run.data = data_of(run.params, record.tags)

    def _add_code_versions(self, run: TrackedRun) -> None:
        """Adds the code versions that trained a trial to those of its study; until then, the study has the version that
        planned it."""
        study, joined = self.by_key.get(run.study_key), run.tags.get(v.TAG_CODE_VERSION)
        if study is None or joined is None:
            return
        versions = self._code_versions.setdefault(run.study_key, {})
        new = [version for version in joined.split(", ") if version not in versions]
        if new:
            versions.update(dict.fromkeys(new))
            study.tags[v.TAG_CODE_VERSION] = ", ".join(versions)
            study.changed = True

    def _add_study(self, run: TrackedRun, record: StudyRecord) -> None:
        self.studies.setdefault(run.key, record)
        if not run.study_key:
            run.study_key, run.params, run.start_time_ms = run.key, record.params, record.start_time_ms
            run.data = data_of(run.params, record.tags)
            run.tags |= {
                **record.tags,
                v.TAG_ROLE: v.ROLE_STUDY,
                v.TAG_STUDY_KEY: run.key,
                v.TAG_SWEEP: record.sweep,
                v.TAG_QUESTION: record.question,
                **facts_of_study(record, self._surroundings),
            }
            if run.key in self.planned:
                run.tags[v.TAG_DRIVER] = self._surroundings.driver or this_process()
        if preset := record.tags.get(v.TAG_PRESET):  # a study may grow by another one
            presets = [*filter(None, run.tags.get(v.TAG_PRESET, "").split(", ")), preset]
            run.tags[v.TAG_PRESET] = ", ".join(dict.fromkeys(presets))
        run.cells += [grid for grid in record.cells if grid not in run.cells]
        run.tags |= {
            v.TAG_COMMAND: record.command,
            v.TAG_GRID: json.dumps(run.cells),
            v.TAG_NOTE: study_note(record.question, record.command),
        }

    def status_of(self, run: TrackedRun) -> str:
        """The status of a run in the store while this driver works."""
        if run.status is not None:
            return FAILED if run.status == v.STATUS_FAILED else FINISHED
        if run.key in self.planned:
            return RUNNING
        return FINISHED if run.is_study else KILLED

    def new_run(self, run: TrackedRun) -> NewRun:
        """A run, as the store is to create it; its study's has an id already."""
        return NewRun(
            key=run.key,
            name=self._name(run),
            parent_id=None if run.is_study else self.by_key[run.study_key].run_id,
            start_time_ms=run.start_time_ms,
            tags=dict(run.tags),
        )

    def _name(self, run: TrackedRun) -> str:
        if run.is_study:
            return " ".join([self._sweep, *([run.params["dataset"]] if "dataset" in run.params else []), run.key[:8]])
        place = {axis: run.params[axis] for axis in self.by_key[run.study_key].cells[0]}
        # The scheme first: a table's column of names is narrow.
        scheme = [str(place["init_scheme"])] if "init_scheme" in place else []
        return " ".join(scheme + [f"{axis}={as_text(value)}" for axis, value in place.items() if axis != "init_scheme"])
