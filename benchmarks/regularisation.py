"""Measures what augmentation policies, mixing, erasing and stochastic depth cost: seconds of an optimiser step.

python benchmarks/regularisation.py                                 # CPU, one thread
python benchmarks/regularisation.py --device cuda --members 30 --steps 200

A pack of the engine's trainer, a ViT of 4 blocks of width 96 and 64 images of 32×32×3 a step, takes its steps with none
of them, with each alone, and with all but RandAugment. On a CPU the time is that of the processor, so that neighbours
disturb it little. `draws` is the time for drawing the random numbers of a member's step, beyond those that every
training draws; on a GPU it passes while the device is busy. The arms take turns.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from cyclopts import Parameter

from benchmarks import common
from cvit.config import TrialConfig
from cvit.data.datasets import Dataset, Images
from cvit.init.registry import blank_model
from cvit.stages import stages_of
from cvit.training.batches import pack_data
from cvit.training.pack import TrainingPack
from cvit.training.regularisation import Regularisation

MODEL = {"image_size": 32, "in_channels": 3, "patch_size": 4, "embed_dim": 96, "depth": 4, "augmentation": "crop_flip"}
MIXING = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}
OTHERS = MIXING | {"erasing_probability": 0.25, "stochastic_depth": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "trivial_augment": {"augmentation_policy": "trivial_augment"},
    "rand_augment": {"augmentation_policy": "rand_augment"},
    "mixup and cutmix": MIXING,
    "erasing": {"erasing_probability": 0.25},
    "stochastic depth": {"stochastic_depth": 0.1},
    "all": {"augmentation_policy": "trivial_augment"} | OTHERS,
}
NUM_IMAGES = 640

app = common.new_app()


@app.default
def regularisation(
    *,
    members: Annotated[int, Parameter(help="Trainings in a pack, each with a seed of its own.")] = 1,
    steps: Annotated[int, Parameter(help="Steps of a turn.")] = 10,
    repeats: common.Repeats = 5,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Milliseconds of a step with each kind of regularisation."""
    where = common.chosen_device(device)
    common.check(json, members=members, steps=steps, repeats=repeats)
    before = common.machine()
    torch.set_num_threads(1)
    turns = repeats + 1  # the first one is not counted: it warms up, and on a GPU captures a graph
    packs = {name: _pack(changes, members, turns * steps, turns, where) for name, changes in ARMS.items()}
    measured = common.interleaved({name: partial(_seconds, pack, steps, where) for name, pack in packs.items()}, turns)
    draws = common.interleaved({name: partial(_draw_seconds, pack, steps) for name, pack in packs.items()}, repeats)
    figures, rows = {}, []
    for name in ARMS:
        step, drawn = common.figure(measured[name][1:]), common.figure(draws[name])
        ratio = step["median"] / common.figure(measured["none"][1:])["median"]
        figures[name] = {"seconds": step, "draw_seconds": drawn, "ratio_vs_none": ratio}
        rows.append([name, common.with_spread(step, 1e3), f"{ratio:.3f}×", common.with_spread(drawn, 1e6)])
    title = f"A step of {members} members on {where.type}; median of n = {repeats}"
    common.show(title, ["regularisation", "ms", "against none", "draws, µs a member"], rows)
    common.write_json(json, "regularisation", before, {"device": where.type, "n": repeats, "arms": figures})


def _pack(changes: dict[str, Any], members: int, steps: int, evaluations: int, device: torch.device) -> TrainingPack:
    precision = "bfloat16" if device.type == "cuda" else "float32"
    flat = MODEL | changes | {"min_steps": steps, "epochs": 0, "evaluations": evaluations, "precision": precision}
    trials = [TrialConfig.from_flat(flat | {"seed": seed}) for seed in range(members)]
    stages = [stage for trial in trials for stage in stages_of(trial, NUM_IMAGES)]
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=np.uint8)
    images = Images(pixels, np.arange(NUM_IMAGES) % 10)
    weights = dict(blank_model(stages[0]).named_parameters())
    data = pack_data(Dataset(images, images), stages, device)
    return TrainingPack(stages, data, [weights] * members, device)


def _seconds(pack: TrainingPack, steps: int, device: torch.device) -> float:
    """The seconds of a step, over the steps up to an evaluation."""
    started = time.process_time()
    passed = pack.train(0).seconds
    return (time.process_time() - started if device.type == "cpu" else passed) / steps


def _draw_seconds(pack: TrainingPack, steps: int) -> float:
    regularised = Regularisation(pack.stages, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 1, torch.device("cpu"))
    started = time.process_time()
    regularised.draw(range(steps))
    return (time.process_time() - started) / steps / len(pack.stages)


if __name__ == "__main__":
    common.run_app(app)
