"""The size of a pack is measured, and a pack changes no result."""

import dataclasses
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cvit import vocabulary as v
from cvit.engine.execution import pack_size
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.pack_size import fitting_packs, is_worth_measuring, pack_limits
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers
from cvit.results import load_result
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training import probe
from tests.support.plans import SMALL, make_progress
from tests.support.scripts import TINY, mlflow_runs, sweep, sweeps_of

HERE = Workers("cpu", 2, is_here=True)
SMALL_WITH_20_SEEDS = tuple("20" if before == "--seeds" else option for before, option in pairwise(("", *SMALL)))


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[list[int]]:
    """Pretends a CPU on which a step of a pack takes so long; returns the sizes that were tried, each time."""
    tried: list[list[int]] = []

    def step_seconds(stage: TrainingStage, sizes: list[int], device: torch.device) -> list[float]:
        tried.append(sizes)
        return [seconds[size] for size in sizes]

    monkeypatch.setattr(probe, "step_seconds", step_seconds)
    return tried


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 10, 2: 18, 4: 34}, 4),
        ({1: 10, 2: 18, 4: 35.6}, 2),  # 9 and 8.9 for each member: there is too little to gain
        ({1: 10, 2: 20, 4: 34}, 4),  # nothing to gain from two, and much from four
        ({1: 10, 2: 21, 4: 44}, 1),
    ],
)
def test_a_pack_is_as_large_as_pays(
    seconds: dict[int, float], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *SMALL_WITH_20_SEEDS)
    tried = pretend(monkeypatch, seconds)
    assert pack_limits(progress.todo, HERE, None) == dict.fromkeys({stage.shape for stage in progress.todo}, size)
    assert tried == [[1, 2, 4]] * 3, "`random`, the convolution phase and the attention phase"


def test_packs_leave_every_worker_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = make_progress(tmp_path, *SMALL_WITH_20_SEEDS)
    # 40 stages of a shape for 20 workers are two each, for 14 three: larger packs are not even tried
    for workers, sizes in ((20, [1, 2]), (14, [1, 2, 3])):
        tried = pretend(monkeypatch, {1: 10, 2: 10, 3: 10, 4: 10})
        limits = pack_limits(progress.todo, dataclasses.replace(HERE, count=workers), None)
        assert set(limits.values()) == {sizes[-1]} and tried == [sizes] * 3
    tried = pretend(monkeypatch, {})
    assert pack_limits(progress.todo, dataclasses.replace(HERE, count=40), None) == {} and tried == []


def test_a_given_size_is_taken_unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = make_progress(tmp_path, *SMALL)
    assert pretend(monkeypatch, {}) == []
    assert set(pack_limits(progress.todo, HERE, 7).values()) == {7}


def test_a_short_sweep_on_cpus_takes_the_largest_packs_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *SMALL_WITH_20_SEEDS)
    tried = pretend(monkeypatch, {1: 10, 2: 21, 4: 44})
    for count, size in ((2, 4), (14, 3), (40, 0)):
        limits = pack_limits(progress.todo, dataclasses.replace(HERE, count=count), None, work_s=59.0)
        assert set(limits.values()) == {size} - {0}, "no more than a worker's share"
    assert tried == []
    assert set(pack_limits(progress.todo, HERE, None, work_s=60.0).values()) == {1} and tried != []
    assert is_worth_measuring(Workers("cuda", 2, is_here=True), work_s=0.1), "a GPU's memory has to be looked at"


def test_fits_are_not_packed(tmp_path: Path) -> None:
    expressivity = sweeps_of("sweeps/head_count.py")[0]
    progress = make_progress(tmp_path, "--num-heads", "8", "9", "--seeds", "4", sweep=expressivity)
    assert pack_limits(progress.todo, HERE, None) == {}


def test_the_size_is_measured_on_the_device(tmp_path: Path) -> None:
    stage = make_progress(tmp_path, *SMALL).todo[0]
    assert isinstance(stage, TrainingStage)
    (size,) = fitting_packs([(stage, 4)], HERE)
    assert size in (1, 2, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "gigabytes", "size", "tried"),
    [
        ({4: 10, 8: 16, 16: 30, 20: 37.4}, 80, 16, [4, 8, 16, 20]),  # full with 16
        ({4: 10, 8: 19.5, 16: 39, 20: 50}, 80, 4, [4, 8, 16, 20]),  # the two workers share it already
        ({4: 10, 8: 16, 9: 17}, 12.9, 9, [4, 8, 9]),  # of 1 GB each, below the share of this worker
        ({}, 1, 1, []),
    ],
)
def test_on_a_gpu_a_pack_is_as_large_as_pays_and_fits(
    seconds: dict[int, float],
    gigabytes: float,
    size: int,
    tried: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With steps of so many milliseconds, and as much memory for two workers; there need be no GPU."""
    stage = make_progress(tmp_path, *SMALL).todo[0]
    asked = pretend(monkeypatch, seconds)
    monkeypatch.setattr(probe, "peak_bytes", lambda stage, members, device: members * 0.6e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes * 1e9, 0))
    assert fitting_packs([(stage, 20)], Workers("cuda", 2, is_here=True)) == [size]
    assert asked == [tried] * bool(tried)


def test_another_process_measures(tmp_path: Path) -> None:
    stage = make_progress(tmp_path, *SMALL).todo[0]
    (size,) = pack_size._in_another_process([(stage, 4)], HERE)
    assert size in (1, 2, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_is_asked_by_another_process_whose_fault_is_one_line(tmp_path: Path) -> None:
    """So this process, which lives as long as the sweep, never opens the GPU."""
    progress = make_progress(tmp_path, *SMALL_WITH_20_SEEDS)
    with pytest.raises(TrainingError) as raised:
        pack_limits(progress.todo, Workers("cuda", 2, is_here=True), None)
    line = str(raised.value)
    assert line.startswith("the size of packs could not be measured (") and "; --max-pack sets it" in line
    assert "\n" not in line and "NVIDIA" in line
    assert not torch.cuda.is_initialized()


def test_a_sweep_in_packs_ends_as_one_without(tmp_path: Path) -> None:
    """From the command line: the same measurements for every stage, each trial one finished run."""
    found = []
    grid = ("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "3", *TINY)
    for size in ("1", "4"):
        folder = tmp_path / size
        folder.mkdir()
        output = sweep(folder, *grid, "--min-steps", "24", "--max-pack", size)
        assert "Time: " in output and "s a trial" in output
        storage = Storage.open(str(folder / "storage"))
        results = {key: load_result(storage, key) for key in storage.names(v.STAGES_FOLDER)}
        assert len(results) == 2 * 3 * 3
        found.append(
            {
                (key, name, step): value
                for key, result in results.items()
                if result is not None
                for name, step, value, _ in result.points
                if name != v.IMAGES_PER_SECOND
            }
        )
        runs = mlflow_runs(folder, v.ROLE_TRIAL)
        assert len(runs) == 12 and {run.info.status for run in runs} == {"FINISHED"}
    assert found[0] == found[1]


def test_the_closing_line_tells_training_from_everything_around_it() -> None:
    timing = Timing(time.monotonic())
    assert "nothing trained" in timing.line(0)
    timing.add(busy_s=2.0, waited_s=0.0)
    timing.add(busy_s=6.0, waited_s=2.0)
    assert "workers trained 80.0 % of the time; overhead 2.00 s in all, 0.500 s a trial" in timing.line(4)
