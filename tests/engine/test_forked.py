"""Workers that are forked from a warm process: what they share, and what happens if they die, hang or fail."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cvit.data.datasets import Dataset, Images, load
from cvit.engine.execution import forked, queue, warm, watch
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.forked import ForkedCrew
from cvit.engine.execution.forked_worker import Settings
from cvit.engine.execution.queue import StagePack
from cvit.engine.execution.shared import attach, share
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.warm import WarmProcess
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording import backoff
from cvit.engine.recording.journal import Journal
from cvit.engine.signals import stopping_on_sigterm
from cvit.storage import Storage
from tests.support import in_fork
from tests.support.plans import SMALL, Lines, digits, make_progress
from tests.support.scripts import ROOT

SEEDS = ("--data-fraction", "0.05", "--init-scheme", "random", *SMALL[8:], "--seeds")
DONE = Outcome("done")


@pytest.fixture(scope="module")
def inject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which workers look for orders (`tests/chaos/inject`)."""
    return tmp_path_factory.mktemp("inject")


@pytest.fixture(scope="module")
def process(inject: Path) -> Iterator[WarmProcess]:
    with pytest.MonkeyPatch.context() as patch, WarmProcess() as process:
        patch.setenv("CVIT_INJECT", str(inject))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/chaos/inject"), str(ROOT)]))
        process.start()
        yield process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.1)


def answer_of(
    process: WarmProcess, function: Callable[..., None], *arguments: object, files: Sequence[int] = ()
) -> Any:
    """What a function sends, in a process that ends well."""
    child = process.fork(function, *arguments, files=files)
    with child.connection as connection:
        answer = connection.recv()
    assert process.end_of(child) == 0
    return answer


def train(
    progress: Progress, folder: Path, process: WarmProcess, follower: Lines, limit: int = 1
) -> tuple[dict[str, Outcome], Timing]:
    storage, timing = Storage.open(str(folder)), Timing(time.monotonic())
    limits = {stage.shape: limit for stage in progress.todo}
    site = Site(load(digits()), storage, Workers("cpu", 2, is_here=True), limits, timing)
    journal = Journal(storage, progress.plan.study.sweep)
    return forked.train_stages(progress, journal, follower, site, process), timing


# --- the warm process ---------------------------------------------------------------------------------------------


