"""Measures the gain of packs: images per second of one worker against the number of stages that it trains together.

python benchmarks/packing.py                                              # CPU: one thread, the smaller models
python benchmarks/packing.py --device cuda --json packing.json           # all models, packs of 1 to 64
python benchmarks/packing.py --model-size digits --pack-size 1 16 --steps 50

The stages have one shape and different seeds, and the trainer of the engine's workers trains them on made-up images. A
rate comes from the difference between a training of a few steps and one of `--steps` more, so starting, evaluating and
saving do not count. The pack sizes are the arms and take turns.
"""

import sys
import tempfile
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
from cvit.config import ConfigError, TrialConfig
from cvit.data.datasets import Dataset, Images
from cvit.stages import stages_of
from cvit.storage import Storage
from cvit.training.loop import train_pack

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
DEFAULTS = {"cpu": (("digits", "small"), (1, 2, 4, 8, 16)), "cuda": (tuple(MODELS), (1, 2, 4, 8, 16, 32, 64))}
FEW_STEPS = 3
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
        for size in packs:
            _seconds(model, size, FEW_STEPS, where)  # what happens once a process or a shape
        arms = {str(size): partial(_images_per_second, model, size, steps, where) for size in packs}
        measured = {size: common.figure(rates) for size, rates in common.interleaved(arms, repeats).items()}
        first = measured[str(packs[0])]["median"]
        ratios = {size: rate["median"] / first for size, rate in measured.items()}
        figures[model] = {"images_per_second": measured, f"ratio_vs_pack_of_{packs[0]}": ratios}
        rows += [
            [model, size, common.with_spread(rate, digits=0), f"{ratios[size]:.2f}×"] for size, rate in measured.items()
        ]
    title = f"Training by one worker on {where.type}; median of n = {repeats}"
    common.show(title, ["model", "pack", "images/s", f"against a pack of {packs[0]}"], rows)
    common.write_json(json, "packing", before, {"device": where.type, "n": repeats, "steps": steps, "models": figures})


def _images_per_second(model: str, pack_size: int, steps: int, device: torch.device) -> float:
    few, many = (_seconds(model, pack_size, FEW_STEPS + more, device) for more in (0, steps))
    return pack_size * MODELS[model]["batch_size"] * steps / (many - few)


def _seconds(model: str, pack_size: int, steps: int, device: torch.device) -> float:
    """Returns the seconds of a whole training, start, evaluation and saving included."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    flat = {"min_steps": steps, "epochs": 0, "evaluations": 1, "max_validation_images": 64, "max_test_images": 64}
    trials = [
        TrialConfig.from_flat(MODELS[model] | flat | {"precision": precision, "seed": seed})
        for seed in range(pack_size)
    ]
    stages = [stage for trial in trials for stage in stages_of(trial, NUM_IMAGES)]
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
        started = time.perf_counter()
        for _ in train_pack(stages, _made_up_images(model), Storage.open(folder), device):
            pass
        return time.perf_counter() - started


def _made_up_images(model: str) -> Dataset:
    draw = np.random.default_rng(0)
    channels, size = MODELS[model]["in_channels"], MODELS[model]["image_size"]

    def images() -> Images:
        pixels = draw.integers(0, 256, (NUM_IMAGES, channels, size, size), dtype=np.uint8)
        return Images(pixels, np.arange(NUM_IMAGES) % 10)

    return Dataset(images(), images())


if __name__ == "__main__":
    common.run_app(app)
