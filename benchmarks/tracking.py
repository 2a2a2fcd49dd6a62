"""Measures the cost of many runs: from the journal to MLflow, and from either to tables.

python benchmarks/tracking.py
python benchmarks/tracking.py --runs 100 1000 10000 --json tracking.json

The runs are those of sweeps/low_data.py with as many seeds as needed. Their measurements are made up, as many points as
a trial of the preset `laptop` has. Each step runs in a fresh process, imports included, and reports its peak memory.

journal          the records written through the engine's journal
journal_mlflow   the journal copied to a new SQLite store by the engine's tracker, as the start of a sweep would
mlflow_tables    python analysis/make_tables.py on that store
journal_tables   python analysis/make_tables.py on the journal
"""

import contextlib
import io
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclopts import Parameter

from benchmarks import common
from benchmarks.arms.grid import planned
from cvit import vocabulary as v
from cvit.engine.planning.trials import Trial
from cvit.results import Point
from cvit.storage import Storage

GRID = (
    *("--data-fraction", "0.02", "0.05", "0.2", "0.5", "1", "--init-scheme", "random", "two_phase"),
    *("--budget-unit", "steps"),
)
CELLS = 10
"""Places of the grid; each has one run per seed."""
EARLY_STEPS = 100
COPY_TIMEOUT_S = 3600.0

app = common.new_app()


@app.default
def tracking(
    *,
    runs: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help=f"Numbers of runs, in {CELLS}s.")] = (
        100,
        1000,
        10_000,
    ),
    repeats: common.Repeats = 1,
    json: common.Json = None,
) -> None:
    """Seconds and peak memory from the journal to MLflow, and from either to tables."""
    common.check(json, repeats=repeats, runs=min(runs, default=0) // CELLS)
    before = common.machine()
    rows, figures = [], {}
    turns = common.interleaved({str(count): partial(_turn, count // CELLS) for count in runs}, repeats)
    for count, of_count in turns.items():
        figures[count] = {
            step: {
                "seconds": common.figure([turn[step][0] for turn in of_count]),
                "peak_memory_bytes": common.figure([turn[step][1] for turn in of_count]),
            }
            for step in of_count[0]
        }
        for step, measured in figures[count].items():
            memory = common.with_spread(measured["peak_memory_bytes"], 2**-30, 2)
            rows.append([step, f"{int(count):,}", common.with_spread(measured["seconds"]), memory])
    common.show(f"Tracking; median of n = {repeats}", ["step", "runs", "seconds", "peak memory, GiB"], rows)
    common.write_json(json, "tracking", before, {"n": repeats, "runs": figures})


def _turn(seeds: int) -> dict[str, tuple[float, int]]:
    """Seconds and peak memory, bytes, of every step."""
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
        storage, uri = f"{folder}/storage", f"sqlite:///{folder}/mlflow.db"
        options = [*GRID, "--seeds", str(seeds), "--storage", storage, "--tracking-uri", uri]
        return {
            "journal": _in_fresh_process(_write_journal, options),
            "journal_mlflow": _in_fresh_process(_copy, options),
            "mlflow_tables": _in_fresh_process(_tables, ["--tracking-uri", uri, "--out", f"{folder}/of-mlflow"]),
            "journal_tables": _in_fresh_process(_tables, ["--storage", storage, "--out", f"{folder}/of-journal"]),
        }


def _in_fresh_process(step: Callable[[list[str]], None], arguments: list[str]) -> tuple[float, int]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, step, arguments).result()


def _measured(step: Callable[[list[str]], None], arguments: list[str]) -> tuple[float, int]:
    started = time.perf_counter()
    step(arguments)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return seconds, 1024 * peak_kib


def _write_journal(options: list[str]) -> None:
    from cvit.engine.recording.journal import Journal

    progress, info, request = planned(options)
    plan = progress.plan
    journal = Journal(Storage.open(request.storage), plan.study.sweep)
    tags = {v.TAG_CODE_VERSION: "benchmark", v.TAG_TASK: plan.study.task, v.TAG_DATA_FINGERPRINT: info.fingerprint}
    journal.record_plan(plan.study, plan.trials, tags)
    for trial in plan.trials:
        journal.record_points([trial], list(_points(trial)))
        journal.record_end(trial, v.STATUS_OK, {v.TAG_DEVICE: "cpu"}, "made up")


def _points(trial: Trial) -> Iterator[Point]:
    """The measurements of a trial of the preset `laptop`, with random values."""
    draw = random.Random(trial.key)
    now = time.time_ns() // 1_000_000
    steps, interval = trial.steps, trial.steps // 10
    for step in range(EARLY_STEPS):
        yield v.EARLY_GRAD_NORM, step, draw.random(), now
    for step in range(interval, steps + 1, interval):
        for metric in (v.TRAIN_LOSS, v.TRAIN_ACCURACY, v.LEARNING_RATE, v.GRAD_NORM, v.IMAGES_PER_SECOND):
            yield metric, step, draw.random(), now + step
        yield v.VAL_LOSS, step, draw.random(), now + step
        yield v.VAL_ACCURACY, step, draw.random(), now + step
    for metric in (v.EARLY_LOSS, v.GRAD_NORM_MAX, v.GRAD_NORM_MAX_STEP, v.LOSS_SPIKES, v.TEST_ACCURACY):
        yield metric, steps, draw.random(), now + steps


def _copy(options: list[str]) -> None:
    from cvit.engine.recording.journal import Journal
    from cvit.engine.tracking.tracker import Tracker

    progress, _, request = planned(options)
    plan = progress.plan
    journal = Journal(Storage.open(request.storage), plan.study.sweep)
    tracker = Tracker(
        request.tracking_uri, plan.study.sweep, {plan.study.key, *(t.key for t in plan.trials)}, list(journal.records)
    )
    if not tracker.close("FINISHED", COPY_TIMEOUT_S):
        raise RuntimeError(f"not copied: {tracker.error}")


def _tables(options: list[str]) -> None:
    from cvit.analysis.make_tables import main

    with contextlib.redirect_stdout(io.StringIO()):
        exit_code = main(options)
    if exit_code != 0:
        raise RuntimeError("make_tables failed")


if __name__ == "__main__":
    common.run_app(app)
