"""Grid → trials → stages → what is left to do."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from cvit.engine.execution.queue import StageQueue
from cvit.engine.planning.plan import SameImages
from cvit.engine.planning.progress import Progress
from cvit.parameters import ConfigError
from cvit.results import load_result
from cvit.storage import Storage
from cvit.vocabulary import IMAGES_PER_SECOND
from sweeps.full_grid import SWEEP as FULL_GRID
from sweeps.head_count import EXPRESSIVITY, HEAD_COUNT
from sweeps.no_warmup import SWEEP as NO_WARMUP
from tests.support.images import write_folder
from tests.support.plans import SMALL, make_plan, make_progress, walk
from tests.support.scripts import call, sweep


def test_a_grid_becomes_trials_and_stages(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *SMALL)
    plan = progress.plan
    assert len(plan.trials) == 2 * 2 * 2
    assert len(plan.stages) == len(progress.todo) == 2 * 2 * (1 + 2)
    assert len({trial.key for trial in plan.trials}) == 8
    assert {trial.steps for trial in plan.trials} == {24}  # equal budgets
    assert not list(tmp_path.iterdir())


def test_parents_are_trained_before_children_and_everything_once(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *SMALL)
    order = walk(progress, tmp_path)
    assert progress.is_finished
    assert sorted(s.key for s in order) == sorted(progress.plan.stages)
    places = {stage.key: place for place, stage in enumerate(order)}
    assert all(s.parent is None or places[s.parent.key] < places[s.key] for s in order)
    assert make_progress(tmp_path, *SMALL).todo == []


def test_the_queue_waits_while_every_stage_left_needs_another(tmp_path: Path) -> None:
    grid = ("--data-fraction", "0.05", "--init-scheme", "two_phase", "--seeds", "1")
    queue = StageQueue(make_progress(tmp_path, *grid, *SMALL[8:]), {})
    assert queue.next_pack("a") is not None
    assert queue.next_pack("b") is None
    assert queue.next_pack("c") is None  # nothing has ended yet
    assert not queue.is_finished


def test_children_of_a_diverged_stage_are_not_trained(tmp_path: Path) -> None:
    options = [*SMALL, "--learning-rate", "1e6", "--convolution-learning-rate", "auto", "--gradient-clip-norm", "0"]
    progress = make_progress(tmp_path, *options)
    order = walk(progress, tmp_path)
    assert len(order) == 2 * 2 * 2  # one stage a trial: two_phase stops after its first
    assert {progress.status(trial) for trial in progress.plan.trials} == {"diverged"}
    assert make_progress(tmp_path, *options).todo == []


def test_more_seeds_or_fractions_extend_a_study_and_other_settings_make_another(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    more = make_plan(tmp_path, "--data-fraction", "0.02", "0.05", "0.1", "--seeds", "3", *SMALL[8:])
    assert more.study.key == plan.study.key
    assert {trial.key for trial in plan.trials} < {trial.key for trial in more.trials}
    other = make_plan(tmp_path, *SMALL, "--learning-rate", "0.5")
    assert other.study.key != plan.study.key


def test_a_given_value_holds_for_every_scheme(tmp_path: Path) -> None:
    def values(*options: str) -> set[str]:
        return {t.params["position_encoding"] for t in make_plan(tmp_path, *SMALL, *options).trials}

    own, given = values(), values("--position-encoding", "relative")
    assert given == {"relative"}
    assert "relative+absolute" in own


def test_altered_weights_are_trained_again_only_where_something_starts_from_them(tmp_path: Path) -> None:
    for stage in walk(make_progress(tmp_path, *SMALL), tmp_path):
        if stage.phase != "convolution":
            shutil.rmtree(tmp_path / "stages" / stage.key)
    progress = make_progress(tmp_path, *SMALL)
    assert not any(stage.phase == "convolution" for stage in progress.todo)
    damaged = next(stage for stage in progress.plan.stages.values() if stage.phase == "convolution")
    path = tmp_path / "stages" / damaged.key / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert damaged.key in {stage.key for stage in make_progress(tmp_path, *SMALL).todo}
    walk(make_progress(tmp_path, *SMALL), tmp_path)
    assert path.stat().st_size > 0
    path.unlink()  # nothing is left to start from it
    assert make_progress(tmp_path, *SMALL).todo == []


def test_patches_are_chosen_for_the_image_size_and_can_be_given(tmp_path: Path) -> None:
    assert {t.params["patch_size"] for t in make_plan(tmp_path, *SMALL).trials} == {2}
    assert {t.params["patch_size"] for t in make_plan(tmp_path, *SMALL, "--patch-size", "4").trials} == {4}
    with pytest.raises(ConfigError, match="patch_size 5 must divide"):
        make_plan(tmp_path, *SMALL, "--patch-size", "5")


@pytest.mark.parametrize(
    ("limit", "num_workers", "sizes"),
    [
        # 4 convolution phases, 4 stages of `random` and, later, 4 attention phases; 3 and 1 would be uneven
        (3, 2, [2, 2, 2, 2]),
        (4, 2, [4, 4]),
        (64, 2, [4, 4]),
        # what is left is divided among the workers: ⌈12 / 5⌉ = 3, so 4 are two packs; ⌈8 / 5⌉, ⌈6 / 5⌉ = 2
        (4, 5, [2, 2, 2, 2]),
        (4, 12, [1, 1, 1, 1, 1, 1, 1, 1]),
        # but not into less than a quarter of what a pack may hold
        (16, 12, [4, 4]),
        (1, 2, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_packs_hold_stages_of_one_shape_and_leave_every_worker_its_share(
    limit: int, num_workers: int, sizes: list[int], tmp_path: Path
) -> None:
    progress = make_progress(tmp_path, *SMALL)
    queue = StageQueue(progress, {stage.shape: limit for stage in progress.todo}, num_workers)
    packs = []
    while (pack := queue.next_pack(str(len(packs)))) is not None:
        packs.append(pack)
    assert [len(pack) for pack in packs] == sizes
    assert all(len({stage.shape for stage in pack}) == 1 for pack in packs)
    assert len({stage.key for pack in packs for stage in pack}) == 8


def test_a_parameter_that_the_configuration_gains_later_does_not_part_studies(tmp_path: Path) -> None:
    """Only what differs from its default is part of a study's identity, so a default given explicitly changes none."""
    assert make_plan(tmp_path, *SMALL, "--inner-dim", "0").study.key == make_plan(tmp_path, *SMALL).study.key
    assert make_plan(tmp_path, *SMALL, "--inner-dim", "72").study.key != make_plan(tmp_path, *SMALL).study.key


