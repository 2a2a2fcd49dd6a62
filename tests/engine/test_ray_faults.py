"""Workers of a real Ray that die, hang, or fail in ways that nobody foresaw; the sweep goes on, or ends in a line."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.tune.execution.tune_controller import TuneController

from cvit.data.datasets import load
from cvit.engine.environment import prepare
from cvit.engine.execution import callback, execute, queue, watch
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording import backoff
from cvit.engine.recording.journal import Journal
from cvit.results import Report
from cvit.storage import Storage
from tests.support.misbehaving import ORDERS, MisbehavingTrainer
from tests.support.plans import SMALL, Lines, digits, make_progress

SEEDS = ("--data-fraction", "0.05", "--init-scheme", "random", *SMALL[8:], "--seeds")


@pytest.fixture(scope="module")
def real_ray(ray_address: str) -> Iterator[None]:
    prepare()
    ray.init(ray_address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are those that take orders; pauses are short."""
    monkeypatch.setattr(execute, "PackTrainer", MisbehavingTrainer)
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.2)


def train(
    progress: Progress, folder: Path, follower: Lines, limits: int = 1, timing: Timing | None = None
) -> dict[str, Outcome]:
    storage = Storage.open(str(folder / "storage"))
    timing = timing or Timing(time.monotonic())
    sizes = {stage.shape: limits for stage in progress.todo}
    site = Site(load(digits()), storage, Workers("cpu", 2, is_here=True), sizes, timing)
    return execute.train_stages(progress, Journal(storage, progress.plan.study.sweep), follower, site)


def order(folder: Path, *names: str) -> None:
    (folder / ORDERS).mkdir(exist_ok=True)
    for name in names:
        (folder / ORDERS / name).touch()


@pytest.mark.usefixtures("real_ray")
def test_a_stage_that_kills_its_worker_fails_alone_and_all_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "DEATHS_TOGETHER", 1)
    monkeypatch.setattr(queue, "MOST_DEATHS", 3)
    progress = make_progress(tmp_path / "storage", *SEEDS, "6")
    poison = list(progress.plan.stages)[2]
    order(tmp_path, f"die-{poison}")
    follower, timing = Lines(), Timing(time.monotonic())
    outcomes = train(progress, tmp_path, follower, limits=3, timing=timing)
    failed = outcomes.pop(poison)
    assert failed.kind == "failed" and failed.error is not None
    assert failed.error.startswith("killed its worker 3 times: ActorDiedError: ") and "on node" in failed.error
    assert set(outcomes.values()) == {Outcome("done")}
    assert timing.lost_s > 0 and "lost to faults" in timing.line(5)


@pytest.mark.usefixtures("real_ray")
def test_a_hung_worker_is_named_then_killed_and_its_stage_is_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEAST_SAID_S": 2.0, "LEAST_ENDED_S": 4.0, "SAID_AFTER": 1.5, "ENDED_AFTER": 3}.items():
        monkeypatch.setattr(watch, name, value)
    monkeypatch.setattr(callback, "LOOK_INTERVAL_S", 0.1)
    progress = make_progress(tmp_path / "storage", *SEEDS, "2")
    stage = list(progress.plan.stages)[1]
    order(tmp_path, f"hang-{stage}")
    follower, timing = Lines(), Timing(time.monotonic())
    assert train(progress, tmp_path, follower, timing=timing) == dict.fromkeys(progress.plan.stages, Outcome("done"))
    said, *others = follower.lines  # on a busy machine, also that another one takes long to start
    assert re.fullmatch(
        rf"pid \d+ on node \S+ has not moved for \d+ s in stage {stage}; after \d+ s it is killed", said
    )
    killed = r": its worker hung for \d+ s, and was killed \(pid \d+ on node \S+\)"
    assert [line for line in others if re.search(killed, line) and said[:9] in line]
    assert timing.lost_s > 3


@pytest.mark.usefixtures("real_ray")
def test_workers_that_all_die_at_their_start_end_the_sweep_in_a_line(tmp_path: Path) -> None:
    progress = make_progress(tmp_path / "storage", *SEEDS, "2")
    order(tmp_path, "start")
    with pytest.raises(TrainingError, match=r"^on every node workers die at their start, the last time by: ActorDied"):
        train(progress, tmp_path, Lines())


class Fragile(Lines):
    """A follower that breaks, as anything that runs in Tune's loop may."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def reported(self, name: str, key: str, report: Report) -> None:
        self.times -= 1
        if self.times >= 0:
            raise LookupError("nobody foresaw this")


@pytest.mark.usefixtures("real_ray")
def test_tune_starts_again_after_an_error_that_nobody_foresaw(tmp_path: Path) -> None:
    progress = make_progress(tmp_path / "storage", *SEEDS, "2")
    follower = Fragile(times=1)
    assert set(train(progress, tmp_path, follower).values()) == {Outcome("done")}
    assert any("Ray failed: LookupError: nobody foresaw this" in line for line in follower.lines)


@pytest.mark.usefixtures("real_ray")
def test_an_error_that_comes_again_and_again_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TuneController, "step", broken)
    with pytest.raises(TrainingError, match=r"^Ray failed: RuntimeError: nobody foresaw this$"):
        train(make_progress(tmp_path / "storage", *SEEDS, "1"), tmp_path, Lines())


def broken(_: object) -> None:
    raise RuntimeError("nobody foresaw this")