def test_a_forked_process_has_arguments_files_and_the_modules_of_the_training(
    process: WarmProcess, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("hello, worker")
    with (tmp_path / "file").open() as file:
        pid, _, words, contents, modules = answer_of(process, in_fork.say, "a", {"b": 1}, files=[file.fileno()])
    assert pid != os.getpid() and psutil.Process().pid not in (pid, words)
    assert (words, contents) == (("a", {"b": 1}), [b"hello"])
    assert {"torch", "cvit.training.loop", "cvit.training.fit"} <= {*modules}
    assert not {"ray", "mlflow", "pandas"} & {*modules}, "nothing that a worker does not need"


@pytest.mark.parametrize("exit_code", [0, 3, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM])
def test_it_is_known_how_a_process_has_ended(process: WarmProcess, exit_code: int) -> None:
    child = process.fork(in_fork.end, int(exit_code))
    with child.connection as connection, pytest.raises(EOFError):
        connection.recv()
    assert process.end_of(child) == exit_code


def test_the_last_words_of_a_process_are_kept(process: WarmProcess) -> None:
    process.last_line()
    for words, line in (("", ""), ("terminate called\n  what():  bad\n\n", "what():  bad"), ("", "")):
        child = process.fork(in_fork.end, 1, words)
        with child.connection as connection, pytest.raises(EOFError):
            connection.recv()
        assert process.end_of(child) == 1
        assert process.last_line() == line


def test_a_function_is_called_in_a_process_of_its_own(process: WarmProcess) -> None:
    assert process.call(in_fork.double, 2.0) == 4.0
    with pytest.raises(TrainingError, match=r"^ValueError: of two lines$"):
        process.call(in_fork.double, -1.0)
    with pytest.raises(TrainingError, match=r"^its process died$"):
        process.call(in_fork.double, float("nan"))
    assert process.call(in_fork.double, 3.0) == 6.0


def test_workers_are_spread_over_the_gpus_of_this_process(
    tmp_path: Path, process: WarmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "num_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    site = Site(None, Storage.open(str(tmp_path)), Workers("cuda", 4, is_here=True), {}, Timing(0.0))
    settings = Settings("low_data", str(tmp_path), "cpu", 1, may_be_stopped=False, code=("", ""))
    with ForkedCrew(process, site, settings) as crew:
        for number, stage in enumerate(make_progress(tmp_path, *SEEDS, "4").todo):
            assert crew.has_room
            crew.give(str(number), (stage,))
        assert not crew.has_room
        assert sorted(worker.gpu for worker in crew._workers.values()) == ["3", "3", "5", "5"]


def test_a_warm_process_that_cannot_start_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_START", "raise SystemExit('no room')")
    line = r"^the process that workers are forked from does not start: no room$"
    with WarmProcess() as process, pytest.raises(TrainingError, match=line):
        process.fork(in_fork.wait)


# --- shared memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_warm_process_is_made_leaves_none(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The signal comes when the process is there already, and its handle is not known yet."""
    made: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self.pid)
            signal.raise_signal(number)

    monkeypatch.setattr(warm.subprocess, "Popen", Interrupted)
    with stopping_on_sigterm(), WarmProcess() as process, pytest.raises(KeyboardInterrupt):
        process.start()
    assert len(made) == 1 and not psutil.pid_exists(made[0])


def test_arrays_are_shared_and_a_process_that_changes_one_changes_a_copy(process: WarmProcess) -> None:
    pixels = np.arange(100_000, dtype=np.float32).reshape(10, 1, 100, 100)
    train, test = Images(pixels, np.arange(10)), Images(pixels[:0], np.arange(0))
    layout, file = share(Dataset(train, test))
    with file:
        before, after = answer_of(process, in_fork.change, layout, files=[file.fileno()])
        assert before == pixels.sum() and after == (pixels + 1).sum()
        again = attach(layout, file.fileno())
        assert again is not None
        np.testing.assert_array_equal(again.train.images, pixels)
        np.testing.assert_array_equal(again.train.labels, train.labels)
        assert (again.test.images.shape, again.test.labels.shape) == ((0, 1, 100, 100), (0,))


def test_without_a_data_set_nothing_is_shared() -> None:
    layout, file = share(None)
    with file:
        assert attach(layout, file.fileno()) is None


# --- workers ------------------------------------------------------------------------------------------------------


def test_a_stage_that_kills_its_worker_fails_alone_and_all_others_are_done(
    tmp_path: Path, inject: Path, process: WarmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "DEATHS_TOGETHER", 1)
    monkeypatch.setattr(queue, "MOST_DEATHS", 3)
    progress, follower = make_progress(tmp_path, *SEEDS, "6"), Lines()
    poison = list(progress.plan.stages)[2]
    (inject / f"kill-{poison}").write_text("x\n" * 3)
    outcomes, timing = train(progress, tmp_path, process, follower, limit=3)
    failed = outcomes.pop(poison)
    assert failed.kind == "failed" and failed.error is not None
    assert re.fullmatch(r"killed its worker 3 times: its worker died: ended by SIGKILL \(pid \d+\)", failed.error)
    assert set(outcomes.values()) == {DONE} and len(outcomes) == 5
    assert timing.lost_s > 0 and "lost to faults" in timing.line(5)


def test_a_hung_worker_is_named_then_killed_and_its_stage_is_done_by_another(
    tmp_path: Path, inject: Path, process: WarmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEAST_SAID_S": 1.0, "LEAST_ENDED_S": 2.0, "SAID_AFTER": 1.5, "ENDED_AFTER": 3}.items():
        monkeypatch.setattr(watch, name, value)
    for module, name in ((forked, "LOOK_INTERVAL_S"), (forked.without_ray, "LOOK_S")):
        monkeypatch.setattr(module, name, 0.1)
    progress, follower = make_progress(tmp_path, *SEEDS, "3"), Lines()
    stage = list(progress.plan.stages)[2]
    (inject / f"stop-{stage}").write_text("x\n")
    outcomes, timing = train(progress, tmp_path, process, follower)
    assert outcomes == dict.fromkeys(progress.plan.stages, DONE)
    said, lost = follower.lines
    assert re.fullmatch(rf"pid \d+ has not moved for \d+ s in stage {stage}; after \d+ s it is killed", said)
    assert re.search(r": its worker hung for \d+ s, and was killed \(pid \d+\)$", lost)
    assert said.split()[1] in lost and timing.lost_s > 1


def test_an_error_is_tried_three_times_each_in_a_new_process(
    tmp_path: Path, inject: Path, process: WarmProcess
) -> None:
    progress, follower = make_progress(tmp_path, *SEEDS, "3"), Lines()
    broken = next(iter(progress.plan.stages))
    (inject / f"code-{broken}").write_text("x\n" * 3)
    outcomes, _ = train(progress, tmp_path, process, follower)
    error = "ValueError: injected into random"
    assert follower.lines == [f"failed, try {n} of 3: stage {broken}: {error}" for n in (1, 2, 3)]
    assert outcomes.pop(broken) == Outcome("failed", error)
    assert set(outcomes.values()) == {DONE} and len(outcomes) == 2


class Murderous(Lines):
    """A follower that kills a process as soon as the first pack has begun: its worker, or the warm process."""

    def __init__(self, process: WarmProcess, kills_warm: bool) -> None:
        super().__init__()
        self._process, self._kills_warm, self.workers = process, kills_warm, list[psutil.Process]()

    def started(self, name: str, pack: StagePack) -> None:
        super().started(name, pack)
        if not self.workers:
            _, parent, *_ = answer_of(self._process, in_fork.say)
            self.workers = psutil.Process(parent).children()
            os.kill(parent if self._kills_warm else self.workers[0].pid, signal.SIGKILL)


@pytest.mark.parametrize("kills_warm", [False, True], ids=["a worker", "the warm process"])
def test_a_sweep_outlives_its_processes(tmp_path: Path, process: WarmProcess, kills_warm: bool) -> None:
    """All workers end with the warm process, and the next one is forked from another."""
    progress, follower = make_progress(tmp_path, *SEEDS, "2"), Murderous(process, kills_warm)
    outcomes, _ = train(progress, tmp_path, process, follower)
    assert outcomes == dict.fromkeys(progress.plan.stages, DONE)
    end = "with the process that it was forked from" if kills_warm else "ended by SIGKILL"
    (killed,) = follower.workers
    assert not killed.is_running()
    assert all(f"its worker died: {end} (pid " in line for line in follower.lines)
    assert f"(pid {killed.pid})" in follower.lines[0]
