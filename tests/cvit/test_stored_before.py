"""What the version before geometries of any number of axes stored is read, and computed again, as it was.

`before/` was written by that version (commit d709f53): for a few trials on digits, the weights at the start and the end
of each stage, the logits of 20 validation images, and the measurements.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cvit.config import TrialConfig
from cvit.data.datasets import describe, load
from cvit.init.registry import blank_model, initial_model
from cvit.results import load_result
from cvit.stages import TrainingStage, stages_of
from cvit.storage import Storage
from cvit.training.batches import pack_data
from cvit.training.checkpoint import load_weights
from cvit.training.loop import train_pack

BEFORE = Path(__file__).parent / "before"
TRIALS: dict[str, Any] = json.loads((BEFORE / "trials.json").read_text())
WEIGHTS = safetensors.torch.load_file(BEFORE / "weights.safetensors")
CPU = torch.device("cpu")


def stages(name: str) -> list[tuple[int, TrainingStage]]:
    return list(enumerate(stages_of(TrialConfig.from_flat(TRIALS[name]["parameters"]), num_images=1295)))


def stored(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in WEIGHTS.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", TRIALS)
def test_stored_weights_load_and_classify_as_they_did(name: str) -> None:
    digits = load(describe("digits", "nowhere", download=False))
    for number, stage in stages(name):
        model = blank_model(stage).eval()
        assert [name for name, _ in model.named_parameters()] == TRIALS[name]["stages"][number]["names"]
        model.load_state_dict(stored(f"{name}/{number}/end/"))
        data = pack_data(digits, [stage], CPU)
        with torch.no_grad():
            logits = model(data.normalised(data.validation.images[None, :20])[0])
        torch.testing.assert_close(logits, WEIGHTS[f"{name}/{number}/logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRIALS)
def test_models_start_as_they_did(name: str) -> None:
    number, stage = stages(name)[0]
    start = stored(f"{name}/{number}/start/")
    model = initial_model(stage, None)[0].state_dict()
    assert model.keys() == start.keys()
    for parameter, value in model.items():
        torch.testing.assert_close(value, start[parameter], rtol=1e-6, atol=1e-6)
        if parameter.endswith("relative_bias") and name in ("impulse", "local"):  # no arithmetic that could round
            assert torch.equal(value, start[parameter])


@pytest.mark.parametrize("name", TRIALS)
def test_trainings_end_as_they_did(name: str, tmp_path: Path) -> None:
    """The same images in the same order, moved and flipped alike: any other draw would change every weight."""
    storage = Storage.open(str(tmp_path))
    digits = load(describe("digits", "nowhere", download=False))
    for number, stage in stages(name):
        for _ in train_pack([stage], digits, storage, CPU):
            pass
        result, weights = load_result(storage, stage.key), load_weights(storage, stage.key)
        assert result is not None and weights is not None
        points = [(metric, step, value) for metric, step, value, _ in result.points if metric != "images_per_second"]
        before = TRIALS[name]["stages"][number]["points"]
        assert [point[:2] for point in points] == [(metric, step) for metric, step, _ in before]
        for (metric, _, value), (_, _, expected) in zip(points, before, strict=True):
            assert value == pytest.approx(expected, rel=1e-3, abs=0.02 if "accuracy" in metric else 1e-5), metric
        for parameter, expected in stored(f"{name}/{number}/end/").items():
            start = WEIGHTS.get(f"{name}/{number}/start/{parameter}", torch.zeros(()))
            moved = float((expected - start).norm())
            assert float((weights[parameter] - expected).norm()) <= 1e-2 * moved + 1e-6, parameter