def test_cells_that_ask_for_the_same_training_share_its_stages_and_are_trials_of_their_own(tmp_path: Path) -> None:
    options = ("--num-heads", "4", "9", "--head-dim", "8", "--inner-dim", "auto", "72", "--seeds", "1")
    plan = make_plan(tmp_path, *options, "--init-scheme", "two_phase", sweep=HEAD_COUNT)
    assert len({trial.key for trial in plan.trials}) == len(plan.trials) == 4
    assert len(plan.stages) == 1 + 3  # one convolution for all; attention with 4 heads of 8, 4 of 18, 9 of 8
    by_cell = {(t.cell["num_heads"], t.cell["inner_dim"]): t.stages[-1].key for t in plan.trials}
    assert by_cell[9, None] == by_cell[9, 72] and by_cell[4, None] != by_cell[4, 72]


@pytest.mark.parametrize(
    ("options", "is_same"),
    [
        ((), True),
        (("--dimensions", "2", "--stride", "1", "--dilation", "1", "--causal", "False", "--window-size", "auto"), True),
        (("--dimensions", "1"), False),
        (("--dimensions", "2", "3"), False),
        (("--causal",), False),
        (("--window-size", "4"), False),
    ],
)
def test_further_axes_at_their_neutral_values_change_no_key(
    tmp_path: Path, options: tuple[str, ...], is_same: bool
) -> None:
    """The keys are those of a journal that an earlier version wrote, tests/engine/fixtures/expressivity.jsonl."""
    plan = make_progress(tmp_path, "--preset", "smoke", *options, sweep=EXPRESSIVITY).plan
    assert (plan.study.key == "c4edec16eb174b1d") is is_same
    assert ("d003a3e60cbadc0e" in {trial.key for trial in plan.trials}) is is_same


