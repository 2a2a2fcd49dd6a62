"""Journals and the runs that a tracker makes of them in an MLflow store."""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.engine.planning.plan import Plan
from cvit.engine.recording.journal import Journal
from cvit.engine.tracking.tracker import Tracker
from cvit.storage import Storage

START_MS = 1_700_000_000_000


def keys(plan: Plan) -> set[str]:
    return {plan.study.key, *(trial.key for trial in plan.trials)}


def points(last_step: int) -> list[tuple[str, int, float, int]]:
    return [(v.VAL_ACCURACY, step, step / 1000, START_MS + step) for step in range(1, last_step + 1)]


def journal_of(folder: Path, plan: Plan, last_step: int, ended: bool) -> Journal:
    journal = Journal(Storage.open(str(folder)), "low_data")
    journal.record_plan(plan.study, plan.trials, {v.TAG_CODE_VERSION: "1"})
    for trial in plan.trials:
        journal.record_points([trial], points(last_step))
        if ended:
            journal.record_end(trial, v.STATUS_OK, {v.TAG_DEVICE: "cpu"}, "a note")
    return journal


def copy(uri: str, experiment: str, plan: Plan, journal: Journal, outcome: str = "FINISHED") -> Tracker:
    tracker = Tracker(uri, experiment, keys(plan), list(journal.records))
    assert tracker.close(outcome, timeout_s=60), tracker.error
    return tracker


def runs(uri: str, experiment: str) -> list[Any]:
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    return list(client.search_runs([known.experiment_id], max_results=1000))


def trial_runs(uri: str, experiment: str) -> list[Any]:
    return [run for run in runs(uri, experiment) if run.data.tags[v.TAG_ROLE] == v.ROLE_TRIAL]


def history(uri: str, run: Any) -> list[tuple[int, float, int]]:
    metrics = MlflowClient(uri).get_metric_history(run.info.run_id, v.VAL_ACCURACY)
    return sorted((m.step, m.value, m.timestamp) for m in metrics)


def expected(last_step: int) -> list[tuple[int, float, int]]:
    return [(step, value, time_ms) for _, step, value, time_ms in points(last_step)]
