"""The command `cvit`: names, help, several questions at once, options from files and variables, plans as JSON."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cvit import command, vocabulary
from cvit.completion import with_commands
from cvit.engine.invocation import of_program
from cvit.engine.scripts import sweep_scripts
from cvit.engine.terminal.cli import parse, unknown_variables
from cvit.parameters import ConfigError
from sweeps.low_data import SWEEP
from tests.support.plans import make_plan
from tests.support.scripts import ROOT, TINY, Ended, as_if_new, call, journal

SMALL = ("--preset", "smoke", "--init-scheme", "random", "--data-fraction", "0.05", *TINY[:-2], "--min-steps", "8")
LOCAL = ("--address", "local", "--workers", "1", "--tracking-uri", "none")
DRY = ("--preset", "smoke", "--dry-run", "--max-pack", "1")
HEAVY = ("torch", "pandas", "ray", "mlflow")


def cvit(folder: Path, *arguments: str, program: str = "/usr/bin/cvit") -> Ended:
    """Runs the command `cvit` in `folder` but in this process, and puts back whatever it changes about it."""
    output, errors, exit_code = io.StringIO(), io.StringIO(), 0
    with as_if_new(), contextlib.chdir(folder):
        sys.argv = [program, *arguments]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                command.main()
            except SystemExit as end:
                exit_code = end.code or 0
    assert isinstance(exit_code, int)
    return Ended(exit_code, output.getvalue(), errors.getvalue())


def lines_with(text: str, words: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if words in line]


def plan_of(output: str) -> dict[str, Any]:
    (plan,) = json.loads(output)["sweeps"]
    return plan


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CVIT_")]:
        monkeypatch.delenv(name)


# --- names and help ---


def test_every_script_is_a_command_with_a_line_of_help(tmp_path: Path) -> None:
    assert sorted(sweep_scripts()) == sorted(
        path.stem.replace("_", "-") for path in (ROOT / "sweeps").glob("*.py") if path.stem != "__init__"
    )
    for arguments in ([], ["--help"], ["-h"]):
        ended = cvit(tmp_path, *arguments)
        assert ended.exit_code == 0
        for name in (*sweep_scripts(), "run", "tables", "sync", "--install-completion", "--version"):
            assert any(line.strip("│ ").startswith(name) for line in ended.output.splitlines()), name
        assert "Does training first as a convolution win where data are few?" in ended.output


@pytest.mark.parametrize("arguments", [["--help"], ["low-data", "--help"], ["run", "low-data", "no-warmup", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from cvit.command import main; "
        f"atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules])); "
        f"sys.argv = ['cvit', *{arguments}]; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_short_help_has_three_groups_and_names_the_long_one(tmp_path: Path) -> None:
    short, long = (cvit(tmp_path, "low-data", flag).output for flag in ("--help", "--help-all"))
    for group in ("─ Run ", "─ Grid ", "─ Data "):
        assert group in short and group in long
    for group, option in (("─ Model ", "--embed-dim"), ("─ Training ", "--batch-size"), ("─ Init", "--settings-from")):
        assert group not in short and option not in short
        assert group in long and option in long
    num_hidden = sum(line.startswith("│ --") for line in long.splitlines()) - sum(
        line.startswith("│ --") for line in short.splitlines()
    )
    assert f"--help-all shows the other {num_hidden} options" in short
    assert len(short.splitlines()) < 70 < len(long.splitlines())


def test_the_version_is_that_of_the_code(tmp_path: Path) -> None:
    from cvit.provenance import code_version

    for arguments in (["--version"], ["low-data", "--version"]):
        assert cvit(tmp_path, *arguments).output == f"{code_version()}\n"
    assert call(tmp_path, "--version").output == f"{code_version()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["low-dta"], "cvit: error: 'low-dta' is not valid: did you mean low-data?"),
        (["xyzzy"], "cvit: error: 'xyzzy' is not valid: one of budget, depth, full-grid"),
        (["--foo"], "cvit: error: '--foo' is not valid: one of budget"),
        (["run"], "cvit run: error: give the names of questions before any option: budget, depth, full-grid"),
        (["run", "--seeds", "3", "low-data"], "cvit run: error: give the names of questions before any option"),
        (["run", "low-data", "no-warmpu"], "cvit: error: 'no-warmpu' is not valid: did you mean no-warmup?"),
        (["low-data", "--seeds", "x"], "cvit low-data: error: Invalid value for --seeds"),
        (["run", "low-data", "no-warmup", "--kernel-size", "3"], "error: Unknown option: --kernel-size."),
        (["run", "low-data", "tuned", "full-grid", "--preset", "photographs"], "one of laptop, smoke, reference"),
        (["run", "low-data", "no-warmup", "--learning-rate", "1e-3", "2e-3"], "takes one value in this sweep"),
        (["sync", "--storage", "nowhere"], "cvit sync: error: storage 'nowhere' has no journal"),
        (["sync", "--foo"], "cvit sync: error: Unknown option: --foo"),
        (["tables", "--storage", "nowhere"], "cvit tables: error: "),
    ],
)
def test_a_wrong_command_ends_with_one_line_and_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    ended = cvit(tmp_path, *arguments)
    assert (ended.exit_code, ended.output) == (2, "")
    assert message in ended.errors and ended.errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "results"] == []


# --- several questions, and what is printed to go on ---


def test_several_questions_run_one_after_another_with_common_options(tmp_path: Path) -> None:
    """An option is an axis of one of them and a single value in the other."""
    options = (*SMALL, "--warmup-fraction", "0", *LOCAL)
    ended = cvit(tmp_path, "run", "low-data", "no_warmup", "low-data", *options, "--learning-rate", "0.002")
    assert ended.exit_code == 0, ended.errors
    (of_low_data,), (of_no_warmup,) = (_trials(tmp_path, name) for name in ("low_data", "no_warmup"))
    assert of_low_data["data_fraction"] == of_no_warmup["data_fraction"] == 0.05
    assert of_low_data["learning_rate"] == of_no_warmup["learning_rate"] == 0.002
    assert of_low_data["warmup_fraction"] == of_no_warmup["warmup_fraction"] == 0.0
    again = cvit(tmp_path, "run", "low-data", "no-warmup", *options, "--learning-rate", "0.002")
    assert again.output.count("Nothing to train: every trial is done.") == 2


def _trials(folder: Path, name: str) -> list[dict[str, Any]]:
    return [record["params"] for record in journal(folder, name) if record["type"] == vocabulary.RECORD_TRIAL]


@pytest.mark.parametrize(
    ("program", "words", "tables"),
    [
        ("/opt/bin/cvit", "cvit low-data", "cvit tables"),
        ("/opt/lib/cvit/__main__.py", "python -m cvit low-data", "python -m cvit tables"),
        (None, "sweeps/low_data.py", "python analysis/make_tables.py"),
    ],
)
def test_printed_commands_follow_the_way_it_was_started(
    program: str | None, words: str, tables: str, tmp_path: Path
) -> None:
    options = (*SMALL, *LOCAL)
    ended = call(tmp_path, *options) if program is None else cvit(tmp_path, "low-data", *options, program=program)
    assert lines_with(ended.output, "Tables and figures:") == [f"Tables and figures:  {tables} --storage storage"]
    (study,) = [record for record in journal(tmp_path) if record["type"] == vocabulary.RECORD_STUDY]
    assert study["command"].endswith(f"{words} {shlex.join(options)}")


def test_a_run_of_several_names_all_of_them_in_its_command() -> None:
    started = of_program(["run", "low-data", "no-warmup"], is_one_script=False)
    request = parse(SWEEP, ["--seeds", "2"], (SWEEP,), started)
    assert request is not None
    assert request.command.endswith("run low-data no-warmup --seeds 2")
    assert request.command.startswith(" ".join(started.program))


def test_variables_are_a_part_of_the_printed_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted into another shell, the command does the same."""
    monkeypatch.setattr(sys, "argv", ["cvit"])
    monkeypatch.setenv("CVIT_STORAGE", "my runs")
    monkeypatch.setenv("CVIT_SEEDS", "3")
    request = parse(SWEEP, ["--seeds", "2"], (), of_program(["low-data"]))
    assert request is not None
    assert request.command == "CVIT_STORAGE='my runs' cvit low-data --seeds 2"


# --- commas, files and variables ---


@pytest.mark.parametrize(
    "given",
    [["0.02", "0.05"], ["0.02,0.05"], ["0.02,", "0.05"], ["0.02,0.05,0.02"], [",0.02,,0.05"]],
    ids=" ".join,
)
def test_commas_separate_values_as_spaces_do(given: list[str]) -> None:
    request = parse(SWEEP, ["--data-fraction", *given, "--init-scheme=random,two_phase"])
    assert request is not None
    assert request.grid["data_fraction"] == (0.02, 0.05)
    assert request.grid["init_scheme"] == ("random", "two_phase")


CONFIGS = {
    "a.toml": 'preset="smoke"\nseeds = 2\ndata_fraction = [0.02, 0.05]\nmax-test-images = "auto"\nno_download = true\n',
    "a.yaml": "preset: smoke\nseeds: 2\ndata_fraction: [0.02, 0.05]\nmax-test-images: auto\nno_download: true\n",
    "a.yml": "preset: smoke\nseeds: 2\ndata_fraction: 0.02, 0.05\nmax_test_images: auto\nno-download: yes\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_asks_for_the_same_trials_as_the_options(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(CONFIGS[name])
    options = ("--preset", "smoke", "--seeds", "2", "--data-fraction", "0.02", "0.05", "--max-test-images", "auto")
    by_file, by_options = make_plan(tmp_path, "--config", str(file)), make_plan(tmp_path, *options)
    assert [trial.key for trial in by_file.trials] == [trial.key for trial in by_options.trials]
    request = parse(SWEEP, ["--config", str(file)])
    assert request is not None and not request.download


def test_the_command_line_is_before_variables_before_the_file_before_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('seeds = 4\nbatch_size = 64\ndata_fraction = [0.4]\nstorage = "of the file"\npreset = "smoke"\n')
    monkeypatch.setenv("CVIT_SEEDS", "3")
    monkeypatch.setenv("CVIT_DATA_FRACTION", "0.3, 0.35")
    monkeypatch.setenv("CVIT_STORAGE", " ")  # empty: as if it was not set
    request = parse(SWEEP, ["--config", str(file), "--seeds", "2"])
    assert request is not None
    assert (request.seeds, request.grid["data_fraction"], request.given) == (2, (0.3, 0.35), {"batch_size": 64})
    assert (request.storage, request.preset) == ("of the file", "smoke")
    assert request.grid["init_scheme"] == SWEEP.presets["smoke"].grid["init_scheme"]
    monkeypatch.setenv("CVIT_PRESET", "laptop")
    monkeypatch.setenv("CVIT_CONFIG", str(file))
    by_variables = parse(SWEEP, [])
    assert by_variables is not None
    assert (by_variables.preset, by_variables.seeds, by_variables.storage) == ("laptop", 3, "of the file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "sedes = 3", "'sedes' is not an option: did you mean seeds?"),
        ("a.toml", "xyzzy = 3", "'xyzzy' is not an option; --help-all lists them"),
        ("a.toml", "kernel_size = 3", "'kernel_size' is not an option"),
        ("a.toml", "[training]\nseeds = 3", "'training' is not an option"),
        ("a.toml", "[seeds]\nx = 3", "'seeds' is a table"),
        ("a.toml", "seeds = ", "cannot be read: Invalid value"),
        ("a.toml", 'seeds = "x"', 'unable to convert "x" into int'),
        ("a.toml", "seeds = [1, 2]", "seeds"),
        ("a.toml", 'init_scheme = ["random", "zero"]', '"zero"'),
        ("a.toml", 'config = "b.toml"', "'config' is not an option"),
        ("a.toml", 'preset = "huge"', "preset 'huge' is not valid: one of laptop"),
        ("a.yaml", "seeds: [1", "cannot be read: "),
        ("a.yaml", "- seeds", "it holds list, not options"),
        ("a.yaml", "sedes: 3", "did you mean seeds?"),
        ("a.json", "{}", "a file whose name ends with .toml, .yaml or .yml"),
        ("none.toml", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_file_ends_with_one_line_and_code_2(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "config" / name
    file.parent.mkdir()
    if content is not None:
        file.write_text(content)
    folder = tmp_path / "work"
    folder.mkdir()
    ended = cvit(folder, "low-data", "--config", str(file))
    assert (ended.exit_code, ended.output) == (2, "")
    assert message in ended.errors and ended.errors.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CVIT_SEED", "3", "variable CVIT_SEED is not an option: did you mean CVIT_SEEDS?"),
        ("CVIT_LEARNING_RATES", "3", "did you mean CVIT_LEARNING_RATE?"),
        ("CVIT_SEEDS", "three", "Invalid value for CVIT_SEEDS"),
        ("CVIT_PRESET", "huge", "preset 'huge' is not valid"),
        ("CVIT_CONFIG", "none.toml", "config 'none.toml' cannot be read"),
    ],
)
def test_a_wrong_variable_ends_with_one_line_and_code_2(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    ended = cvit(tmp_path, "low-data", "--dry-run")
    assert (ended.exit_code, ended.output) == (2, "")
    assert message in ended.errors and ended.errors.count("\n") == 1


def test_variables_of_other_things_and_of_other_sweeps_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_tests = ("CVIT_CHAOS_FAULTS", "CVIT_CHAOS_SEED", "CVIT_HOST", "CVIT_INJECT", "CVIT_SCALE_STAGE_SECONDS")
    for name in (*of_tests, "CVIT_KERNEL_SIZE", "CVIT_SEARCH_TRIALS"):
        monkeypatch.setenv(name, "5")
    assert unknown_variables() == []
    monkeypatch.setenv("CVIT_HOME", "5")
    monkeypatch.setenv("CVIT_LR", "0.1")
    ended = cvit(tmp_path, "low-data", *DRY, "--json")
    assert ended.exit_code == 0
    assert plan_of(ended.output)["study"] == make_plan(tmp_path, *DRY).study.key
    assert ended.errors.splitlines() == [
        f"cvit low-data: {name} is not an option of any sweep, and is ignored" for name in ("CVIT_HOME", "CVIT_LR")
    ]


# --- the plan as JSON ---


def test_the_plan_as_json_is_the_plan(tmp_path: Path) -> None:
    """Golden: the names of the fields, which programs read (docs/COMMAND.md)."""
    options = (*DRY, "--json", "--data-fraction", "0.02,0.05")
    ended = cvit(tmp_path, "low-data", *options)
    assert (ended.exit_code, ended.errors) == (0, "")
    assert list(tmp_path.iterdir()) == []
    document = json.loads(ended.output)
    assert list(document) == ["format", "version", "sweeps"] and document["format"] == 1
    plan, expected = plan_of(ended.output), make_plan(tmp_path, *options)
    documented = (ROOT / "docs/COMMAND.md").read_text()
    for name in (*plan, *plan["cost"], *plan["trials"][0], *plan["stages"][0]):
        assert f"`{name}`" in documented, name
    assert plan["study"] == expected.study.key
    assert [trial["key"] for trial in plan["trials"]] == [trial.key for trial in expected.trials]
    assert {stage["key"]: stage["steps"] for stage in plan["stages"]} == {
        key: stage.steps for key, stage in expected.stages.items()
    }
    assert plan["grid"]["data_fraction"] == [0.02, 0.05]
    assert plan["num_trials"] == 6 and plan["num_trials_done"] == 0
    assert plan["steps_to_train"] == sum(stage["steps"] for stage in plan["stages"])
    assert plan["cost"]["flops"] > 0 and plan["cost"]["worker_seconds"] > 0


def test_the_plan_as_json_says_what_is_done(tmp_path: Path) -> None:
    options = (*SMALL, *LOCAL)
    assert cvit(tmp_path, "low-data", *options).exit_code == 0
    plan = plan_of(cvit(tmp_path, "low-data", *options, "--seeds", "2", "--dry-run", "--json").output)
    assert (plan["num_trials"], plan["num_trials_done"]) == (2, 1)
    assert [trial["status"] for trial in plan["trials"]] == [vocabulary.STATUS_OK, None]
    assert sum(stage["is_done"] for stage in plan["stages"]) == 1
    done = plan_of(cvit(tmp_path, "low-data", *options, "--dry-run", "--json").output)
    assert done["cost"] is None and done["steps_to_train"] == 0


def test_the_plans_of_several_sweeps_are_one_document(tmp_path: Path) -> None:
    """An option that only one of them has goes there."""
    output = cvit(tmp_path, "run", "head-count", "tuned", *DRY, "--json", "--kernel-size", "5").output
    plans = json.loads(output)["sweeps"]
    assert plans[0]["grid"]["kernel_size"] == [5]
    assert "kernel_size" not in plans[1]["settings"].keys() | plans[2]["settings"].keys()
    assert [plan["sweep"] for plan in plans] == ["expressivity", "head_count", "tuned"]
    assert [plan["search"] is None for plan in plans] == [True, True, False]
    assert plans[2]["search"] == {"trials_per_scheme": 4, "round_size": 2, "finalists": 2, "finalist_seeds": 2}


# --- completion ---


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".local/share/bash-completion/completions/cvit"),
        ("zsh", ".zsh/completions/_cyclopts_cvit"),
        ("fish", ".config/fish/completions/cvit.fish"),
    ],
)
def test_completion_is_installed_for_a_shell(
    shell: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ZSH", "ZSH_CUSTOM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = cvit(tmp_path, "--install-completion", "--shell", shell)
    assert ended.exit_code == 0, ended.errors
    assert str(tmp_path / file) in ended.output
    script = (tmp_path / file).read_text()
    for words in (*sweep_scripts(), "tables", "sync", "data-fraction", "two_phase", "kernel-size", "storage"):
        assert words in script


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    script = tmp_path / "cvit.bash"
    script.write_text(
        with_commands(dict.fromkeys(sweep_scripts(), ""), {"run": "several"}).generate_completion(shell="bash")
    )

    def completed(*words: str) -> set[str]:
        code = (
            f"source {script}; COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); COMP_CWORD={len(words) - 1}; "
            f"$(complete -p cvit | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return {line.strip() for line in done.stdout.splitlines()}

    assert completed("cvit", "low-") == {"low-data"}
    assert completed("cvit", "low-data", "--data-f") == {"--data-fraction"}
    assert completed("cvit", "low-data", "--preset", "sm") == {"smoke"}
    assert completed("cvit", "run", "no-w") == {"no-warmup"}


def test_a_wrong_shell_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = cvit(tmp_path, "--install-completion", "--shell", "tcsh")
    assert (ended.exit_code, ended.output) == (2, "")
    assert "tcsh" in ended.errors and ended.errors.count("\n") == 1
    (tmp_path / "file").write_text("")
    ended = cvit(tmp_path, "--install-completion", "--shell", "bash", "--output", str(tmp_path / "file" / "cvit"))
    assert (ended.exit_code, ended.output) == (2, "")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_misspelt_documented_option_would_be_noticed() -> None:
    with pytest.raises(ConfigError):
        parse(SWEEP, ["--help-al"])
