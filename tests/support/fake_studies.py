"""Studies as the engine leaves them in a journal and in an MLflow store, made up for tests of the analysis."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvit import vocabulary as names
from cvit.config import PARAMETERS, TrialConfig
from cvit.parameters import as_text
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord, to_json
from cvit.results import Point
from cvit.storage import Storage, encode_record

TIME_MS = 1_760_000_000_000
Cells = dict[str, list[Any]]
Cell = dict[str, Any]


@dataclass
class FakeTrial:
    """A trial as a store has it; points are (metric, step, value, time in ms). `tags` are those of its end, and
    `planned_tags` those that it has from the beginning."""

    key: str
    params: dict[str, Any]
    points: list[Point]
    status: str | None = names.STATUS_OK
    tags: dict[str, str] = field(default_factory=dict)
    planned_tags: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeStudy:
    """A study as a store has it; `extensions` are the cells of later commands; without a task it is an old one."""

    key: str
    sweep: str
    cells: list[Cells]
    trials: list[FakeTrial]
    params: dict[str, Any] = field(default_factory=dict)
    start_time_ms: int = TIME_MS
    task: str | None = None
    extensions: list[list[Cells]] = field(default_factory=list)
    question: str = "Does two-phase help?"
    code_version: str | None = None
    own_command: str | None = None
    own_tags: dict[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        tags = {names.TAG_TASK: self.task, names.TAG_CODE_VERSION: self.code_version}
        return {name: value for name, value in tags.items() if value is not None} | self.own_tags

    def command(self, extension: int) -> str:
        if self.own_command is not None:
            return self.own_command
        dataset = f" --dataset {self.params['dataset']}" if "dataset" in self.params else ""
        return f"python sweeps/{self.sweep}.py{dataset} --seeds {3 + extension}"


def trainings(
    sweep: str,
    key: str,
    grids: Cells | list[Cells],
    accuracy: Callable[[Cell], float | None],
    speed: Callable[[Cell], float] = lambda cell: 10.0,
    points: Callable[[Cell], list[Point]] = lambda cell: [],
    **shared: Any,
) -> FakeStudy:
    """A study of trainings of 20 steps.

    Args:
        accuracy: on test images, of a place in the grids; None where the trial has not been started, NaN where it has
            diverged before it was tested.
        points: further measurements of a trial.
        shared: parameters that do not vary.
    """
    grids = grids if isinstance(grids, list) else [grids]
    params = {"dataset": "digits", "embed_dim": 48, "batch_size": 50, "head_dim": 16} | shared
    trials = []
    for cell in (dict(zip(g, values, strict=True)) for g in grids for values in itertools.product(*g.values())):
        value = accuracy(cell)
        if value is None:
            continue
        # Init schemes that this version does not know are only names here.
        as_asked = {name: PARAMETERS[name].parse(as_text(value)) for name, value in cell.items()}
        flat = TrialConfig.from_flat(params | as_asked | {"init_scheme": "random"}).flat()
        flat["init_scheme"] = cell.get("init_scheme", "random")
        measured = [(names.IMAGES_PER_SECOND, step, step / 20 * speed(cell) * 50, TIME_MS) for step in (10, 20)]
        measured += points(cell)
        measured += [(names.TEST_ACCURACY, 20, value, TIME_MS)] if math.isfinite(value) else []
        status = names.STATUS_OK if math.isfinite(value) else names.STATUS_DIVERGED
        tags = {} if math.isfinite(value) else {names.TAG_DIVERGED_STEP: "7"}
        trials.append(FakeTrial(f"{key}-{'-'.join(map(str, cell.values()))}", flat, measured, status, tags))
    constant = {name: value for name, value in params.items() if name not in grids[0]}
    return FakeStudy(key, sweep, grids, trials, constant, task=names.TRAINING)


def write_journal(folder: Path, studies: Iterable[FakeStudy]) -> Storage:
    """The journals as the engine writes them, in two segments, with a torn line and repeated records in between."""
    storage = Storage.open(str(folder))
    by_sweep: dict[str, list[Record]] = {}
    for study in studies:
        by_sweep.setdefault(study.sweep, []).extend(_records(study))
    for sweep, records in by_sweep.items():
        lines = [encode_record(to_json(record)) for record in records]
        half = len(lines) // 2
        torn = lines[0][:-20] + b"\n"
        end = EndRecord(trial_key="digits-0.01-random-0", status="failed", note="", time_ms=0)
        altered = encode_record(to_json(end)).replace(b"failed", b"broken")
        unknown = encode_record({"type": "of a later version"})
        storage.write(f"journal/{sweep}/000001.jsonl", b"".join(lines[:half]) + torn)
        storage.write(f"journal/{sweep}/000002.jsonl", b"".join(lines[half:]) + altered + unknown)
    return storage


def _records(study: FakeStudy) -> Iterator[Record]:
    for extension, cells in enumerate([study.cells, *study.extensions]):
        yield StudyRecord(
            study_key=study.key,
            sweep=study.sweep,
            question=study.question,
            command=study.command(extension),
            start_time_ms=study.start_time_ms + extension,
            params=study.params,
            cells=cells,
            tags=study.tags,
        )
    for trial in study.trials:
        tags = study.tags | trial.planned_tags
        made = TrialRecord(trial_key=trial.key, study_key=study.key, params=trial.params, tags=tags)
        measured = PointsRecord(trial_key=trial.key, points=trial.points)
        yield from (made, measured, made, measured)
        if trial.status is not None:
            yield EndRecord(trial_key=trial.key, status=names.STATUS_FAILED, note="", time_ms=TIME_MS)
            yield EndRecord(trial_key=trial.key, status=trial.status, note="", time_ms=TIME_MS, tags=trial.tags)


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
                names.TAG_COMMAND: study.command(len(study.extensions)),
                names.TAG_QUESTION: study.question, **_in_parts(names.TAG_GRID, json.dumps(cells)),
            },
        )  # fmt: skip
        client.log_batch(
            parent.info.run_id, params=[Param(name, as_text(value)) for name, value in study.params.items()]
        )
        for trial in reversed(study.trials):
            tags = {names.TAG_ROLE: names.ROLE_TRIAL, names.TAG_TRIAL_KEY: trial.key, names.TAG_STUDY_KEY: study.key}
            tags |= {"mlflow.parentRunId": parent.info.run_id} | study.tags | trial.planned_tags | trial.tags
            if trial.key.endswith("two_phase-0"):  # a driver died between creating the run and taking note of it
                client.create_run(experiment, start_time=0, tags={k: v for k, v in tags.items() if k not in trial.tags})
            run = client.create_run(experiment, tags=tags | ({names.TAG_STATUS: trial.status} if trial.status else {}))
            metrics = [Metric(name, value, time_ms, step) for name, step, value, time_ms in trial.points]
            params = [Param(name, as_text(value)) for name, value in trial.params.items()]
            client.log_batch(run.info.run_id, metrics=metrics, params=params)


def _in_parts(tag: str, text: str) -> dict[str, str]:
    """A text in several tags, as the engine parts a long one; so short here that every grid is."""
    parts = [text[start : start + 40] for start in range(0, len(text), 40)]
    return {tag if number == 0 else f"{tag}.{number}": part for number, part in enumerate(parts)}


def squeezed(text: str) -> str:
    """A text without the spaces that align its tables."""
    return re.sub(r" +", " ", text)
