"""Studies as the engine leaves them in a journal and in an MLflow store, made up for tests of the analysis."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvit import vocabulary as names
from cvit.storage import Storage, encode_record

TIME_MS = 1_760_000_000_000
Cells = dict[str, list[Any]]


@dataclass
class FakeTrial:
    """What a trial leaves in a store; points are (metric, step, value, time in ms)."""

    key: str
    params: dict[str, Any]
    points: list[tuple[str, int, float, int]]
    status: str | None = names.STATUS_OK
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeStudy:
    """What a study leaves in a store; `extensions` are the cells of later commands; without a task it is an old one."""

    key: str
    sweep: str
    cells: list[Cells]
    trials: list[FakeTrial]
    params: dict[str, Any] = field(default_factory=dict)
    start_time_ms: int = TIME_MS
    task: str | None = None
    extensions: list[list[Cells]] = field(default_factory=list)
    question: str = "Does two-phase help?"

    @property
    def tags(self) -> dict[str, str]:
        return {} if self.task is None else {names.TAG_TASK: self.task}

    def command(self, extension: int) -> str:
        dataset = f" --dataset {self.params['dataset']}" if "dataset" in self.params else ""
        return f"python sweeps/{self.sweep}.py{dataset} --seeds {3 + extension}"


def write_journal(folder: Path, studies: Iterable[FakeStudy]) -> Storage:
    """The journals as the engine writes them, in two segments, with a torn line and repeated records in between."""
    storage = Storage.open(str(folder))
    by_sweep: dict[str, list[dict[str, Any]]] = {}
    for study in studies:
        records = by_sweep.setdefault(study.sweep, [])
        for extension, cells in enumerate([study.cells, *study.extensions]):
            records.append(
                {
                    "type": "study", "study_key": study.key, "sweep": study.sweep, "question": study.question,
                    "start_time_ms": study.start_time_ms + extension, "command": study.command(extension),
                    "cells": cells, "params": study.params, "tags": study.tags,
                }
            )  # fmt: skip
        for trial in study.trials:
            params = {
                "type": "trial",
                "trial_key": trial.key,
                "study_key": study.key,
                "params": trial.params,
                "tags": study.tags,
            }
            points = {"type": "points", "trial_key": trial.key, "points": trial.points}
            records += [params, points, params, points]
            if trial.status is not None:
                end = {"type": "end", "trial_key": trial.key, "note": "", "time_ms": TIME_MS}
                records.append(end | {"status": "failed", "tags": {}})
                records.append(end | {"status": trial.status, "tags": trial.tags})
    for sweep, records in by_sweep.items():
        half = len(records) // 2
        torn = encode_record(records[0])[:-20] + b"\n"
        end = {"type": "end", "trial_key": "digits-0.01-random-0", "status": "failed", "tags": {}, "time_ms": 0}
        altered = encode_record(end).replace(b"failed", b"broken")
        storage.write(f"journal/{sweep}/000001.jsonl", b"".join(map(encode_record, records[:half])) + torn)
        storage.write(f"journal/{sweep}/000002.jsonl", b"".join(map(encode_record, records[half:])) + altered)
    return storage


def write_mlflow(uri: str, studies: Iterable[FakeStudy]) -> None:
    """The same content as runs of an MLflow store, a parent run per study."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(uri)
    experiments: dict[str, str] = {}
    for study in studies:
        if study.sweep not in experiments:
            experiments[study.sweep] = client.create_experiment(study.sweep)
        experiment = experiments[study.sweep]
        cells = study.cells + [grid for extension in study.extensions for grid in extension]
        parent = client.create_run(
            experiment,
            start_time=study.start_time_ms,
            tags=study.tags | {
                names.TAG_ROLE: names.ROLE_STUDY, names.TAG_STUDY_KEY: study.key, names.TAG_SWEEP: study.sweep,
                names.TAG_GRID: json.dumps(cells), names.TAG_COMMAND: study.command(len(study.extensions)),
                names.TAG_QUESTION: study.question,
            },
        )  # fmt: skip
        client.log_batch(parent.info.run_id, params=[Param(name, str(value)) for name, value in study.params.items()])
        for trial in reversed(study.trials):
            tags = {names.TAG_ROLE: names.ROLE_TRIAL, names.TAG_TRIAL_KEY: trial.key, names.TAG_STUDY_KEY: study.key}
            tags |= {"mlflow.parentRunId": parent.info.run_id} | study.tags | trial.tags
            if trial.key.endswith("two_phase-0"):  # a driver died between creating the run and taking note of it
                client.create_run(experiment, start_time=0, tags={k: v for k, v in tags.items() if k not in trial.tags})
            run = client.create_run(experiment, tags=tags | ({names.TAG_STATUS: trial.status} if trial.status else {}))
            metrics = [Metric(name, value, time_ms, step) for name, step, value, time_ms in trial.points]
            params = [Param(name, str(value)) for name, value in trial.params.items()]
            client.log_batch(run.info.run_id, metrics=metrics, params=params)
