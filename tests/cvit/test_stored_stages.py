"""Stages that version d709f53 stored are found, gone on from and built on by this one.

`stored_by_d709f53.zip` holds what that version left: the smoke preset of low_data at 1 % of digits, a fit of the smoke
preset of expressivity, and, of a smaller low_data, a convolution phase with an attention phase stopped halfway.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cvit.results import WEIGHTS, load_result, read_part
from cvit.storage import Storage
from cvit.training.checkpoint import load_checkpoint
from cvit.vocabulary import EXPRESSIVITY_ERROR, TEST_ACCURACY, TRAIN_LOSS
from sweeps.head_count import EXPRESSIVITY
from tests.support.plans import make_progress, walk
from tests.support.tree import copy_of_tree, insert, value_of

STORED = Path(__file__).parent / "stored_by_d709f53.zip"
LOW_DATA = ("--preset", "smoke", "--data-fraction", "0.01")
FIT = ("--preset", "smoke", "--patch-size", "1", "--num-heads", "1", "--seeds", "1")
HALFWAY = (
    *("--preset", "smoke", "--data-fraction", "0.02", "--init-scheme", "two_phase"),
    *("--embed-dim", "16", "--head-dim", "4", "--evaluations", "4"),
)
CODE = f"""
import json
from cvit.data.datasets import describe
from cvit.storage import Storage
from cvit.training.checkpoint import load_checkpoint
from cvit.engine.planning.rounds import first_round
from cvit.engine.terminal.cli import parse
from sweeps.head_count import EXPRESSIVITY
from sweeps.low_data import SWEEP

storage, digits = Storage.open("storage"), describe("digits", "data", download=False)

def found(sweep, options):
    progress = first_round(sweep, parse(sweep, options), None if sweep is EXPRESSIVITY else digits, storage)
    stages = list(progress.plan.stages)
    kept = [load_checkpoint(storage, key) for key in stages]
    return [list(progress.results), [saved[1].step for saved in kept if saved], stages, progress.plan.study.key]

def all_found(*more):
    low_data = [found(SWEEP, [*options, *more]) for options in ({LOW_DATA!r}, {HALFWAY!r})]
    return [*low_data, found(EXPRESSIVITY, [*{FIT!r}, *(["--fit-noise", *more[1:]] if more else [])])]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of what that version stored in `storage`."""
    shutil.unpack_archive(STORED, tmp_path)
    return tmp_path


def numbers(found: list[Any]) -> list[tuple[int, list[int], int]]:
    """(stages that are done, steps of checkpoints, stages) of every plan."""
    return [(len(done), steps, len(stages)) for done, steps, stages, _ in found]


ALL_FOUND = [(4, [], 4), (1, [10], 2), (1, [], 1)]


def test_a_plan_finds_every_stage(folder: Path) -> None:
    for sweep_options, metric in ((LOW_DATA, TEST_ACCURACY), (FIT, EXPRESSIVITY_ERROR)):
        sweeps = {"sweep": EXPRESSIVITY} if metric == EXPRESSIVITY_ERROR else {}
        progress = make_progress(folder / "storage", *sweep_options, **sweeps)
        assert progress.todo == [] and {progress.status(trial) for trial in progress.plan.trials} == {"ok"}
        for trial in progress.plan.trials:
            assert metric in {name for name, *_ in progress.results[trial.stages[-1].key].points}
        for key in progress.plan.stages:
            assert read_part(Storage.open(str(folder / "storage")), key, WEIGHTS) is not None


def test_a_stage_stopped_halfway_goes_on_from_its_checkpoint(folder: Path) -> None:
    storage = Storage.open(str(folder / "storage"))
    progress = make_progress(folder / "storage", *HALFWAY)
    (attention,) = progress.todo
    saved = load_checkpoint(storage, attention.key)
    assert saved is not None and (saved[1].step, attention.steps) == (10, 20)
    walk(progress, folder / "storage")
    result = load_result(storage, attention.key)
    assert result is not None and result.status == "ok"
    assert result.points[: len(saved[1].points)] == saved[1].points, "measured by that version, and not again"
    assert [step for name, step, *_ in result.points if name == TRAIN_LOSS] == [30, 40]


def test_a_convolution_phase_without_moments_is_trained_again_only_for_a_stage_that_carries_them_over(
    folder: Path,
) -> None:
    """That version stored no moments. Nothing else is trained again, and the phase is shared ever after."""
    storage, carried = folder / "storage", (*HALFWAY, "--optimizer-state", "carried")
    (attention,) = make_progress(storage, *HALFWAY).todo
    convolution, own = make_progress(storage, *carried).todo
    assert attention.parent is not None and convolution.key == attention.parent.key and own.key != attention.key
    before = (storage / "stages" / convolution.key / "result.json").read_bytes()
    assert walk(make_progress(storage, *carried), storage) == [convolution, own]
    assert (storage / "stages" / convolution.key / "result.json").read_bytes() != before
    assert make_progress(storage, *carried).todo == []
    assert [stage.key for stage in make_progress(storage, *HALFWAY).todo] == [attention.key]
    (another,) = make_progress(storage, *carried, "--transferred-learning-rate-factor", "0.1").todo
    assert another.phase == "attention"


def test_a_new_parameter_orphans_nothing(folder: Path) -> None:
    """A field with a default that trains as before, in a copy of the tree; see CONTRIBUTING."""
    tree = copy_of_tree(folder)
    before = value_of(tree, folder, CODE + "print(json.dumps(all_found()))")
    assert numbers(before) == ALL_FOUND

    config, expressivity = tree / "cvit/config.py", tree / "cvit/fits.py"
    insert(config, "evaluations: int", '    input_noise: float = option("Noise added to the images.", 0.0)\n')
    insert(expressivity, "fit_learning_rate: float", '    fit_noise: float = option("Noise of the kernel.", 0.0)\n')
    code = CODE + "print(json.dumps([all_found(), all_found('--input-noise', '0'), all_found('--input-noise', '0.1')]))"
    default, neutral, other = value_of(tree, folder, code)
    assert default == neutral == before
    assert numbers(other) == [(0, [], 4), (0, [], 2), (0, [], 1)], "another value is another training"

    # The default changes: `neutral` keeps what its absence means.
    for file, help_text in ((config, "Noise added to the images."), (expressivity, "Noise of the kernel.")):
        file.write_text(file.read_text().replace(f'"{help_text}", 0.0', f'"{help_text}", 0.1, neutral=0.0'))
    default, neutral, same = value_of(tree, folder, code)
    assert default == same == other and neutral == before


def test_the_fixture_is_what_it_is_said_to_be(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.name == "result.json"]
    assert len(files) == 6 and STORED.stat().st_size < 1.5 * 2**20
    results = [json.loads(path.read_text().split(maxsplit=1)[1]) for path in files]
    assert {(result["status"], result["device"]) for result in results} == {("ok", "cpu")}
