"""The command line refuses bad input in one line, its help is complete, and documented commands are valid."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cvit.config import PARAMETERS
from cvit.engine.declaration import Sweep
from cvit.engine.demo import COMMANDS
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.rounds import first_round
from cvit.engine.terminal.cli import parse
from cvit.parameters import ConfigError
from cvit.storage import Storage
from cvit.vocabulary import TRAINING
from sweeps.head_count import EXPRESSIVITY
from sweeps.head_count import HEAD_COUNT as HEAD_COUNT_SWEEP
from sweeps.low_data import SWEEP
from sweeps.tuned import SWEEP as TUNED
from tests.support.plans import all_sweeps, digits, make_plan, requests_of
from tests.support.scripts import ROOT, call, readme_commands, sweep

WRONG = [
    (["--foo", "1"], "--foo"),
    (["--patch-sise", "2"], "--patch-size"),
    (["surplus"], "surplus"),
    (["--patch-size", "two"], '"two"'),
    (["--patch-size", "3"], "patch_size 3 must divide the image size 8: one of 1, 2, 4, 8"),
    (["--num-heads", "1000"], "num_heads 1000 must be at most 49"),
    (["--preset", "huge"], "preset 'huge' is not valid: one of laptop, smoke, photographs, reference"),
    (["--init-scheme", "zero"], '"zero"'),
    (["--data-fraction", "0.1", "1.5"], "data_fraction 1.5 must lie in (0, 1]"),
    (["--data-fraction", "0"], "data_fraction 0.0 must lie in (0, 1]"),
    (["--data-fraction"], "--data-fraction needs at least one value"),
    (["--seeds", "0"], "seeds 0 must be at least 1"),
    (["--learning-rate", "-1"], "learning_rate -1.0 must be positive"),
    (["--warmup-fraction", "1"], "warmup_fraction 1.0 must lie in [0, 1)"),
    (["--dataset", "imagenette"], "imagenette"),
    (["--dataset", "cifar10", "--no-download"], "cifar10"),
    (["--tracking-uri", "mlruns"], "tracking URI 'mlruns'"),
    (["--tracking-uri", "sqlite:///no/such/folder/m.db"], "no/such/folder"),
    (["--storage", "ftp://host/x"], "ftp://host/x"),
    (["--storage", "/dev/null/x"], "/dev/null"),
    (["--address", "127.0.0.1:1"], "127.0.0.1:1"),
    (["--storage", ""], "--storage is empty"),
    (["--tracking-uri", ""], "--tracking-uri is empty"),
    (["--dataset", " "], "--dataset is empty"),
    (["--storage", "s3://"], "it names no bucket, as in s3://bucket/folder"),
    (["--storage", "s3:/bucket/x"], "write s3://bucket/x"),
    (["--seeds", "0", "1", "2"], "--seeds takes one value, the number of seeds: --seeds 3 is for the seeds 0 to 2"),
    (["--seeds=4", "5"], "--seeds 2 is for the seeds 0 to 1"),
    (["--seeds", "4", "--seeds", "5"], "--seeds takes one value"),
    (["--seeds", "1000000"], "1,000,000 seeds (seeds is their number, not a seed)"),
    (["--seeds", "99999999999999999999"], "are more than 100,000, the most in a sweep: 3 of data_fraction, 3 of init"),
    (["--data-fraction", *(f"0.{i}" for i in range(1000, 4400))], "trials are more than 100,000"),
    (["--learning-rate", "1e-3", "2e-3"], "several values are taken by --data-fraction, --init-scheme"),
    (["--learning-rate", "1e-3", "--learning-rate", "2e-3"], "--learning-rate takes one value in this sweep"),
    (["--learning-rate", "1e-3,2e-3"], "--learning-rate takes one value."),
    (["--data-fraction", "0.1,1.5"], "data_fraction 1.5 must lie in (0, 1]"),
    (["--data-fraction", ","], "--data-fraction needs at least one value"),
    (["--init-scheme", "random,zero"], '"zero"'),
    (["--json"], "--json prints the plan of --dry-run: give both"),
    (["--data-fraction", "1%"], "Give a share of 1"),
    (["--dry-run", "yes"], "--dry-run takes no value, but 'yes' follows it"),
    (["--image-size", "13"], "an image size of 12 or 16 would do"),
    (["--image-size", "13", "--patch-size", "4"], "one of 1, 13; or an image size of 12 or 16"),
    (["--image-size", "1"], "an image size of 4 would do"),
    (["--device", "none"], "--device does not take none"),
    (["--seeds", "null"], "--seeds does not take none"),
    (["--learning-rate", "none"], "--learning-rate does not take none"),
]


GOLDEN_STUDY = "1597470b8005f3a1"
GOLDEN_TRIALS = ["bbb06c83eced588e", "09c6a99ead628bf8"]


@pytest.mark.parametrize(("options", "names"), WRONG, ids=[" ".join(options)[:40] for options, _ in WRONG])
def test_bad_input_ends_with_one_line_and_code_2_and_creates_nothing(
    options: list[str], names: str, tmp_path: Path
) -> None:
    ended = call(tmp_path, *options)
    assert (ended.exit_code, ended.output) == (2, "")
    assert ended.errors.startswith("low_data.py: error: ")
    assert ended.errors.count("\n") == 1
    assert names in ended.errors
    assert list(tmp_path.iterdir()) == []


def test_so_it_does_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "sweeps/low_data.py"), "--patch-size", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "low_data.py: error: patch_size 3 must divide the image size 8: one of 1, 2, 4, 8\n"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_creates_nothing(tmp_path: Path) -> None:
    output = sweep(tmp_path, "--preset", "smoke", "--dry-run", "--max-pack", "1")
    for words in ("trials    6", "stages    8", "packs     8 or a few more, of at most 1", "FLOPs", "of one worker"):
        assert words in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "shared", "saves_time"),
    [
        ("no_warmup", "9, 9 to train (sharing saves 3, 6,000 steps, 19 % of all)", True),
        ("init_schemes", "10, 10 to train (sharing saves none)", False),
    ],
)
def test_a_dry_run_says_what_sharing_saves(tmp_path: Path, script: str, shared: str, saves_time: bool) -> None:
    """The plan shows stages, steps, their share and seconds, or that sharing saves none."""
    options = ("--preset", "smoke", "--dry-run", "--min-steps", "4000")
    output = sweep(tmp_path, *options, script=f"sweeps/{script}.py")
    assert f"stages    {shared}\n" in output
    saved = re.search(r"saved     about ([\d.]+) (?:s|min) of one worker, by sharing stages", output)
    assert (saved is not None) == saves_time
    assert saved is None or float(saved[1]) > 0


def test_help_shows_every_parameter_and_the_defaults_of_the_preset_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert parse(SWEEP, ["--help-all", "--preset", "reference"]) is None
    text = capsys.readouterr().out
    derived = {"data_fingerprint", "in_channels", "num_classes", "dimensions", "seed"}
    for name in PARAMETERS.keys() - derived:
        assert f"--{name.replace('_', '-')}" in text
    assert "[default: 12]" in text
    assert SWEEP.question in text


def test_only_what_is_given_overrides_the_preset() -> None:
    request = parse(SWEEP, ["--learning-rate", "0.001", "--data-fraction", "0.2", "0.3", "--seeds", "7"])
    assert request is not None
    assert request.given == {"learning_rate": 0.001}
    assert request.grid["data_fraction"] == (0.2, 0.3)
    assert request.grid["init_scheme"] == SWEEP.presets["laptop"].grid["init_scheme"]
    assert request.seeds == 7


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("max-test-images", "0"),
        ("convolution-learning-rate", "0"),
        ("convolution-warmup-fraction", "-1"),
        ("inner-dim", "0"),
    ],
)
def test_auto_is_not_set_and_so_is_the_number_that_stood_for_it(tmp_path: Path, name: str, before: str) -> None:
    """Commands in papers go on working, and ask for the same trials as the command without the option."""
    options = ("--preset", "smoke", "--init-scheme", "two_phase", "--data-fraction", "0.05")
    as_before, as_now = (make_plan(tmp_path, *options, f"--{name}", value) for value in (before, "auto"))
    request = parse(SWEEP, [f"--{name}", before])
    assert request is not None and list(request.given.values()) == [None]
    keys = {tuple(t.key for t in p.trials) for p in (as_before, as_now)}
    assert len(keys) == 1 and as_before.study.key == as_now.study.key
    if name != "max-test-images":  # the preset sets it
        assert make_plan(tmp_path, *options).study.key == as_now.study.key


def test_an_axis_has_auto_among_its_values(tmp_path: Path) -> None:
    """Golden: the trials of version d709f53, whose cells had 0 in its place."""
    options = ("--preset", "smoke", "--num-heads", "9", "--init-scheme", "random")
    plans = [
        make_plan(tmp_path, *options, "--inner-dim", value, "72", sweep=HEAD_COUNT_SWEEP) for value in ("auto", "0")
    ]
    assert [[trial.cell["inner_dim"] for trial in plan.trials] for plan in plans] == [[None, 72]] * 2
    assert [[trial.key for trial in plan.trials] for plan in plans] == [GOLDEN_TRIALS] * 2
    assert plans[0].study.key == GOLDEN_STUDY


def test_the_environment_names_the_data_folder_unless_the_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVIT_DATA_DIR", "/from/environment")
    for options, expected in (([], "/from/environment"), (["--data-dir", "/given"], "/given")):
        request = parse(SWEEP, options)
        assert request is not None
        assert request.data_dir == expected


def test_the_command_can_be_pasted_whatever_its_values_are(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["my runs/*", "a'b\"c", "$HOME", "`id`", "two\nlines", "ü", "&;|<>(){}!#", "\\", "~/x"]
    for value in values:
        monkeypatch.setattr(sys, "argv", ["/a folder/low_data.py"])
        request = parse(SWEEP, ["--storage", value])
        assert request is not None
        echo = f"set -- {request.command}; printf '%s\\0' \"$@\""
        said = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True).stdout
        script = os.path.relpath("/a folder/low_data.py")
        assert said.split("\0")[:-1] == ["python", script, "--storage", value]


def test_a_number_of_seeds_that_looks_like_a_seed_gets_a_sentence(tmp_path: Path) -> None:
    output = sweep(tmp_path, "--preset", "smoke", "--dry-run", "--max-pack", "1", "--seeds", "42")
    assert "seed      0 to 41: 42 seeds (seeds is their number, not a seed)\n" in output


def test_a_search_counts_its_trials_too() -> None:
    request = parse(TUNED, ["--search-trials", "1000000"])
    assert request is not None
    with pytest.raises(ConfigError, match=r"3,000,051 trials are more than .* 1,000,000 search trials, 12 of"):
        Plan.make(TUNED, request, digits())


def test_values_given_twice_count_once() -> None:
    request = parse(SWEEP, ["--data-fraction", "0.2", "0.1", "0.2"])
    assert request is not None
    assert request.grid["data_fraction"] == (0.2, 0.1)


def test_every_documented_command_is_valid() -> None:
    commands = list(readme_commands())
    for script, *options in commands:
        assert (ROOT / script).is_file()
        assert all(requests_of(script, options).values())
    assert {script for script, *_ in commands} == {script for script, _ in all_sweeps()}


@pytest.mark.parametrize(("script", "declared"), [pytest.param(*found, id=found[1].name) for found in all_sweeps()])
def test_every_preset_of_every_sweep_can_be_planned(script: str, declared: Sweep, tmp_path: Path) -> None:
    assert {"laptop", "smoke", "reference"} <= set(declared.presets)
    assert declared.default_preset == "laptop"
    photographs = dataclasses.replace(digits(), image_size=32, in_channels=3, augmentation="crop_flip")
    for name in declared.presets:
        info = None if declared.task != TRAINING else photographs if name in ("photographs", "reference") else digits()
        request = requests_of(script, ["--preset", name])[declared.name]
        assert request is not None
        plan = first_round(declared, request, info, Storage.open(str(tmp_path))).plan
        if plan.search is not None:
            assert len(plan.trials) == len(plan.study.grid["init_scheme"]) * plan.search.round_size
            continue
        assert len(plan.trials) + len(plan.dropped) == math.prod(map(len, plan.study.grid.values()))
        assert len({trial.key for trial in plan.trials}) == len(plan.trials)


def test_the_sweeps_of_a_script_have_the_same_presets() -> None:
    presets: dict[str, set[tuple[str, ...]]] = {}
    for script, declared in all_sweeps():
        presets.setdefault(script, set()).add(tuple(declared.presets))
    assert [script for script, found in presets.items() if len(found) > 1] == []


HEAD_COUNT = "sweeps/head_count.py"


def test_an_option_goes_to_every_part_that_has_it() -> None:
    options = ["--num-heads", "3", "9", "--kernel-size", "5", "--seeds", "4", "--dataset", "cifar10", "--depth", "2"]
    expressivity, training = requests_of(HEAD_COUNT, options).values()
    assert expressivity is not None and training is not None
    assert expressivity.grid["num_heads"] == training.grid["num_heads"] == (3, 9)
    assert expressivity.grid["kernel_size"] == (5,) and "kernel_size" not in training.grid
    assert expressivity.seeds == training.seeds == 4
    assert (expressivity.given, training.given) == ({}, {"depth": 2})
    assert training.dataset == "cifar10"


@pytest.mark.parametrize(
    ("options", "grid", "given"),
    [
        ("--dimensions 1 2 3", {"dimensions": (1, 2, 3)}, {}),
        ("--stride 1,2 --dilation 4", {"stride": (1, 2)}, {"dilation": 4}),
        ("--causal", {}, {"causal": True}),
        ("--causal false true --seeds 2", {"causal": (False, True)}, {}),
        ("--causal=False", {}, {"causal": False}),
        ("--window-size auto 4", {"window_size": (None, 4)}, {}),
        ("--window-size auto", {}, {"window_size": None}),
    ],
)
def test_a_further_axis_is_one_only_with_several_values(options: str, grid: dict[str, Any], given: Any) -> None:
    (request,) = requests_of(HEAD_COUNT, ["--part", "expressivity", *options.split()]).values()
    assert request is not None and request.given == given
    assert request.grid == {**EXPRESSIVITY.presets["laptop"].grid, **grid}


def test_a_further_axis_needs_valid_values() -> None:
    for options, message in (("--dimensions", "--dimensions needs at least one value"), ("--causal maybe", '"maybe"')):
        with pytest.raises(ConfigError, match=message):
            requests_of(HEAD_COUNT, ["--part", "expressivity", *options.split()])


def test_a_part_alone_has_its_own_options_only() -> None:
    (request,) = requests_of(HEAD_COUNT, ["--part", "expressivity", "--patch-size", "1", "2"]).values()
    assert request is not None and request.grid["patch_size"] == (1, 2)
    for options, message in (
        (["--part=expressivity", "--depth", "2"], r"--depth.*in expressivity; --part chooses one of"),
        (["--patch-size", "1", "2"], r"in head_count; --part chooses one of expressivity, head_count"),
        (["--part", "training"], r"^part 'training' is not valid: one of expressivity, head_count$"),
    ):
        with pytest.raises(ConfigError, match=message):
            requests_of(HEAD_COUNT, options)
    with pytest.raises(ConfigError, match="--part"):
        requests_of("sweeps/low_data.py", ["--part", "low_data"])


def test_the_imports_that_the_readme_shows_are_there() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("from cvit")]
    assert len(lines) >= 4
    for line in lines:
        exec(line, {})


def test_a_wrong_documented_command_would_be_noticed() -> None:
    with pytest.raises(ConfigError):
        parse(SWEEP, ["--no-such-option"])


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "test-all"):
        assert f"make {target}" in readme
        assert f"\n{target}: " in makefile
    assert "-m cvit.engine.demo" in makefile.split("demo:")[1].split("\n\n")[0]
    assert any(command.startswith("sweeps/low_data.py ") for command in COMMANDS)
