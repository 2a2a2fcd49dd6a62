"""`--precision auto` becomes float32 or bfloat16 when a plan is made, by the machine that makes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cvit.engine.terminal import precision
from cvit.native import library
from cvit.native.library import SWITCH, multiplies_halves, processor_flags
from tests.support.scripts import TINY, call, sweep

SMALL = ("--preset", "smoke", "--init-scheme", "random", *TINY, "--min-steps", "4", "--data-fraction", "0.2")
DRY = (*SMALL, "--device", "cpu", "--dry-run")
HALVES = {"avx2", "fma", "avx512_bf16"}


def plan(folder: Path, *options: str) -> Any:
    """The plan without the command that asks for it and the seconds that it takes."""
    (described,) = json.loads(sweep(folder, *DRY, "--json", *options))["sweeps"]
    return {name: value for name, value in described.items() if name not in ("command", "cost")}


@pytest.mark.parametrize("expected", ["bfloat16", "float32"])
def test_auto_is_the_same_plan_as_its_value(expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are those of the value, so that stages that were trained in it are found."""
    monkeypatch.setattr(precision, "multiplies_halves", lambda: expected == "bfloat16")
    assert plan(tmp_path, "--precision", "auto") == plan(tmp_path, "--precision", expected)
    assert f"precision auto: {expected} on this machine" in sweep(tmp_path, *DRY, "--precision", "auto")
    assert "precision auto" not in sweep(tmp_path, *DRY)


@pytest.mark.parametrize(
    ("flags", "compiler", "expected"),
    [
        (HALVES, "c++", True),
        (HALVES, "no-such-compiler", False),
        (HALVES - {"avx512_bf16"}, "c++", False),
        (HALVES - {"avx2"}, "c++", False),
    ],
)
def test_a_cpu_takes_bfloat16_where_the_operators_multiply_it(
    flags: set[str], compiler: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert multiplies_halves() == expected
    monkeypatch.setenv(SWITCH, "0")
    assert not multiplies_halves()


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_plan_says_where_bfloat16_is_slow(
    has_bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an option or from a preset."""
    monkeypatch.setattr(precision, "processor_flags", lambda: HALVES if has_bfloat16 else {"avx2"})
    slow = "precision bfloat16: this processor has no instructions for it"
    of_preset = ("--preset", "reference", *DRY[2:])
    for options in ((*DRY, "--precision", "bfloat16"), of_preset):
        assert (slow in sweep(tmp_path, *options)) != has_bfloat16, options
    for options in (DRY, (*of_preset, "--precision", "float32")):
        assert slow not in sweep(tmp_path, *options), options


def test_a_stage_that_auto_trained_is_found_again(tmp_path: Path) -> None:
    chosen = "bfloat16" if multiplies_halves() else "float32"
    sweep(tmp_path, *SMALL, "--precision", "auto", "--device", "cpu", "--workers", "1")
    assert "Nothing to train" in sweep(tmp_path, *SMALL, "--precision", chosen, "--device", "cpu", "--workers", "1")
    assert ("avx512_bf16" in processor_flags()) or chosen == "float32"


def test_other_words_are_refused(tmp_path: Path) -> None:
    ended = call(tmp_path, *DRY, "--precision", "fastest")
    assert ended.exit_code == 2 and "auto" in ended.errors
