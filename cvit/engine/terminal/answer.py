"""The answer of a study for the tracker: metrics, a table for people, and the files of the analysis."""

import csv
import functools
import io
import math
import time
from collections.abc import Iterator, Mapping

from cvit.analysis.answers import answer_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of, studies_of, tables_of
from cvit.analysis.report import report
from cvit.analysis.statistics.studies import Study, TableError
from cvit.analysis.store.axes import SCHEME
from cvit.analysis.store.frames import Frames, LoadError
from cvit.analysis.store.journal import load_journal
from cvit.engine.tracking.attachments import Attachment, checksum_of
from cvit.engine.tracking.run_facts import answer_metric, study_note
from cvit.results import Point
from cvit.storage import Storage
from cvit.vocabulary import TAG_ANSWER, TAG_NOTE

_ESTIMATE = ("mean", "ci_low", "ci_high", "n")
_ACCURACY = "accuracy"
_TEXTS = ("sweep", "study", "dataset", "kind", SCHEME)


def answer_of(storage: Storage, sweep: str, study_key: str) -> Attachment | None:
    """The answer of a study in a journal, to be attached to its run; None if the analysis cannot give one."""
    try:
        frames = _of_study(load_journal(storage, sweep), study_key)
        (study,) = studies_of(frames, sweep)
        text = answer_text(frames, study_key)
    except (LoadError, TableError):
        return None
    ended = [trial for trial in study.trials if trial["status"] is not None]
    time_ms = time.time_ns() // 1_000_000
    points: list[Point] = [(name, len(ended), value, time_ms) for name, value in cells_of(study).items()]
    texts = [f"{name} {value!r}" for name, _, value, _ in points]
    return Attachment(
        TAG_ANSWER,
        checksum_of(text, *texts),
        functools.partial(_files, storage, sweep, study_key),
        {TAG_NOTE: study_note(study.question, study.command, text)},
        points,
    )


def cells_of(study: Study) -> dict[str, float]:
    """The cells of a study's table as metrics: `answer/two_phase data_fraction 0.02 mean`, and `ci_low`, `ci_high` and
    `n` beside it. A table of other values, such as a bound, has a metric for each of them."""
    tables = tables_of(study.sweep, [study])
    rows = list(csv.DictReader(io.StringIO(tables.csv([study]))))
    return {name: value for row in rows for name, value in _cells_of_row(row, study)}


def _cells_of_row(row: Mapping[str, str], study: Study) -> Iterator[tuple[str, float]]:
    kind = row.get("kind") or _ACCURACY
    places = [f"{axis} {row[axis]}" for axis in study.axes if row.get(axis)]
    kinds = [] if kind in (_ACCURACY, study.metric) else [kind]
    parts = [*kinds, *([row[SCHEME]] if row.get(SCHEME) else []), *places]
    columns = _ESTIMATE if "mean" in row else sorted(row.keys() - {*_TEXTS, *study.axes})
    if "mean" in row and not math.isfinite(_number(row["mean"])):
        return
    for column in columns:
        if math.isfinite(value := _number(row[column])):
            yield answer_metric([*parts, column]), value


def _number(text: str) -> float:
    try:
        return float(text)
    except (ValueError, TypeError):
        return math.nan


def _files(storage: Storage, sweep: str, study_key: str) -> dict[str, bytes]:
    """The tables, the figure and the report of one study."""
    frames = _of_study(load_journal(storage, sweep, curves_of), study_key)
    files = files_of(frames, sweep)
    page = report(frames, {sweep: files}, verdicts(frames), f"cvit tables --storage {storage.url}")
    return {f"answer/{name}": content for name, content in {**files.by_name, "report.html": page.encode()}.items()}


def _of_study(frames: Frames, study_key: str) -> Frames:
    """The part of the frames that is about one study."""
    trials = frames.trials.query("study_key == @study_key")
    return Frames(
        studies=frames.studies.query("study_key == @study_key"),
        trials=trials,
        curves=frames.curves.merge(trials[["trial_key"]], on="trial_key"),
    )
