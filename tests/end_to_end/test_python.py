"""The Python interface: `cvit.run` and `cvit.load`, in this process, as a script, a thread or a notebook calls them."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cvit
from cvit import vocabulary as v
from cvit.analysis.store.frames import CURVE_COLUMNS, METRICS, STUDY_COLUMNS, TRIAL_COLUMNS, Frames
from cvit.engine.terminal.console import console_of_program
from cvit.tasks import parameters_of_task
from cvit.training import loop
from sweeps.low_data import SWEEP
from tests.support.scripts import ROOT, call, sweep
from tests.support.scripts import journal as journal_of

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 1,
    "head_dim": 4,
    "mlp_ratio": 2.0,
    "batch_size": 16,
    "epochs": 0,
    "min_steps": 16,
    "evaluations": 4,
    "num_heads": 9,
}
OWN = cvit.Sweep(
    name="own",
    question="Does the start matter?",
    presets={
        "tiny": cvit.Preset(
            description="does it run?",
            grid={"data_fraction": (0.05,), "init_scheme": ("random", "two_phase")},
            seeds=1,
            settings=TINY,
        )
    },
)
OTHER = cvit.Sweep(
    name="other",
    question="Does the learning rate matter?",
    presets={"tiny": cvit.Preset(description="", grid={"learning_rate": (1e-3,)}, seeds=1, settings=TINY)},
)
CLOCKS = ("images_per_second", "seconds/convolution", "seconds/attention")


def run(folder: Path, *sweeps: cvit.Sweep, **options: Any) -> Frames:
    """Runs sweeps in this process and, unless told otherwise, without MLflow."""
    here = {"storage": folder / "storage", "address": "local", "workers": 1, "max_pack": 1}
    options = here | {"tracking_uri": "none"} | options
    return cvit.run(sweeps[0] if len(sweeps) == 1 else sweeps or OWN, **options)


def run_with(sweep: cvit.Sweep, options: dict[str, Any]) -> None:
    """Runs a sweep with options of any type, right or wrong."""
    cvit.run(sweep, **options)


def measured(frames: Frames) -> pd.DataFrame:
    """The trials without what depends on the clock."""
    return frames.trials.drop(columns=[name for name in CLOCKS if name in frames.trials])


def state_of_process() -> dict[str, Any]:
    """Everything of the process that a run must leave as it was."""
    import torch

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    return {
        "environment": dict(os.environ),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "handlers": [signal.getsignal(number) for number in numbers],
        "logging": (logging.root.level, list(logging.root.handlers)),
        "threads": torch.get_num_threads(),
        "arguments": list(sys.argv),
        "folder": Path.cwd(),
    }


@dataclass(frozen=True)
class Finished:
    """A finished sweep: its folder, its frames, its output, and the process before, during and after it."""

    folder: Path
    frames: Frames
    output: str
    before: dict[str, Any]
    during: list[Any]
    after: dict[str, Any]


def is_true(column: Any) -> bool:
    """Whether every value of a column of booleans is true."""
    return bool(column.all())


def without_clocks(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves without the metrics that depend on the clock."""
    return curves.loc[~curves["metric"].isin(CLOCKS)].reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, output, during = tmp_path_factory.mktemp("python"), io.StringIO(), []
    train_pack = loop.train_pack

    def looking(*arguments: Any) -> Any:
        during.append((sys.stdout, signal.getsignal(signal.SIGTERM), os.environ.get("TUNE_RESULT_DIR")))
        return train_pack(*arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("TUNE_RESULT_DIR", "mine")
        patch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
        patch.setattr(loop, "train_pack", looking)
        before = state_of_process()
        frames = run(folder, tracking_uri=f"sqlite:///{folder}/mlflow.db")
        return Finished(folder, frames, output.getvalue(), before, during, state_of_process())


def test_a_run_returns_the_trials_that_were_asked_for(finished: Finished) -> None:
    frames, output = finished.frames, finished.output
    assert list(frames.trials["init_scheme"]) == ["random", "two_phase"] and list(frames.trials["seed"]) == [0, 0]
    assert set(frames.trials["status"]) == {v.STATUS_OK} and is_true(frames.trials[v.TEST_ACCURACY].between(0, 1))
    assert frames.failed.empty and is_true(frames.trials["error"].isna())
    assert list(frames.studies["question"]) == [OWN.question]
    assert "Does the start matter?" in output and "Test accuracy in %" in output
    assert repr(frames) == f"<Frames: 1 study, 2 trials, {len(frames.curves)} rows of curves>"
    last = frames.curves.sort_values("step").groupby(["trial_key", "metric"])["value"].last().unstack()
    final = frames.trials.set_index("trial_key")
    assert is_true(last[v.VAL_ACCURACY] == final.loc[last.index, v.VAL_ACCURACY])


def test_storage_and_mlflow_are_loaded_as_the_same_frames(finished: Finished) -> None:
    folder, frames = finished.folder, finished.frames
    by_storage = cvit.load(folder / "storage")
    for source in (f"sqlite:///{folder}/mlflow.db", str(folder / "mlflow.db")):
        loaded = cvit.load(source)
        for name in ("trials", "curves", "studies"):
            pd.testing.assert_frame_equal(getattr(loaded, name), getattr(by_storage, name))
    pd.testing.assert_frame_equal(by_storage.trials, frames.trials)
    pd.testing.assert_frame_equal(by_storage.curves, frames.curves)


def test_a_run_equals_the_command_line(tmp_path: Path) -> None:
    options = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--data-fraction", "0.02", "0.05", "--init-scheme", "random", "--budget-unit", "steps", "--seeds", "1"]
    sweep(tmp_path, *options, "--learning-rate", "0.003", "--tracking-uri", "none", "--max-pack", "1")
    kinds = {"data_fraction": (0.02, 0.05), "init_scheme": "random", "budget_unit": "steps", "learning_rate": 3e-3}
    frames = run(tmp_path / "python", SWEEP, seeds=1, **TINY, **kinds)
    pd.testing.assert_frame_equal(measured(frames), measured(cvit.load(tmp_path / "storage")))


def test_a_later_run_adds_seeds_and_returns_its_own_trials_alone(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, frames = finished.folder, finished.frames
    more = run(folder, seeds=2, init_scheme="random", quiet=True)
    assert list(more.trials["seed"]) == [0, 1] and set(more.trials["init_scheme"]) == {"random"}
    assert set(more.trials["trial_key"]) & {*frames.trials["trial_key"]} == {frames.trials["trial_key"].iloc[0]}
    assert len(cvit.load(folder / "storage").trials) == 3
    assert capsys.readouterr() == ("", "")


def test_several_sweeps_run_one_after_another(tmp_path: Path) -> None:
    frames = run(tmp_path, OWN, OTHER, init_scheme="random", quiet=True)
    assert list(frames.studies["sweep"]) == ["other", "own"]
    assert dict(frames.trials["sweep"].value_counts()) == {"other": 1, "own": 1}
    assert {record["command"] for record in journal_of(tmp_path, "other") if record["type"] == v.RECORD_STUDY} == {
        f"cvit.run([own, other], storage='{tmp_path}/storage', tracking_uri='none', address='local', workers=1, "
        "max_pack=1, init_scheme='random')"
    }


def test_a_question_of_the_package_is_known_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = cvit.run("low_data", preset="smoke", storage=tmp_path, tracking_uri="none", dry_run=True, max_pack=1)
    assert "trials    6, 0 of them done" in capsys.readouterr().out
    assert frames.trials.empty and frames.curves.empty and frames.studies.empty
    assert set(STUDY_COLUMNS) <= set(frames.studies) and {*TRIAL_COLUMNS, *METRICS} <= set(frames.trials)


WRONG: list[dict[str, Any]] = [
    {"learning_rte": 1e-3},
    {"learning_rate": (1e-3, 2e-3)},
    {"learning_rate": "fast"},
    {"data_fraction": (0.1, 1.5)},
    {"data_fraction": ()},
    {"init_scheme": ("random", "zero")},
    {"num_heads": 0},
    {"seeds": 0},
    {"seeds": (1, 2)},
    {"preset": "huge"},
    {"dataset": "nowhere"},
    {"address": "nowhere"},
    {"tracking_uri": "nowhere://host"},
    {"storage": ""},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_bad_input_is_answered_in_one_line_as_on_the_command_line(options: dict[str, Any], tmp_path: Path) -> None:
    arguments: list[str] = []
    for name, value in options.items():
        option, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
        arguments += [f"{option}="] if values == ("",) else [option, *map(str, values)]
    with contextlib.chdir(tmp_path), pytest.raises((cvit.ConfigError, cvit.DataError)) as error:
        run_with(SWEEP, {"tracking_uri": "none", "address": "local"} | options)
    text = str(error.value)
    assert "\n" not in text and error.value.__cause__ is None
    ended = call(tmp_path, *arguments)
    same = re.sub(r"--([a-z][a-z0-9-]*)", lambda match: match[1].replace("-", "_"), ended.errors)
    assert (ended.exit_code, same) == (2, f"low_data.py: error: {text}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweeps", ["lowdata", [], [None], 3])
def test_what_is_no_sweep_is_named(sweeps: Any) -> None:
    with pytest.raises(cvit.ConfigError, match="sweep"):
        cvit.run(sweeps)


@pytest.mark.parametrize("name", ["help", "version", "part", "json"])
def test_options_of_the_command_line_alone_are_refused(name: str) -> None:
    with pytest.raises(cvit.ConfigError, match=f"{name} is an option of the command line alone"):
        run_with(OWN, {name: True})


def test_a_store_without_a_study_is_an_error_of_the_storage(tmp_path: Path) -> None:
    for source in (tmp_path / "none", f"sqlite:///{tmp_path}/none.db", "http://127.0.0.1:9"):
        before = dict(os.environ)
        with pytest.raises(cvit.StorageError) as error:
            cvit.load(source)
        assert "\n" not in str(error.value) and dict(os.environ) == before


def test_secrets_are_neither_in_errors_nor_in_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "http://user:hunter2@127.0.0.1:9"
    with pytest.raises(cvit.StorageError, match=r"\*\*\*@127") as error:
        cvit.load(uri)
    assert "hunter2" not in "".join(map(str, [error.value, error.value.__cause__]))
    console_of_program(quiet=False).print(f"at {uri}", {"not": "a text"})
    assert capsys.readouterr().out.startswith("at http://***@127.0.0.1:9")
    run(tmp_path, data_dir=uri, init_scheme="random", quiet=True)
    assert "hunter2" not in json.dumps(journal_of(tmp_path, "own")) and "data_dir" in str(journal_of(tmp_path, "own"))


def test_a_run_leaves_the_process_as_it_was(finished: Finished, tmp_path: Path) -> None:
    assert finished.after == finished.before
    assert set(finished.during) == {(finished.before["streams"][1], signal.default_int_handler, None)}
    before = state_of_process()
    with pytest.raises(cvit.ConfigError):
        run(tmp_path, seeds=0)
    assert state_of_process() == before


def test_it_runs_in_a_thread_and_refuses_a_second_run_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_training, may_go_on = threading.Event(), threading.Event()
    train_pack = loop.train_pack

    def waiting(*arguments: Any) -> Any:
        is_training.set()
        may_go_on.wait()
        return train_pack(*arguments)

    monkeypatch.setattr(loop, "train_pack", waiting)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, tmp_path, init_scheme="random", quiet=True)
        is_training.wait()
        with pytest.raises(cvit.ConfigError, match=r"another cvit\.run is under way"):
            run(tmp_path / "other", quiet=True)
        may_go_on.set()
        assert set(result.result().trials["status"]) == {v.STATUS_OK}


WITH_RAY = """
import sys, threading
import ray
import cvit
from tests.end_to_end.test_python import OWN, state_of_process

if __name__ == "__main__":
    address, storage = sys.argv[1:]
    options = {"init_scheme": "random", "storage": storage, "address": address, "tracking_uri": "none", "quiet": True}
    ray.init(address=address, log_to_driver=False)
    try:
        cvit.run(OWN, **options)
    except cvit.ConfigError as error:
        print(error, ray.is_initialized())
    ray.shutdown()
    before, box = state_of_process(), []
    thread = threading.Thread(target=lambda: box.append(cvit.run(OWN, **options)))
    thread.start()
    thread.join()
    print(list(box[0].trials["status"]), [name for name, value in state_of_process().items() if value != before[name]])
"""


def test_with_ray_it_runs_in_a_thread_and_leaves_a_ray_of_the_program_alone(tmp_path: Path, ray_address: str) -> None:
    command = [sys.executable, "-c", WITH_RAY, ray_address, str(tmp_path / "storage")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.splitlines() == [
        "this process uses Ray already: call ray.shutdown() first, or train without Ray, at 'local' True",
        "['ok'] []",
    ], done.stdout + done.stderr


def test_it_runs_in_an_event_loop_as_in_a_notebook(tmp_path: Path) -> None:
    async def cell() -> Frames:
        return run(tmp_path, init_scheme="random", quiet=True)

    assert set(asyncio.run(cell()).trials["status"]) == {v.STATUS_OK}


def test_a_trial_that_fails_is_in_the_result_with_its_reason(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_pack = loop.train_pack

    def failing(stages: Any, *rest: Any) -> Any:
        if stages[0].trial.training.learning_rate == 2e-3:
            raise ValueError("out of luck, password=hunter2")
        return train_pack(stages, *rest)

    monkeypatch.setattr(loop, "train_pack", failing)
    uri = f"sqlite:///{finished.folder}/mlflow.db"  # to make another store takes seconds
    options = {"tracking_uri": uri, "learning_rate": (1e-3, 2e-3), "data_fraction": 0.05, "quiet": True}
    frames = run(tmp_path, OTHER, **options)
    assert list(frames.trials["status"]) == [v.STATUS_OK, v.STATUS_FAILED]
    assert list(frames.failed["error"]) == ["ValueError: out of luck, password=***"]
    assert repr(frames).startswith("<Frames: 1 study, 2 trials (1 failed), ")
    in_mlflow = cvit.load(uri).trials.query("sweep == 'other'").reset_index(drop=True)
    for name in ("trial_key", "status"):
        assert list(in_mlflow[name]) == list(frames.trials[name])
    assert list(in_mlflow["error"].dropna()) == list(frames.failed["error"])
    monkeypatch.undo()
    mended = run(tmp_path, OTHER, **options)
    assert mended.failed.empty and is_true(mended.trials["error"].isna())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_the_caller_after_everything_is_kept(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_pack = loop.train_pack

    def interrupted(stages: Any, dataset: Any, storage: Any, device: Any, _: bool) -> Iterator[Any]:
        reports = train_pack(stages, dataset, storage, device, checkpoint_at_every_evaluation=True)
        yield next(reports)
        os.kill(os.getpid(), number)
        yield from reports

    options: dict[str, Any] = {"init_scheme": "random", "min_steps": 40}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **options)
    assert re.search(r"Continue with:\n  cvit\.run\(own, ", capsys.readouterr().out)
    kept = cvit.load(tmp_path / "storage")
    assert is_true(kept.trials["status"].isna()) and len(kept.curves) > 0
    assert list(tmp_path.glob("storage/stages/*/step-*.json")) and not list(tmp_path.glob("storage/leases/own/*"))
    resumed, fresh = run(tmp_path, **options, quiet=True), run(tmp_path / "fresh", **options, quiet=True)
    pd.testing.assert_frame_equal(measured(resumed), measured(fresh))
    pd.testing.assert_frame_equal(without_clocks(resumed.curves), without_clocks(fresh.curves))


def test_every_column_is_documented() -> None:
    """docs/PYTHON.md has a table for each frame, with a row per column."""
    page = (ROOT / "docs" / "PYTHON.md").read_text()
    sections = dict(zip(*[iter(re.split(r"^### `(\w+)`.*$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    columns = {name: re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) for name, text in sections.items()}
    parameters = dict.fromkeys(
        name for task in (v.TRAINING, v.EXPRESSIVITY, v.DEPTH) for name in parameters_of_task(task)
    )
    assert columns["studies"] == list(STUDY_COLUMNS)
    assert columns["curves"] == list(CURVE_COLUMNS)
    known = [*TRIAL_COLUMNS, *parameters, *METRICS]
    assert [name for name in columns["trials"] if name in known] == known
    assert set(columns["trials"]) - set(known) == {
        "early/grad_norm",
        "transfer/val_accuracy",
        *(f"{v.SECONDS_OF_PHASE}{phase}" for phase in (v.CONVOLUTION, v.ATTENTION, v.REFERENCE, v.FIT)),
    }
