"""The benchmarks' figures agree with each other, and bad input ends in one line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from benchmarks.common import precisions
from cvit import native
from tests.support.scripts import ROOT

pytestmark = pytest.mark.benchmark

HAS_LIGHTNING = importlib.util.find_spec("lightning") is not None
SCRIPTS = (
    *("throughput", "limit", "packing", "accuracy", "regularisation", "step", "overhead"),
    *("tracking", "outage", "scale", "start"),
)
TINY_GRID = (
    *("--data-fraction", "0.2", "--init-scheme", "random", "two_phase", "--seeds", "2", "--device", "cpu"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--learning-rate", "0.003"),
    *("--epochs", "0", "--min-steps", "400", "--evaluations", "2", "--budget-unit", "steps"),
)
TINY = {
    "throughput": TINY_GRID,
    "limit": ("--preset", "smoke", "laptop", "--repeats", "2", "--max-pack", "1", *TINY_GRID),
    "packing": ("--model-size", "digits", "--pack-size", "1", "2", "--steps", "4", "--repeats", "1", "--device", "cpu"),
    "accuracy": ("--init-scheme", "random", "--seeds", "2"),
    "regularisation": ("--steps", "1", "--repeats", "1", "--device", "cpu"),
    "step": ("--model-size", "small", "--batch-size", "2", "--steps", "1", "--repeats", "3", "--device", "cpu"),
    "tracking": ("--runs", "20"),
    "scale": ("--trials", "6", "--workers", "2", "--stage-seconds", "0.05"),
}


def benchmark(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=900
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


@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the fractional arm would run")
def test_throughput_compares_the_same_trials_by_their_own_figures(tmp_path: Path) -> None:
    content = figures_of("throughput", tmp_path)
    assert_described(content, repeats=1)
    arms = content["arms"]
    for arm, figures in arms.items():
        # Four trials, of six stages in all; an arm that left one out would look fast.
        assert figures["trials_per_hour"]["median"] == pytest.approx(4 * 3600 / figures["seconds"]["median"]), arm
        assert 0 < figures["cpu_utilisation"]["median"] < 1.1
        assert figures["peak_memory_bytes"]["median"] > 2e8  # torch alone
        for precision, limit in content["limit"].items():
            assert figures["times_limit"][precision] * limit["seconds"] == pytest.approx(figures["seconds"]["median"])
            assert limit["seconds"] * limit["matrix_flops_per_second"] == pytest.approx(content["grid"]["flops"])
    ours, by_hand = {"engine", "local", "loop", "loop_torch"}, {"plain", "optuna", "bash"}
    assert set(arms) == ours | by_hand | ({"lightning"} if HAS_LIGHTNING else set())
    for arm in set(arms) - {"engine"}:
        expected = arms[arm]["seconds"]["median"] / arms["engine"]["seconds"]["median"]
        assert content[f"ratio_vs_{arm}"] == pytest.approx(expected)
    expected = arms["plain"]["seconds"]["median"] / arms["local"]["seconds"]["median"]
    assert content["local_ratio_vs_plain"] == pytest.approx(expected)
    assert content["ratio_vs_fractional"] is None
    assert content["grid"]["trials"] == 4 and content["grid"]["stages"] == 6 and content["grid"]["steps"] == 1600
    accuracy = {arm: figures["mean_test_accuracy"]["median"] for arm, figures in arms.items()}
    # The same trainer on the same draws: the results are the same to the last bit, whoever calls it.
    assert accuracy["engine"] == accuracy["local"] == accuracy["loop"]
    assert accuracy["plain"] == accuracy["optuna"] == accuracy["bash"]
    # Other operators, other draws: the same within noise (of 12 paired differences: 0.04), and far from chance.
    assert min(accuracy.values()) > 0.3
    assert max(accuracy.values()) - min(accuracy.values()) < 0.1


def test_an_arm_whose_package_is_missing_is_refused_in_one_line() -> None:
    if HAS_LIGHTNING:
        pytest.skip("the package is there: lightning")
    done = benchmark("throughput", "--arm", "engine", "lightning")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "lightning" in done.stderr and "pip install" in done.stderr


def test_the_limit_is_the_operations_of_the_grid_over_the_rate(tmp_path: Path) -> None:
    content = figures_of("limit", tmp_path)
    assert_described(content, repeats=2)
    assert set(content["presets"]) == {"smoke", "laptop"}
    for phases in content["presets"].values():
        assert set(phases) == {"attention", "convolution", "all"}
        for of_all in ("stages", "steps", "flops"):
            assert sum(phases[phase][of_all] for phase in ("attention", "convolution")) == phases["all"][of_all]
        assert (phases["all"]["stages"], phases["all"]["steps"]) == (6, 1600)
        # A step of the twin has no attention matrices and two of four projections.
        of_step = {phase: figures["flops"] / figures["steps"] for phase, figures in phases.items()}
        assert of_step["convolution"] < of_step["attention"]
        for figures in phases.values():
            for precision, limit in figures["limit"].items():
                assert limit["seconds"] * limit["matrix_flops_per_second"] == pytest.approx(figures["flops"])
                assert figures["times_limit"][precision] == figures["seconds"]["median"] / limit["seconds"]


def test_steps_and_packs_are_compared_by_their_own_figures(tmp_path: Path) -> None:
    content = figures_of("step", tmp_path)
    assert_described(content, repeats=3)
    models = content["models"]["small"]
    kinds = {"ours", "torchvision", "timm", "trainer"}
    by_torch = {"ours_torch", "trainer_torch"} if native.is_available() else set()
    references = {"ratio_vs_this": "ours", "ratio_vs_trainer": "trainer"}
    in_bfloat16 = set[str]()
    if "bfloat16" in precisions(torch.device("cpu")):
        in_bfloat16 = {f"{kind}_bfloat16" for kind in kinds}
        references |= {"ratio_vs_this_bfloat16": "ours_bfloat16"}
    assert set(models) == kinds | in_bfloat16 | by_torch
    for name, figures in models.items():
        for ratio, other in references.items():
            assert figures[ratio] == figures["seconds"]["median"] / models[other]["seconds"]["median"], name
        rate = figures["flops"] / figures["seconds"]["median"]
        assert figures["mfu"] == pytest.approx(rate / content["matrix_flops_per_second"][figures["precision"]])
    # Of the same shape: they differ by biases of attention, a class token, position terms.
    assert max(f["parameters"] for f in models.values()) < 1.06 * min(f["parameters"] for f in models.values())
    assert max(f["flops"] for f in models.values()) < 1.06 * min(f["flops"] for f in models.values())

    content = figures_of("packing", tmp_path)
    assert_described(content, repeats=1)
    digits = content["models"]["digits"]
    rates = {size: figure["median"] for size, figure in digits["images_per_second"].items()}
    assert digits["ratio_vs_pack_of_1"] == {"1": 1.0, "2": rates["2"] / rates["1"]}


def test_accuracies_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """The operators in float32 end where torch's do; a fault would show in the loss."""
    content = figures_of("accuracy", tmp_path)
    arms = content["schemes"]["random"]
    torch_loss, fused_loss, *half_losses = (arm["loss"] for arm in arms.values())
    assert {len(arm["accuracy"]) for arm in arms.values()} == {2}
    assert fused_loss == pytest.approx(torch_loss, rel=0.02)
    assert half_losses == ([pytest.approx(torch_loss, rel=0.1)] if native.has_half_products() else [])
    assert min(accuracy for arm in arms.values() for accuracy in arm["accuracy"]) > 0.2


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


def test_what_others_cannot_train_is_refused_before_anything_is_measured() -> None:
    done = benchmark("throughput", "--arm", "plain", "--mixup-alpha", "0.2")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "mixup_alpha 0.2" in done.stderr and "loop" in done.stderr
