"""The checks for a GPU run to their end without one: with small models on the CPU, clocks of the CPU, and stand-ins for
graphs and for torch's memory-efficient kernel. That a check measures a GPU rightly, only a GPU shows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_checks
from cvit.training.pack import TrainingPack
from tests.cvit.test_cuda_attention import kernel

_ = kernel  # torch's kernel on the CPU
pytestmark = pytest.mark.benchmark
SMALL = {"embed_dim": 16, "depth": 1, "head_dim": 4, "batch_size": 4, "image_size": 8, "patch_size": 2}


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(function: Callable[[], object], times: int = 1) -> float:
        started = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - started)

    def capture(pack: TrainingPack, eager: Any) -> None:
        for reading in eager:
            pack._step(reading)
        replay = {"replay": lambda self: pack._step(eager[0])}
        graphs: Any = dict.fromkeys(eager, type("Graph", (), replay)())
        pack._graphs = graphs

    monkeypatch.setattr(gpu_checks, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(gpu_checks, "REFERENCE", gpu_checks.REFERENCE | SMALL | {"precision": "float32"})
    monkeypatch.setattr(gpu_checks, "DIGITS", gpu_checks.DIGITS | SMALL)
    monkeypatch.setattr(gpu_checks, "NUM_IMAGES", 40)
    monkeypatch.setattr(gpu_checks, "TABLE_STEPS", 4)
    monkeypatch.setattr(gpu_checks, "gpu_ms", milliseconds)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(TrainingPack, "_capture", capture)
    monkeypatch.setattr("cvit.models.cuda_attention._HAS_TRITON", False)


@pytest.mark.usefixtures("without_a_gpu")
def test_steps_and_the_grid_that_follows_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.json"
    steps = dict(gpu_checks.steps())
    assert all("failed" not in row for row in steps.values() if isinstance(row, dict))
    rates = [steps[name]["images_per_second"] for name in ("random M1", "random M16")]
    assert steps["pack_of_16_against_1"] == pytest.approx(rates[1] / rates[0])
    rows = {"random M16": {"member_ms": 1.5}, "two_phase M16": {"member_ms": 1.0}}
    file.write_text(json.dumps({"steps": rows, "compiled": {}, "plain": {"step_ms": 30.0}}))
    monkeypatch.setenv("CVIT_GPU_FIGURES", str(file))
    expected = {"minutes_by_steps": (403_040 * 1.5 + 57_600) / 60_000, "against_plain_by_steps": 20.0}
    assert dict(gpu_checks.grid()) == pytest.approx(expected)


@pytest.mark.usefixtures("without_a_gpu")
def test_what_the_host_does_and_what_stays_in_memory() -> None:
    assert len(dict(gpu_checks.start())) == 3 + 2 * 3
    assert set(dict(gpu_checks.memory()).values()) == {0.0}


@pytest.mark.usefixtures("without_a_gpu")
def test_attention_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = gpu_checks.attention_errors(gpu_checks._by_torch, 9, 4, torch.float32)
    assert max(errors.values()) < 2e-5
    wrong = gpu_checks.attention_errors(lambda p, b: 1.01 * gpu_checks._by_torch(p, b), 9, 4, torch.float32)
    assert min(wrong.values()) > 5e-3
    monkeypatch.setattr(gpu_checks, "attention_errors", lambda *_: {"output": 1.0})
    with pytest.raises(ArithmeticError, match="wrong: attention_on_cuda N64 d32 bfloat16"):
        list(gpu_checks.attention())


def test_each_check_has_its_time_and_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU every check fails, by itself, and says so in the file; one that hangs is ended."""
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "LIMITS_S", {"ceilings": 60.0, "start": 0.2, "memory": 60.0})
    monkeypatch.setattr(gpu, "LEAST_S", 0.0)
    monkeypatch.delenv("CVIT_DATA_DIR", raising=False)
    if not torch.cuda.is_available():
        assert gpu.main(["all", "--json", str(file), "--budget-s", "1e6"]) == 1
        figures = json.loads(file.read_text())
        assert list(figures) == ["ceilings", "start", "memory"]
        assert figures["start"]["error"] == "out of time" and "RuntimeError" in figures["ceilings"]["error"]
    assert gpu.main(["all", "--json", str(file), "--budget-s", "-1"]) == 0
    assert json.loads(file.read_text())["memory"] == {"skipped": "no time"}


def test_every_check_of_the_list_is_there() -> None:
    assert gpu_checks.CHECKS.keys() | {"tests"} == gpu.LIMITS_S.keys()
    help_text = subprocess.run([sys.executable, "benchmarks/gpu.py", "--help"], capture_output=True, text=True).stdout
    assert all(name in help_text for name in gpu.LIMITS_S)
