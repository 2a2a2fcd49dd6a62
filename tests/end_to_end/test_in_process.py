"""Sweeps without Ray (`--address local`): the same results, the same journal, and they stop and go on as with Ray."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as v
from cvit.engine.planning.progress import Outcome
from cvit.results import Reports
from cvit.stages import TrainingStage
from cvit.storage import Storage, decode_records
from cvit.training import loop
from tests.support.plans import Lines, make_progress, train_here
from tests.support.scripts import start, sweep, sweep_with_ray

SMALL = (
    *("--embed-dim", "16", "--depth", "1", "--num-heads", "9", "--head-dim", "4", "--mlp-ratio", "2"),
    *("--batch-size", "16", "--epochs", "0", "--min-steps", "24", "--evaluations", "4"),
    *("--budget-unit", "steps", "--data-fraction", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
)
LOCAL = ("--address", "local", "--workers", "1")
STEPS = "storage/stages/*/step-*.json"


def measured(folder: Path) -> dict[str, tuple[str, list[Any], str]]:
    """Status, measurements and checksum of the weights of every stage, without anything that depends on the clock."""
    storage = Storage.open(str(folder / "storage"))
    stages = {}
    for key in storage.names(v.STAGES_FOLDER):
        (result,) = decode_records(storage.read(f"{v.STAGES_FOLDER}/{key}/result.json"))
        points = [[metric, step, value] for metric, step, value, _ in result["points"] if metric != v.IMAGES_PER_SECOND]
        stages[key] = result["status"], points, result["weights"]
    return stages


def journal(folder: Path) -> list[str]:
    """The records of the journal in a fixed order, without anything that depends on the clock or the command line."""
    storage = Storage.open(str(folder / "storage"))
    below = f"{v.JOURNAL_FOLDER}/low_data"
    lines: list[str] = []
    for record in [r for name in storage.names(below) for r in decode_records(storage.read(f"{below}/{name}"))]:
        for name in ("time_ms", "start_time_ms", "command"):
            record.pop(name, None)
        if record["type"] in (v.RECORD_SESSION, v.RECORD_SYSTEM):  # about the machine
            continue
        if record["type"] == v.RECORD_POINTS:  # batches differ, as checkpoints are written by the clock
            lines += [
                json.dumps([record["trial_key"], metric, step, value])
                for metric, step, value, _ in record["points"]
                if metric != v.IMAGES_PER_SECOND and not metric.startswith(v.SECONDS_OF_PHASE)
            ]
            continue
        if record["type"] == v.RECORD_END:
            record["note"] = record["note"].rpartition(";")[0]  # the seconds
        lines.append(json.dumps(record, sort_keys=True))
    return sorted(lines)


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without_ray")
    sweep(folder, *SMALL)
    return folder


def test_results_and_journal_are_those_of_a_sweep_with_ray(without_ray: Path, tmp_path: Path, ray_address: str) -> None:
    """The sweep with Ray trains in packs, too, which changes nothing on a CPU."""
    sweep_with_ray(tmp_path, *SMALL, "--address", ray_address, "--max-pack", "2")
    assert len(measured(tmp_path)) == 2 * (1 + 2)
    assert measured(without_ray) == measured(tmp_path)
    assert journal(without_ray) == journal(tmp_path)


def test_results_and_journal_are_those_of_a_sweep_by_forked_workers(without_ray: Path, tmp_path: Path) -> None:
    sweep(tmp_path, *SMALL, "--address", "local")
    assert measured(without_ray) == measured(tmp_path)
    assert journal(without_ray) == journal(tmp_path)
    assert "Nothing to train: every trial is done." in sweep(without_ray, *SMALL, "--address", "local")


def test_a_finished_sweep_has_nothing_to_train_with_or_without_ray(without_ray: Path) -> None:
    assert "Nothing to train: every trial is done." in sweep(without_ray, *SMALL, "--address", "auto")


def test_ctrl_c_stops_it_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    long = [{"24": "600", "4": "40"}.get(option, option) for option in SMALL[:-2]]
    process = start(tmp_path, *long, "--seeds", "1", *LOCAL)
    while not list(tmp_path.glob(STEPS)):
        assert process.poll() is None, "the sweep ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert "Stopped with" in output and "--address local" in output
    checkpoints = [path.stem for path in tmp_path.glob(STEPS)]
    assert checkpoints and all(int(name.removeprefix("step-")) > 0 for name in checkpoints)
    # What is kept is the same to the stop, to the plan of the next run, and on the disk.
    newest = {path.parent: int(path.stem.removeprefix("step-")) for path in sorted(tmp_path.glob(STEPS))}
    num_done = len(list(tmp_path.glob("storage/stages/*/result.json")))
    kept = f"{num_done} of 3 stages, {300 * num_done + sum(newest.values()):,} of 1,200 steps are kept"
    assert f"{kept}. Stopped with" in output
    assert f"kept      {kept} from before" in sweep(tmp_path, *long, "--seeds", "1")
    stopped = measured(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    sweep(fresh, *long, "--seeds", "1")
    assert stopped == measured(fresh)


def test_an_error_is_tried_three_times_and_costs_its_own_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, follower = make_progress(tmp_path, *SMALL), Lines()
    broken = next(stage for stage in progress.plan.stages.values() if stage.phase == "convolution")
    train_pack = loop.train_pack

    def failing(stages: list[TrainingStage], *rest: Any) -> Iterator[Reports]:
        if broken in stages:
            raise ValueError("broken")
        return train_pack(stages, *rest)

    monkeypatch.setattr(loop, "train_pack", failing)
    outcomes = train_here(progress, tmp_path, follower)
    child = next(stage.key for stage in progress.plan.stages.values() if stage.parent == broken)
    assert follower.lines == [f"failed, try {n} of 3: stage {broken.key}: ValueError: broken" for n in (1, 2, 3)]
    assert outcomes.pop(broken.key) == Outcome("failed", "ValueError: broken")
    assert outcomes.pop(child) == Outcome("left")
    assert set(outcomes.values()) == {Outcome("done")} and len(outcomes) == 4


def test_no_ray_is_imported(without_ray: Path) -> None:
    """Planning, training nothing and answering, in a process that reports what it has imported."""
    code = (
        "import sys; sys.argv = ['sweeps/low_data.py', *sys.argv[1:]]; sys.path.insert(0, '');"
        "from sweeps.low_data import SWEEP; from cvit.engine.main import main\n"
        "try: main(SWEEP)\nexcept SystemExit as error: print(error.code, 'ray' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *SMALL[:-2], "--seeds", "3", *LOCAL]
    done = subprocess.run(command, cwd=without_ray, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout
