"""`--settings-from`: a file's settings come below explicit options and above the preset's, and say where they apply."""

from pathlib import Path
from typing import Any

import pytest

from cvit.settings import SearchResult, Winner, settings_text
from sweeps.head_count import HEAD_COUNT
from sweeps.low_data import SWEEP
from sweeps.no_warmup import SWEEP as NO_WARMUP
from tests.support.plans import digits, make_plan
from tests.support.scripts import call, sweep

SMALL_MODEL = {"embed_dim": 48, "depth": 4}
OPTIONS = ("--data-fraction", "0.05", "--seeds", "1", "--init-scheme", "random", "conv_structured", "two_phase")


def result(dataset: str = "digits", fingerprint: str = "", depth: int = 4, **schemes: Any) -> SearchResult:
    return SearchResult(
        dataset=dataset,
        data_fingerprint=fingerprint,
        data_fraction=0.05,
        model=SMALL_MODEL | {"depth": depth},
        schemes={scheme: Winner(settings=settings) for scheme, settings in schemes.items()},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.json"
    two_phase = {"learning_rate": 0.003, "weight_decay": 0.01}
    path.write_text(settings_text([result(random={"learning_rate": 0.007}, two_phase=two_phase)]))
    return path


def learning_rates(folder: Path, *options: str) -> dict[str, float]:
    return {t.cell["init_scheme"]: t.params["learning_rate"] for t in make_plan(folder, *OPTIONS, *options).trials}


def test_explicit_options_come_first_then_the_file_then_the_preset(tmp_path: Path, file: Path) -> None:
    preset = learning_rates(tmp_path)
    from_file = learning_rates(tmp_path, "--settings-from", str(file))
    assert from_file == {"random": 0.007, "two_phase": 0.003, "conv_structured": preset["conv_structured"]}
    explicit = learning_rates(tmp_path, "--settings-from", str(file), "--learning-rate", "0.5")
    assert set(explicit.values()) == {0.5}
    plan = make_plan(tmp_path, *OPTIONS, "--settings-from", str(file), "--learning-rate", "0.5")
    by_scheme = {trial.cell["init_scheme"]: trial.params for trial in plan.trials}
    assert by_scheme["two_phase"]["weight_decay"] == 0.01, "what is not given explicitly is still the file's"
    own = SWEEP.presets["laptop"].scheme_settings["random"]["position_encoding"]
    assert by_scheme["random"]["position_encoding"] == own, "what the file lacks is still the preset's"


def test_the_same_settings_make_the_same_study_wherever_they_come_from(tmp_path: Path) -> None:
    """A file that has what the preset has changes nothing; other settings make another study."""
    path = tmp_path / "tuned.json"
    keys, own = [], SWEEP.presets["laptop"].scheme_settings["conv_structured"]["learning_rate"]
    for rate in (own, 2 * own):
        path.write_text(settings_text([result(conv_structured={"learning_rate": rate})]))
        keys.append(make_plan(tmp_path, *OPTIONS, "--settings-from", str(path)).study.key)
    assert keys[0] == make_plan(tmp_path, *OPTIONS).study.key != keys[1]


def test_an_axis_of_the_grid_has_no_setting(tmp_path: Path, file: Path) -> None:
    """So the studies of a sweep over learning rates do not differ in learning rates that no trial has."""
    plan = make_plan(tmp_path, "--settings-from", str(file), sweep=NO_WARMUP)
    assert {t.params["learning_rate"] for t in plan.trials} == set(NO_WARMUP.presets["laptop"].grid["learning_rate"])
    assert "learning_rate" not in plan.study.settings_of["two_phase"]
    assert plan.study.settings_of["two_phase"]["weight_decay"] == 0.01


def test_of_several_searches_the_closest_is_taken(tmp_path: Path) -> None:
    own = digits().fingerprint
    several = [
        result("other", "abc", random={"learning_rate": 0.001}),
        result(fingerprint=own, depth=2, random={"learning_rate": 0.002}),
        result(fingerprint=own, random={"learning_rate": 0.003}),
        result(fingerprint=own, random={"learning_rate": 0.004}),
    ]
    path = tmp_path / "tuned.json"
    for first, expected in ((0, 0.003), (3, 0.004)):
        path.write_text(settings_text(several[first:]))
        assert learning_rates(tmp_path, "--settings-from", str(path))["random"] == expected
    path.write_text(settings_text(several[:1]))
    notes = "\n".join(make_plan(tmp_path, *OPTIONS, "--settings-from", str(path)).study.notes)
    assert "note: the sweep runs on another data set, digits" in notes


def test_the_plan_says_where_settings_come_from(tmp_path: Path, file: Path) -> None:
    output = sweep(tmp_path, *OPTIONS, "--depth", "2", "--settings-from", str(file), "--dry-run", "--max-pack", "1")
    assert f"  settings  random two_phase from {file}: searched on digits (5 % of the images)\n" in output
    assert "            conv_structured as in the preset, since the file does not have them\n" in output
    assert "            note: the search had another model: depth 4, not 2\n" in output
    assert "another data set" not in output


def test_a_wrong_file_ends_with_one_line_and_code_2_and_creates_nothing(tmp_path: Path) -> None:
    ended = call(tmp_path, "--settings-from", "none.json")
    assert (ended.exit_code, ended.output) == (2, "")
    assert ended.errors == "low_data.py: error: settings 'none.json' cannot be read: No such file or directory\n"
    assert not list(tmp_path.iterdir())


def test_a_part_without_init_schemes_passes_the_file_over(tmp_path: Path, file: Path) -> None:
    options = ("--preset", "smoke", "--dry-run", "--max-pack", "1", "--settings-from", str(file))
    output = sweep(tmp_path, *options, script="sweeps/head_count.py")
    assert output.count(f"from {file}") == 1
    assert HEAD_COUNT.name in output and SWEEP.name not in output


def test_a_file_leaves_alone_what_belongs_to_the_question(tmp_path: Path) -> None:
    """no_warmup asks about the attention phase, so the convolution phase keeps its own rate and warm-up."""
    path = tmp_path / "tuned.json"
    of_file = {"convolution_learning_rate": None, "convolution_warmup_fraction": 0.0, "weight_decay": 0.01}
    path.write_text(settings_text([result(two_phase=of_file)]))
    options = ("--init-scheme", "two_phase", "--seeds", "1", "--settings-from", str(path))
    params = make_plan(tmp_path, *options, sweep=NO_WARMUP).trials[0].params
    kept = NO_WARMUP.presets["laptop"].scheme_settings["two_phase"]
    assert {name: params[name] for name in of_file} == {
        "convolution_learning_rate": kept["convolution_learning_rate"],
        "convolution_warmup_fraction": kept["convolution_warmup_fraction"],
        "weight_decay": 0.01,
    }
