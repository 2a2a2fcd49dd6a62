"""Compares a sweep under faults with an undisturbed one: at its end, both must be equal."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load

from cvit import vocabulary as v
from cvit.engine.planning.plan import Plan
from cvit.results import Point, load_result
from cvit.storage import Storage, decode_records
from cvit.training.checkpoint import load_checkpoint

WEIGHTS = "weights.safetensors"
Measured = dict[tuple[str, int], float]


def results(storage: Storage) -> dict[str, Measured]:
    """Reads every measurement of every finished stage that does not depend on the clock."""
    found = {}
    for key in storage.names(v.STAGES_FOLDER):
        result = load_result(storage, key)
        if result is not None:
            found[key] = _timeless(result.points)
    return found


def saved_points(storage: Storage) -> dict[str, Sequence[Point]]:
    """Reads the measurements in every stage's result or newest whole checkpoint."""
    found = {}
    for key in storage.names(v.STAGES_FOLDER):
        result = load_result(storage, key)
        checkpoint = load_checkpoint(storage, key) if result is None else None
        if result is not None:
            found[key] = result.points
        elif checkpoint is not None:
            found[key] = checkpoint[1].points
    return found


def unfinished(storage: Storage) -> set[str]:
    """Returns the keys of stages that have a checkpoint and no result."""
    return {key for key in saved_points(storage) if load_result(storage, key) is None}


def assert_equal_to_undisturbed(storage: Storage, undisturbed: Storage) -> None:
    """Checks for the same stages, measurements and weights, bit by bit, and for no leftovers."""
    ours, theirs = results(storage), results(undisturbed)
    assert ours.keys() == theirs.keys()
    for key, measured in ours.items():
        other = theirs[key]
        pairs = {at: (measured.get(at), other.get(at)) for at in sorted(measured.keys() | other.keys())}
        differences = {at: pair for at, pair in pairs.items() if pair[0] != pair[1]}
        assert differences == {}, f"stage {key} differs at {differences}"
        files = storage.names(f"{v.STAGES_FOLDER}/{key}")
        assert files == undisturbed.names(f"{v.STAGES_FOLDER}/{key}"), key
        if WEIGHTS in files:
            mine, reference = (load(s.read(f"{v.STAGES_FOLDER}/{key}/{WEIGHTS}")) for s in (storage, undisturbed))
            assert mine.keys() == reference.keys()
            assert all(mine[name].equal(reference[name]) for name in reference), key


def count_trials(storage: Storage, folder: Path, plan: Plan) -> tuple[int, int]:
    """Counts (lost, doubled): trials without, and with more than, one result, one end in the journal or one finished
    run in MLflow, which is in `folder`, with each measurement once."""
    records = _journal(storage, plan)
    declared = Counter(r["trial_key"] for r in records if r["type"] == v.RECORD_TRIAL)
    ended = Counter(r["trial_key"] for r in records if r["type"] == v.RECORD_END and r["status"] == v.STATUS_OK)
    measured: dict[str, Counter[tuple[str, int]]] = {}
    for record in records:
        if record["type"] == v.RECORD_POINTS:
            own = measured.setdefault(record["trial_key"], Counter())
            own.update((name, step) for name, step, *_ in record["points"])
    runs, histories = _mlflow(folder, plan.study.sweep)
    lost, doubled = 0, 0
    for trial in plan.trials:
        expected: set[tuple[str, int]] = set()
        for stage in trial.stages:
            result = load_result(storage, stage.key)
            expected |= {(name, step) for name, step, *_ in result.points} if result is not None else {("missing", 0)}
        own = runs.get(trial.key, [])
        in_mlflow = histories.get(own[0].info.run_id, Counter()) if own else Counter()
        in_journal = measured.get(trial.key, Counter())
        lost += not (
            declared[trial.key]
            and ended[trial.key]
            and own
            and own[0].info.status == "FINISHED"
            and expected <= in_journal.keys()
            and expected <= in_mlflow.keys()
        )
        counts = [declared[trial.key], ended[trial.key], len(own), *in_journal.values(), *in_mlflow.values()]
        doubled += max(counts) > 1
    strangers = runs.keys() - {trial.key for trial in plan.trials}
    return lost, doubled + len(strangers)


def count_retrained(storage: Storage, plan: Plan) -> int:
    """Counts the stages with a measurement in the sweep's journal that was made at another time than the one in the
    stage's result: the stage was trained twice."""
    times = {stage.key: {} for trial in plan.trials for stage in trial.stages}
    for key in times:
        result = load_result(storage, key)
        assert result is not None, key
        times[key] = {(name, step): time_ms for name, step, _, time_ms in result.points}
    stages_of = {trial.key: [stage.key for stage in trial.stages] for trial in plan.trials}
    retrained = set()
    for record in _journal(storage, plan):
        if record["type"] == v.RECORD_POINTS:
            for name, step, _, time_ms in record["points"]:
                own = [key for key in stages_of[record["trial_key"]] if (name, step) in times[key]]
                if own and all(times[key][name, step] != time_ms for key in own):
                    retrained.update(own)
    return len(retrained)


def _journal(storage: Storage, plan: Plan) -> list[dict[str, Any]]:
    below = f"{v.JOURNAL_FOLDER}/{plan.study.sweep}"
    return [r for name in storage.names(below) for r in decode_records(storage.read(f"{below}/{name}"))]


def finished_runs(folder: Path) -> set[str]:
    """The ids of all runs in the folder's MLflow store that have ended well."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return {run_id for (run_id,) in connection.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED'")}


def _mlflow(folder: Path, sweep: str) -> tuple[dict[str, list[Any]], dict[str, Counter[tuple[str, int]]]]:
    """Reads the trials' runs by trial key, and how often each has each measurement, straight from the store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    runs: dict[str, list[Any]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if run.data.tags[v.TAG_ROLE] == v.ROLE_TRIAL:
            runs.setdefault(run.data.tags[v.TAG_TRIAL_KEY], []).append(run)
    histories: dict[str, Counter[tuple[str, int]]] = {}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        for run_id, name, step in connection.execute("SELECT run_uuid, key, step FROM metrics"):
            histories.setdefault(run_id, Counter())[name, step] += 1
    return runs, histories


def _timeless(points: Sequence[Point]) -> Measured:
    return {(name, step): value for name, step, value, _ in points if name != v.IMAGES_PER_SECOND}


def assert_nothing_saved_was_trained_again(storage: Storage, before: Mapping[str, Sequence[Point]]) -> None:
    """Checks that everything in checkpoints and results before is still there, time stamps included."""
    now = saved_points(storage)
    for key, points in before.items():
        assert key in now, f"{key} has lost its checkpoint"
        assert now[key][: len(points)] == points, json.dumps([key, points[-1], now[key][-1]])