def test_impossible_strides_are_left_out_and_listed(tmp_path: Path) -> None:
    plan = make_progress(tmp_path, "--preset", "smoke", "--stride", "1", "2", sweep=EXPRESSIVITY).plan
    assert len(plan.trials) == 18
    assert {reason for _, reason in plan.dropped} == {"stride 2 must divide the patch size 1"}


def test_a_plan_of_fits_needs_no_data(tmp_path: Path) -> None:
    options = ("--kernel-size", "3", "5", "--patch-size", "2", "--num-heads", "8", "9", "--seeds", "2")
    progress = make_progress(tmp_path, *options, sweep=EXPRESSIVITY)
    plan = progress.plan
    assert len(plan.trials) == len(plan.stages) == len(progress.todo) == 8
    assert plan.study.task == "expressivity" and "dataset" not in plan.study.params
    queue = StageQueue(progress, {})
    packs = [queue.next_pack(str(number)) for number in range(8)]
    assert queue.next_pack("8") is None and not queue.is_finished  # packs that run may come back
    for number in range(8):
        queue.pack_ended(str(number))
    assert queue.is_finished
    assert {pack[0].key for pack in packs if pack is not None} == set(plan.stages)


def test_combinations_that_cannot_be_are_dropped_by_rule_and_listed(tmp_path: Path) -> None:
    options = ("--patch-size", "2", "4", "--num-heads", "9", "16", "--data-fraction", "0.05", "--seeds", "2")
    plan = make_plan(tmp_path, *options, "--init-scheme", "random", sweep=FULL_GRID)
    assert {(t.cell["patch_size"], t.cell["num_heads"]) for t in plan.trials} == {(2, 9), (2, 16), (4, 9)}
    assert len(plan.trials) == 6
    assert [(cell["patch_size"], cell["num_heads"]) for cell, _ in plan.dropped] == [(4, 16)] * 2
    assert {reason for _, reason in plan.dropped} == {
        "num_heads 16 must be at most 9, the number of offsets on a grid of 2x2 patches"
    }
    with pytest.raises(ConfigError, match="num_heads 16 must be at most 9"):
        make_plan(tmp_path, "--patch-size", "4", "--num-heads", "16", sweep=FULL_GRID)  # nothing would be left
    with pytest.raises(ConfigError, match=r"data_fraction 1.5 must lie in \(0, 1\]"):
        make_plan(tmp_path, "--data-fraction", "0.1", "1.5", sweep=FULL_GRID)  # a mistake, not a combination
    with pytest.raises(ConfigError, match="num_heads 1000"):
        make_plan(tmp_path, "--num-heads", "1000")


