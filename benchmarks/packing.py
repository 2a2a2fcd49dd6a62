"""Measures the gain of packs: images per second of one worker against the number of stages that it trains together.

python benchmarks/packing.py                                              # CPU: one thread, the smaller models
python benchmarks/packing.py --device cuda --json packing.json           # all models, packs of 1 to 32
python benchmarks/packing.py --model-size digits --pack-size 1 16 --steps 50

The stages have one shape and different seeds, and the trainer of the engine's workers trains them on made-up images.
All members start from the same weights, which are drawn once. A rate is that of `--steps` steps after as many others,
in which a GPU captures its graph; starting, evaluating and saving do not count. The pack sizes are the arms and take
turns; those for which a GPU has no room are left out.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from cyclopts import Parameter
from torch import Tensor

from benchmarks import common
from cvit.config import TrialConfig
from cvit.data.augment import channel_statistics
from cvit.init.registry import initial_model
from cvit.parameters import ConfigError
from cvit.stages import TrainingStage, stages_of
from cvit.training.batches import LabelledImages, PackData
from cvit.training.pack import TrainingPack

DIGITS = {"image_size": 8, "in_channels": 1, "patch_size": 2, "augmentation": "shift"}
CIFAR = {"image_size": 32, "in_channels": 3, "patch_size": 4, "augmentation": "crop_flip"}
MODELS: dict[str, dict[str, Any]] = {
    "digits": DIGITS | {"embed_dim": 48, "depth": 4, "head_dim": 8, "mlp_ratio": 2.0, "batch_size": 32},
    "small": CIFAR | {"embed_dim": 96, "depth": 4, "head_dim": 12, "mlp_ratio": 2.0, "batch_size": 64},
    "medium": CIFAR | {"embed_dim": 192, "depth": 9, "head_dim": 24, "mlp_ratio": 4.0, "batch_size": 128},
    "vit_s": CIFAR | {"embed_dim": 384, "depth": 12, "head_dim": 32, "mlp_ratio": 4.0, "batch_size": 128},
}
"""Models with 9 heads: `digits` and `small` are those of the presets `laptop` and `photographs` of sweeps/low_data.py,
`vit_s` has the depth and width of ViT-S, and `medium` lies between."""
DEFAULTS = {"cpu": (("digits", "small"), (1, 2, 4, 8, 16)), "cuda": (tuple(MODELS), (1, 4, 16, 32))}
STEPS_TO_COME = 40
"""Steps after those that are timed: with as many, a GPU captures a graph, and does not compile it."""
NUM_IMAGES = 640

app = common.new_app()


@app.default
def packing(
    *,
    model_size: Annotated[tuple[str, ...], Parameter(consume_multiple=True, help=f"Of {', '.join(MODELS)}.")] = (),
    pack_size: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Stages trained together.")] = (),
    steps: Annotated[int, Parameter(help="Steps that are timed.")] = 20,
    repeats: common.Repeats = 3,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Images per second against pack size; without sizes, those that suit the device."""
    where = common.chosen_device(device)
    default_models, default_packs = DEFAULTS[where.type]
    models, packs = model_size or default_models, pack_size or default_packs
    common.check(json, repeats=repeats, steps=steps, pack_size=min(packs))
    if unknown := [name for name in models if name not in MODELS]:
        raise ConfigError(f"model_size {unknown[0]!r} is not valid: one of {', '.join(MODELS)}")
    before = common.machine()
    torch.set_num_threads(1)
    figures, rows = {}, []
    for model in models:
        weights = initial_model(_stages(model, 1, steps, where)[0], None)[0].state_dict()
        arms = {str(size): partial(_images_per_second, model, size, steps, weights, where) for size in packs}
        rates = common.interleaved(arms, 1 + repeats)  # the first turn has what happens once in a process
        measured = {size: common.figure(of_size[1:]) for size, of_size in rates.items() if all(of_size)}
        first = measured[str(packs[0])]["median"]
        ratios = {size: rate["median"] / first for size, rate in measured.items()}
        figures[model] = {"images_per_second": measured, f"ratio_vs_pack_of_{packs[0]}": ratios}
        rows += [
            [model, size, common.with_spread(rate, digits=0), f"{ratios[size]:.2f}×"] for size, rate in measured.items()
        ]
    title = f"Training by one worker on {where.type}; median of n = {repeats}"
    common.show(title, ["model", "pack", "images/s", f"against a pack of {packs[0]}"], rows)
    common.write_json(json, "packing", before, {"device": where.type, "n": repeats, "steps": steps, "models": figures})


def _images_per_second(
    model: str, pack_size: int, steps: int, weights: dict[str, Tensor], device: torch.device
) -> float:
    """0 if the device has no room."""
    stages, data = _stages(model, pack_size, steps, device), _made_up_data(model, pack_size, device)
    try:
        pack = TrainingPack(stages, data, [weights] * pack_size, device)
        pack.train(0)
        measured = pack.train(steps)
    except torch.OutOfMemoryError:
        return 0.0
    return pack_size * MODELS[model]["batch_size"] * steps / measured.seconds


def _stages(model: str, pack_size: int, steps: int, device: torch.device) -> list[TrainingStage]:
    """Stages with an evaluation after every `steps` steps."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    flat = MODELS[model] | {"min_steps": 2 * steps + STEPS_TO_COME, "epochs": 0, "precision": precision}
    trials = [TrialConfig.from_flat(flat | {"seed": seed}) for seed in range(pack_size)]
    return [replace(stages_of(trial, NUM_IMAGES)[0], evaluation_interval=steps) for trial in trials]


def _made_up_data(model: str, pack_size: int, device: torch.device) -> PackData:
    channels, size = MODELS[model]["in_channels"], MODELS[model]["image_size"]
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (NUM_IMAGES, channels, size, size), dtype=torch.uint8, generator=source).to(device)
    images = LabelledImages(pixels, torch.arange(NUM_IMAGES, device=device) % 10)
    mean, std = (statistic.repeat(pack_size, 1) for statistic in channel_statistics(pixels))
    return PackData(images, (torch.arange(NUM_IMAGES),) * pack_size, images, images, mean, std)


if __name__ == "__main__":
    common.run_app(app)
