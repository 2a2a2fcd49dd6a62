"""The benchmarks' figures agree with each other, and bad input ends in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.support.scripts import ROOT

pytestmark = pytest.mark.benchmark

SCRIPTS = ("throughput", "packing", "regularisation", "step", "overhead", "tracking", "outage", "scale", "start")
TINY_GRID = (
    *("--data-fraction", "0.02", "--init-scheme", "random", "two_phase", "--seeds", "1", "--device", "cpu"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16"),
    *("--epochs", "0", "--min-steps", "8", "--evaluations", "2", "--budget-unit", "steps"),
)
TINY = {
    "throughput": TINY_GRID,
    "packing": ("--model-size", "digits", "--pack-size", "1", "2", "--steps", "4", "--repeats", "1", "--device", "cpu"),
    "regularisation": ("--steps", "1", "--repeats", "1", "--device", "cpu"),
    "step": ("--model-size", "small", "--batch-size", "2", "--steps", "1", "--repeats", "3", "--device", "cpu"),
    "tracking": ("--runs", "20"),
    "scale": ("--trials", "6", "--workers", "2", "--stage-seconds", "0.05"),
}


def benchmark(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def figures_of(name: str, folder: Path, *options: str) -> dict[str, Any]:
    file = folder / f"{name}.json"
    done = benchmark(name, *TINY[name], *options, "--json", str(file))
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def all_figures(content: Any) -> list[dict[str, Any]]:
    """Finds every median with its spread, however deep it lies."""
    if isinstance(content, dict):
        return [content] if "spread" in content else [f for value in content.values() for f in all_figures(value)]
    return []


def assert_described(content: dict[str, Any], repeats: int) -> None:
    """Asserts that the figures say how often they were measured, on what and with which versions."""
    found = all_figures(content)
    assert found
    for figure in found:
        values = figure["values"]
        assert figure["n"] == len(values) == content["n"] == repeats
        assert figure["median"] == median(values) and figure["spread"] == max(values) - min(values)
    assert content["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the fractional arm would run")
def test_throughput_compares_the_same_trials_by_their_own_figures(tmp_path: Path) -> None:
    content = figures_of("throughput", tmp_path)
    assert_described(content, repeats=1)
    arms = content["arms"]
    for arm, figures in arms.items():
        # Two trials, of three stages in all; an arm that left one out would look fast.
        assert figures["trials_per_hour"]["median"] == pytest.approx(2 * 3600 / figures["seconds"]["median"]), arm
        assert 0 < figures["cpu_utilisation"]["median"] < 1.1
        assert figures["peak_memory_bytes"]["median"] > 2e8  # torch alone
    assert set(arms) == {"engine", "plain", "loop"}
    for arm in ("plain", "loop"):
        expected = arms[arm]["seconds"]["median"] / arms["engine"]["seconds"]["median"]
        assert content[f"ratio_vs_{arm}"] == pytest.approx(expected)
    assert content["ratio_vs_fractional"] is None
    assert content["grid"]["trials"] == 2 and content["grid"]["stages"] == 3 and content["grid"]["steps"] == 16
    # The engine's packs and the bare loop train the same stages.
    accuracy = {arm: figures["mean_test_accuracy"]["median"] for arm, figures in arms.items()}
    assert accuracy["engine"] == pytest.approx(accuracy["loop"], abs=0.01)


def test_steps_and_packs_are_compared_by_their_own_figures(tmp_path: Path) -> None:
    content = figures_of("step", tmp_path)
    assert_described(content, repeats=3)
    models = content["models"]["small"]
    for name, figures in models.items():
        assert figures["ratio_vs_this"] == figures["seconds"]["median"] / models["ours"]["seconds"]["median"], name
        rate = figures["flops"] / figures["seconds"]["median"]
        assert figures["mfu"] == pytest.approx(rate / content["matrix_flops_per_second"])
    # Of the same shape: they differ by biases of attention, a class token, position terms.
    assert max(f["parameters"] for f in models.values()) < 1.06 * min(f["parameters"] for f in models.values())
    assert max(f["flops"] for f in models.values()) < 1.06 * min(f["flops"] for f in models.values())

    content = figures_of("packing", tmp_path)
    assert_described(content, repeats=1)
    digits = content["models"]["digits"]
    rates = {size: figure["median"] for size, figure in digits["images_per_second"].items()}
    assert digits["ratio_vs_pack_of_1"] == {"1": 1.0, "2": rates["2"] / rates["1"]}


def test_regularisation_is_compared_with_none_of_it(tmp_path: Path) -> None:
    content = figures_of("regularisation", tmp_path)
    assert_described(content, repeats=1)
    arms = content["arms"]
    for name, figures in arms.items():
        assert figures["ratio_vs_none"] == figures["seconds"]["median"] / arms["none"]["seconds"]["median"], name
    draws = {name: figures["draw_seconds"]["median"] for name, figures in arms.items()}
    assert draws["all"] > draws["none"], "without any, nothing is drawn"


def test_tracking_measures_every_step_in_a_process_of_its_own(tmp_path: Path) -> None:
    content = figures_of("tracking", tmp_path)
    assert_described(content, repeats=1)
    steps = content["runs"]["20"]
    memory = {name: figures["peak_memory_bytes"]["median"] for name, figures in steps.items()}
    assert set(memory) == {"journal", "journal_mlflow", "mlflow_tables", "journal_tables"}
    assert memory["journal"] < memory["journal_mlflow"] < 2**31  # without MLflow, and with it


def test_simulated_workers_train_every_stage_and_no_faster_than_they_can(tmp_path: Path) -> None:
    content = figures_of("scale", tmp_path)
    # two seeds of random, conv_structured and two_phase
    assert (content["trials"], content["stages"]) == (6, 8)
    assert 0 < content["stages_per_second"] <= 2 / 0.05
    assert 0 < content["share_of_workers_time_in_training"] < 1
    parts = content["driver_cpu_seconds_by_part"]
    assert 0 < sum(seconds for part, seconds in parts.items() if "thread" not in part) < content["driver_cpu_seconds"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_bad_input_ends_in_one_line(name: str) -> None:
    done = benchmark(name, "--json", "no/such/folder.json")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "no/such" in done.stderr