def test_trials_end_the_same_with_and_without_sharing_stages(tmp_path: Path) -> None:
    """Bit for bit, on one machine: four trials that share a convolution phase, against each trained alone."""
    small = ("--init-scheme", "two_phase", "--embed-dim", "16", "--depth", "1", "--min-steps", "24", "--epochs", "0")
    small += ("--transferred-learning-rate-factor", "1", "--schedule", "per_phase")

    def progress_of(folder: Path, warmups: Iterable[object], rates: Iterable[object]) -> Progress:
        grid = ("--warmup-fraction", *map(str, warmups), "--learning-rate", *map(str, rates), "--seeds", "1")
        return make_progress(folder, *grid, *small, sweep=NO_WARMUP)

    together = tmp_path / "together"
    progress = progress_of(together, (0, 0.1), (0.001, 0.016))
    plan = progress.plan
    assert (len(plan.trials), len(plan.stages), len(plan.shared)) == (4, 1 + 4, 3)
    walk(progress, together)
    for number, trial in enumerate(plan.trials):
        alone = tmp_path / f"alone{number}"
        cell = trial.cell
        stages = walk(progress_of(alone, [cell["warmup_fraction"]], [cell["learning_rate"]]), alone)
        assert [stage.key for stage in stages] == [stage.key for stage in trial.stages]
        for stage in stages:
            shared, own = (load_result(Storage.open(str(folder)), stage.key) for folder in (together, alone))
            assert shared is not None and own is not None
            # images_per_second and the times are measurements of the machine
            points = [[p[:3] for p in r.points if p[0] != IMAGES_PER_SECOND] for r in (shared, own)]
            assert points[0] == points[1]
            weights = [
                (folder / "stages" / stage.key / "weights.safetensors").read_bytes() for folder in (together, alone)
            ]
            assert weights[0] == weights[1]


FEW = ("--data-fraction", "0.0001", "0.0002", "0.001", "0.05")


def test_shares_that_are_the_same_images_are_one_cell(tmp_path: Path) -> None:
    """Ten digits, one of each class: the least that there is."""
    plan = make_plan(tmp_path, *FEW, *SMALL[3:])
    numbers = {trial.cell["data_fraction"]: trial.images and trial.images.train for trial in plan.trials}
    assert numbers == {0.001: 10, 0.05: 58}
    assert plan.merged == (SameImages((0.0001, 0.0002), 0.001, 10),)
    assert len(plan.trials) == 2 * 2 * 2
    alone = make_plan(tmp_path, "--data-fraction", "0.001", "0.05", *SMALL[3:])
    assert alone.merged == () and [t.key for t in alone.trials] == [t.key for t in plan.trials]


def test_the_plan_shows_the_numbers_of_images_and_what_is_left_out(tmp_path: Path) -> None:
    output = sweep(tmp_path, *FEW, *SMALL[3:], "--max-test-images", "100", "--dry-run", "--max-pack", "1")
    assert "  fraction  0.001 0.05\n" in output
    assert "  images    10 58 of 1,153 for training, 287 for validation, 100 for testing\n" in output
    assert "  left out  data_fraction 0.0001 0.0002: the same 10 images as 0.001" in output
    assert "trials    8, 0 of them done" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--validation-fraction", "0.001"), r"hold out 10 of 1440 training images \(0.694 %\).*: give 0.007$"),
        (("--validation-fraction", "0.9999"), r"hold out 1430 of 1440 training images \(99.3 %\).*: give 0.993$"),
        (("--max-test-images", "5"), "^max_test_images 5 must be at least 10, the number of classes"),
        (("--max-validation-images", "9"), "^max_validation_images 9 must be at least 10, the number of classes"),
    ],
)
def test_numbers_of_images_that_would_not_be_what_they_say_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(tmp_path, *SMALL, *options)


def test_no_image_is_left_for_validation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "few", {"cat": 2, "dog": 2})  # one of each for testing
    ended = call(tmp_path, "--dataset", str(folder), "--preset", "smoke", "--dry-run")
    assert (ended.exit_code, ended.errors.count("\n")) == (2, 1) and "validation" in ended.errors


def test_many_classes_of_few_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "many", {f"{number:03}": 3 for number in range(40)})
    ended = call(tmp_path, "--dataset", str(folder), "--preset", "smoke", "--dry-run")
    assert ended.exit_code == 2
    assert "validation_fraction 0.1 would hold out 40 of 80 training images (50 %)" in ended.errors
    options = ("--validation-fraction", "0.5", "--data-fraction", "0.01", "1", "--max-pack", "1")
    output = sweep(tmp_path, "--dataset", str(folder), "--preset", "smoke", "--dry-run", *options)
    assert "images    40 of 40 for training, 40 for validation, 40 for testing" in output
    assert "left out  data_fraction 0.01: the same 40 images as 1," in output
