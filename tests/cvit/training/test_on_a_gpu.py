"""Packs on a GPU: their size, their captured and compiled steps. These tests need neither Ray nor MLflow; that they can
be collected without is tested without a GPU."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvit.config import InitSchemeName
from cvit.data.datasets import Dataset
from cvit.engine.execution.pack_size import fitting_packs
from cvit.engine.execution.workers import Workers
from cvit.init.registry import initial_model
from cvit.stages import TrainingStage
from cvit.training.batches import pack_data
from cvit.training.pack import TrainingPack
from tests.cvit.training.test_pack import stage, varied

ROOT = Path(__file__).resolve().parents[3]
MISSING = ("ray", "mlflow", "optuna", "sqlalchemy", "cyclopts", "moto", "timm")
STEPS = 8
BOUND = {"float32": 1e-4, "bfloat16": 1e-2}
CASES = [
    *itertools.product(["random", "convolution", "joint", "resnet"], ["float32", "bfloat16"], [False]),
    ("random", "float32", True),  # a compilation takes most of a minute
    ("joint", "bfloat16", True),
]
WITHOUT = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nowhere())
"""


def test_the_gpu_tests_need_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    """Collected in a Python that has none of what a machine lent for its GPU lacks."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT % (MISSING,))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    counted = re.search(r"^(\d+)/\d+ tests collected", ended.stdout, re.MULTILINE)
    assert ended.returncode == 0 and counted is not None, ended.stdout[-2000:] + ended.stderr
    marked = [file for file in ROOT.glob("tests/**/test_*.py") if "@pytest.mark.gpu" in file.read_text()]
    assert all(str(file.relative_to(ROOT)) in ended.stdout for file in marked) and len(marked) >= 9


@pytest.mark.gpu
def test_on_a_gpu_the_pack_fits_the_memory() -> None:
    (size,) = fitting_packs([(stage(), 16)], Workers("cuda", 2, is_here=True))
    assert size in (4, 8, 16), "16 tiny models fit any GPU"


@pytest.mark.gpu
@pytest.mark.parametrize(("scheme", "precision", "is_compiled"), CASES)
def test_the_first_replayed_steps_are_the_steps(
    scheme: InitSchemeName, precision: str, is_compiled: bool, digits: Dataset
) -> None:
    """With one member that diverges. The bounds are 5 to 200 times what a change of all weights by one in a million
    makes of the first steps on a CPU (1.7e-3 for the ResNet in bfloat16, 4e-7 in float32)."""
    members = [*varied(4, scheme, min_steps=400, precision=precision)]
    members.append(stage(scheme, min_steps=400, precision=precision, learning_rate=1e30, gradient_clip_norm=0.0))
    eager, replayed = (new_pack(members, digits) for _ in range(2))
    readings = [eager._readings[step % len(eager._readings)] for step in range(STEPS)]
    for reading in readings:
        eager._step(reading)
    if is_compiled:
        replayed._step_seconds = 1e6
        replayed._compile_if_it_pays(0)
    twins = [replayed._readings[step % len(replayed._readings)] for step in range(STEPS)]
    replayed._capture(twins[:3])
    for reading in twins[3:]:
        replayed._graphs[reading].replay()
    assert replayed._is_compiled == is_compiled
    expected, found = eager._losses[:STEPS], replayed._losses[:STEPS]
    assert torch.equal(expected.isfinite(), found.isfinite()) and not expected[-1, -1].isfinite()
    torch.testing.assert_close(found[:, :-1], expected[:, :-1], rtol=BOUND[precision], atol=0)


def new_pack(stages: list[TrainingStage], digits: Dataset) -> TrainingPack:
    cuda = torch.device("cuda")
    states = [initial_model(one, None)[0].state_dict() for one in stages]
    pack = TrainingPack(stages, pack_data(digits, stages, cuda), states, cuda)
    pack._models.model.train()
    pack._fill_tables(range(STEPS))
    return pack
