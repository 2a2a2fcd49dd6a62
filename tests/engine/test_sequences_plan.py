"""The plans of sweeps on sequences: what presets made for images ask for is fitted to them, what users type is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from cvit.data.datasets import DatasetInfo
from cvit.engine.declaration import Sweep
from cvit.engine.planning.plan import Plan
from cvit.engine.terminal.cli import parse
from cvit.parameters import ConfigError
from sweeps.head_count import EXPRESSIVITY, HEAD_COUNT
from sweeps.init_schemes import SWEEP as INIT_SCHEMES
from sweeps.low_data import SWEEP as LOW_DATA
from sweeps.no_warmup import SWEEP as NO_WARMUP
from tests.support.plans import digits


def sequences(length: int = 100) -> DatasetInfo:
    """A description of sequences with the labels of digits; nothing is loaded."""
    return replace(digits(), image_size=length, dimensions=1, in_channels=3, fingerprint="sequences")


def plan(sweep: Sweep, *options: str, info: DatasetInfo | None = None) -> Plan:
    request = parse(sweep, options)
    assert request is not None
    return Plan.make(sweep, request, info or sequences())


def only(values: list[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """The values that all trials share."""
    found = {name: {params[name] for params in values} for name in names}
    assert all(len(each) == 1 for each in found.values()), found
    return {name: next(iter(each)) for name, each in found.items()}


@pytest.mark.parametrize("sweep", [LOW_DATA, NO_WARMUP, INIT_SCHEMES], ids=lambda sweep: sweep.name)
@pytest.mark.parametrize("preset", [None, "smoke", "photographs", "reference"])
def test_sequences_get_three_heads_as_wide_together_as_the_nine_of_the_preset(sweep: Sweep, preset: str | None) -> None:
    options = () if preset is None else ("--preset", preset)
    own = sweep.presets[preset or sweep.default_preset].settings
    made = plan(sweep, *options)
    params = only([trial.params for trial in made.trials], "num_heads", "head_dim", "dimensions", "patch_size")
    assert params["num_heads"] == 3 and params["dimensions"] == 1
    assert 3 * params["head_dim"] == own["num_heads"] * own["head_dim"]
    assert 100 % params["patch_size"] == 0
    changed = f"sequences: num_heads 3, not 9, head_dim {3 * own['head_dim']}, not {own['head_dim']} as in the preset"
    assert changed in made.study.notes


def test_what_the_user_types_stays() -> None:
    typed = plan(LOW_DATA, "--num-heads", "9", "--patch-size", "10")
    params = only([trial.params for trial in typed.trials], "num_heads", "head_dim", "patch_size")
    assert params == {"num_heads": 9, "head_dim": 8, "patch_size": 10}
    assert not any("sequences:" in note for note in typed.study.notes)
    width = plan(LOW_DATA, "--head-dim", "10")
    assert only([trial.params for trial in width.trials], "num_heads", "head_dim") == {"num_heads": 3, "head_dim": 10}
    with pytest.raises(ConfigError, match="patch_size 7 must divide the length 100: one of 1, 2, 4, 5"):
        plan(LOW_DATA, "--patch-size", "7")


def test_the_axis_of_heads_has_three_in_place_of_nine() -> None:
    heads = plan(HEAD_COUNT).study.grid["num_heads"]
    assert heads == (1, 2, 3, 4, 6, 8, 12, 16)
    assert plan(HEAD_COUNT, "--preset", "smoke").study.grid["num_heads"] == (3, 4)
    assert plan(HEAD_COUNT, "--num-heads", "4", "9").study.grid["num_heads"] == (4, 9)


@pytest.mark.parametrize(
    ("length", "patch"), [(25, 1), (24, 1), (100, 2), (150, 2), (427, 7), (1460, 20), (8192, 128), (251, 1), (1, 1)]
)
def test_sequences_are_cut_into_about_64_patches(length: int, patch: int) -> None:
    params = plan(LOW_DATA, "--num-heads", "1", info=sequences(length)).trials[0].params
    assert params["patch_size"] == patch


def test_patches_of_a_preset_that_do_not_divide_the_length_become_those_of_the_data() -> None:
    kept = plan(LOW_DATA, "--preset", "photographs", info=sequences(100))
    fitted = plan(LOW_DATA, "--preset", "photographs", info=sequences(150))
    assert kept.trials[0].params["patch_size"] == 4
    assert fitted.trials[0].params["patch_size"] == 2
    assert any("patch_size 2, not 4" in note for note in fitted.study.notes)


def test_plans_on_images_are_those_that_they_were() -> None:
    made = plan(LOW_DATA, info=digits())
    assert only([trial.params for trial in made.trials], "num_heads", "head_dim", "dimensions") == {
        "num_heads": 9,
        "head_dim": 8,
        "dimensions": 2,
    }
    assert made.study.notes == ()


def test_augmentations_of_pictures_are_refused_for_sequences_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="augmentation 'crop_flip' is defined for images of two axes"):
        plan(LOW_DATA, "--augmentation", "crop_flip")
    with pytest.raises(ConfigError, match="augmentation_policy 'trivial_augment' is defined for images of two axes"):
        plan(LOW_DATA, "--augmentation-policy", "trivial_augment")
    changed = plan(LOW_DATA, "--noise-std", "0.1", "--erasing-probability", "0.5")
    assert only([trial.params for trial in changed.trials], "noise_std") == {"noise_std": 0.1}


def test_one_dimension_of_fits_is_not_taken_for_that_of_a_data_set() -> None:
    request = parse(EXPRESSIVITY, ["--dimensions", "3", "--num-heads", "27"])
    assert request is not None
    assert request.given["dimensions"] == 3
    with pytest.raises(ConfigError, match="--dimensions"):
        parse(LOW_DATA, ["--dimensions", "1"])
