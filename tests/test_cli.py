"""The command line: what is refused, and how; what the help says; that documented commands are valid."""

import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import ROOT, readme_commands

from cvit.config import PARAMETERS, ConfigError
from sweeps.engine.cli import parse
from sweeps.engine.main import main
from sweeps.low_data import SWEEP

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
]


@pytest.mark.parametrize(("options", "names"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_bad_input_ends_with_one_line_and_code_2_and_creates_nothing(
    options: list[str],
    names: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweeps/low_data.py", *options])
    with pytest.raises(SystemExit) as ended:
        main(SWEEP)
    output, error = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert error.startswith("low_data.py: error: ")
    assert error.count("\n") == 1
    assert names in error
    assert list(tmp_path.iterdir()) == []


def test_so_it_does_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "sweeps/low_data.py"), "--patch-size", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "low_data.py: error: patch_size 3 must divide the image size 8: one of 1, 2, 4, 8\n"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_creates_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "sweeps/low_data.py"), "--preset", "smoke", "--dry-run"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    for words in ("trials    6", "stages    8", "packs     8", "FLOPs", "of one worker"):
        assert words in output
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_parameter_and_the_defaults_of_the_preset_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert parse(SWEEP, ["--help", "--preset", "reference"]) is None
    text = capsys.readouterr().out
    derived = {"data_fingerprint", "in_channels", "num_classes", "seed"}
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


def test_the_environment_names_the_data_folder_unless_the_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVIT_DATA_DIR", "/from/environment")
    for options, expected in (([], "/from/environment"), (["--data-dir", "/given"], "/given")):
        request = parse(SWEEP, options)
        assert request is not None
        assert request.data_dir == expected


def test_values_given_twice_count_once() -> None:
    request = parse(SWEEP, ["--data-fraction", "0.2", "0.1", "0.2"])
    assert request is not None
    assert request.grid["data_fraction"] == (0.2, 0.1)


def test_every_documented_command_is_valid() -> None:
    commands = list(readme_commands())
    assert commands
    for script, *options in commands:
        assert (ROOT / script).is_file()
        assert parse(SWEEP, options) is not None


def test_a_wrong_documented_command_would_be_noticed() -> None:
    with pytest.raises(ConfigError):
        parse(SWEEP, ["--no-such-option"])


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}: .venv/.installed" in makefile
    assert "sweeps/low_data.py" in makefile.split("demo:")[1].split("\n\n")[0]
