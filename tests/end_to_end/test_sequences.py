"""The sweeps on sequences, with the options of images: data on disk, plan, training in this process, tables."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from cvit.analysis.make_tables import main as make_tables
from cvit.data.datasets import describe, load
from cvit.engine.declaration import Sweep
from cvit.engine.execution.in_process import train_stages
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import this_process
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.journal import Journal
from cvit.engine.terminal.cli import parse
from cvit.storage import Storage
from sweeps.head_count import HEAD_COUNT
from sweeps.init_schemes import SWEEP as INIT_SCHEMES
from sweeps.low_data import SWEEP as LOW_DATA
from sweeps.no_warmup import SWEEP as NO_WARMUP
from tests.cvit.test_dimensions import waves
from tests.support.plans import Order

TINY = (
    *("--preset", "smoke", "--dataset", "waves", "--embed-dim", "16", "--head-dim", "4", "--batch-size", "8"),
    *("--epochs", "0", "--min-steps", "8", "--evaluations", "2"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 + 60 waves of two frequencies, in two channels of 24 samples."""
    folder = tmp_path_factory.mktemp("data")
    train, test = waves(200, seed=0), waves(60, seed=1)
    names = np.array(["slow", "fast"])
    arrays = {"x_train": train.images, "y_train": names[train.labels], "x_test": test.images}
    np.savez(folder / "waves.npz", **arrays, y_test=names[test.labels])
    return folder


@pytest.mark.parametrize(
    ("sweep", "trials"),
    [(LOW_DATA, 6), (NO_WARMUP, 8), (INIT_SCHEMES, 9), (HEAD_COUNT, 8)],
    ids=lambda value: value.name if isinstance(value, Sweep) else str(value),
)
def test_a_sweep_of_images_runs_on_sequences(sweep: Sweep, trials: int, data_dir: Path, tmp_path: Path) -> None:
    request = parse(sweep, [*TINY, "--data-dir", str(data_dir)])
    assert request is not None
    info = describe(request.dataset, request.data_dir, download=False)
    assert (info.dimensions, info.image_size, info.in_channels, info.num_classes) == (1, 24, 2, 2)
    storage = Storage.open(str(tmp_path))
    progress = first_round(sweep, request, info, storage)
    plan = progress.plan
    assert len(plan.trials) == trials and not plan.dropped
    assert {trial.params["dimensions"] for trial in plan.trials} == {1}
    site = Site(load(info), storage, this_process("cpu"), {}, Timing(time.monotonic()))
    outcomes = train_stages(progress, Journal(storage, sweep.name), Order(), site)
    assert progress.num_done == trials and set(outcomes) == set(plan.stages)


def test_tables_and_figures_of_head_count_speak_of_three_heads(data_dir: Path, tmp_path: Path) -> None:
    request = parse(HEAD_COUNT, [*TINY, "--num-heads", "1", "3", "--seeds", "2", "--data-dir", str(data_dir)])
    assert request is not None
    info, storage = describe(request.dataset, request.data_dir, download=False), Storage.open(str(tmp_path / "s"))
    progress = first_round(HEAD_COUNT, request, info, storage)
    site = Site(load(info), storage, this_process("cpu"), {}, Timing(time.monotonic()))
    journal = Journal(storage, HEAD_COUNT.name)
    journal.record_plan(progress.plan.study, progress.plan.trials, {})
    train_stages(progress, journal, Order(), site)
    assert make_tables(["--storage", str(tmp_path / "s"), "--out", str(tmp_path / "tables")]) == 0
    page = (tmp_path / "tables" / "head_count.md").read_text()
    assert re.search("3 heads less fewer, on the same seeds", page)
