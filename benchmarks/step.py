"""Measures one training step: our ViT against torchvision's and timm's of the same shape.

python benchmarks/step.py
python benchmarks/step.py --device cuda --precision bfloat16 --json step.json

A step is forward, cross-entropy, backward and torch's AdamW on a batch that lies on the device. The models have the
same image, patch, depth, width, MLP and number of classes. What differs:

ours         9 heads (`--head-dim` wide, independent of the width), a learned relative position bias per head, the zero
             slot as one more key; mean pooling, no class token
torchvision  heads that divide the tokens' width; absolute position embedding; a class token
timm         the same heads; absolute position embedding; mean pooling, no class token
trainer      our model in the engine's own trainer, as a pack of one: its step also draws, augments and normalises the
             batch, clips the gradient and measures; on a GPU it is a CUDA graph

MFU is the fraction of the device's measured matrix rate: the operations of a model's own matrix products, forward and
backward, over the time of its step and over that rate. The rate is that of a large product in the same precision, the
best of several. On a CPU one thread does everything, as in the engine's workers.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from cyclopts import Parameter
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer as TorchvisionTransformer

from benchmarks import common
from cvit.config import ConfigError, DataConfig, ModelConfig, Precision, TrainingConfig, TrialConfig
from cvit.data.augment import channel_statistics
from cvit.init.random import initialise
from cvit.models.vit import VisionTransformer
from cvit.stages import TrainingStage
from cvit.training.batches import LabelledImages, PackData
from cvit.training.pack import TrainingPack
from cvit.vocabulary import ATTENTION

OURS = "ours"
IMAGE_SIZE, PATCH_SIZE, CHANNELS, CLASSES = 32, 4, 3, 10
HEADS = 9
SHAPES = {
    # depth, width, head_dim of our 9 heads, heads of the others
    "small": (4, 96, 12, 8),
    "medium": (9, 144, 16, 9),
    "vit_s": (12, 384, 32, 6),
}
"""Depth, width and heads by name; `medium` has the same heads in all three models."""
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
WARM_UP_STEPS = 3
MANY_STEPS = 100_000
NUM_IMAGES = 512

app = common.new_app()


@app.default
def step(
    *,
    model_size: Annotated[tuple[str, ...], Parameter(consume_multiple=True, help=f"Of {', '.join(SHAPES)}.")] = (
        "small",
        "medium",
    ),
    batch_size: Annotated[int, Parameter(help="Images per step.")] = 64,
    steps: Annotated[int, Parameter(help="Steps of a turn.")] = 5,
    precision: Annotated[Precision, Parameter(help="Arithmetic of the forward pass.")] = "float32",
    repeats: common.Repeats = 5,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Milliseconds per training step and MFU: our ViT against torchvision's and timm's of the same shape."""
    common.check(json, repeats=repeats, steps=steps, batch_size=batch_size)
    if unknown := [name for name in model_size if name not in SHAPES]:
        raise ConfigError(f"model_size {unknown[0]!r} is not valid: one of {', '.join(SHAPES)}")
    where = common.chosen_device(device)
    before = common.machine()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rate = _matrix_rate(dtype, where)
    figures, rows = {}, []
    for size in model_size:
        makers = {OURS: _ours, "torchvision": _torchvision, "timm": _timm}
        arms = {name: _arm(make(*SHAPES[size]), batch_size, dtype, where) for name, make in makers.items()}
        trainer = _trainer(_ours(*SHAPES[size]), batch_size, precision, steps, where)
        arms["trainer"] = replace(arms[OURS], seconds=trainer)
        seconds = common.interleaved({name: partial(arm.seconds, steps) for name, arm in arms.items()}, repeats)
        figures[size] = _figures(arms, seconds, rate)
        rows += [_row(size, name, of_arm) for name, of_arm in figures[size].items()]
    title = f"A training step, {batch_size} images, {precision} on {where.type}; median of n = {repeats}"
    columns = ["model", "by", "ms", "ours is", "GFLOP", "MFU", "parameters"]
    common.show(title, columns, rows, [f"matrix rate {rate / 1e9:,.0f} GFLOP/s"])
    setting = {"device": where.type, "precision": precision, "batch_size": batch_size, "n": repeats}
    common.write_json(json, "step", before, {**setting, "matrix_flops_per_second": rate, "models": figures})


@dataclass(frozen=True)
class _Arm:
    """A way to take training steps: `seconds` takes so many and says how long one took."""

    seconds: Callable[[int], float]
    flops: float
    parameters: int


def _arm(model: nn.Module, batch_size: int, dtype: torch.dtype, device: torch.device) -> _Arm:
    """The usual loop around a model."""
    model.to(device).train()
    images = torch.randn(batch_size, CHANNELS, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.arange(batch_size, device=device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters())

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    def take(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return _Arm(_timed(take, device), float(counter.get_total_flops()), sum(p.numel() for p in model.parameters()))


def _trainer(
    model: VisionTransformer, batch_size: int, precision: Precision, steps: int, device: torch.device
) -> Callable[[int], float]:
    """Our trainer's steps; it takes `steps` of them at a time, from one evaluation to the next."""
    training = TrainingConfig(batch_size=batch_size, precision=precision)
    trial = TrialConfig(data=DataConfig(augmentation="crop_flip"), model=model.config, training=training)
    stage = TrainingStage(ATTENTION, trial, MANY_STEPS, 0, evaluation_interval=steps)
    pixels = torch.randint(256, (NUM_IMAGES, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=device)
    images = LabelledImages(pixels, torch.arange(NUM_IMAGES, device=device) % CLASSES)
    mean, std = channel_statistics(pixels)
    data = PackData(images, (torch.arange(NUM_IMAGES),), images, images, mean[None], std[None])
    pack = TrainingPack([stage], data, [dict(model.named_parameters())], device)
    done = 0

    def take(count: int) -> None:
        nonlocal done
        for _ in range(0, count, steps):
            pack.train(done)
            done += steps

    return _timed(take, device)


def _timed(take: Callable[[int], None], device: torch.device) -> Callable[[int], float]:
    """Seconds of one step, the mean of those taken; some have been taken before."""

    def seconds(steps: int) -> float:
        _wait_for(device)
        started = time.perf_counter()
        take(steps)
        _wait_for(device)
        return (time.perf_counter() - started) / steps

    take(WARM_UP_STEPS)
    return seconds


def _ours(depth: int, width: int, head_dim: int, heads: int) -> VisionTransformer:
    config = ModelConfig(
        image_size=IMAGE_SIZE,
        in_channels=CHANNELS,
        num_classes=CLASSES,
        patch_size=PATCH_SIZE,
        embed_dim=width,
        depth=depth,
        num_heads=HEADS,
        head_dim=head_dim,
    )
    model = VisionTransformer(config, ATTENTION)
    initialise(model, seed=0)
    return model


def _torchvision(depth: int, width: int, head_dim: int, heads: int) -> nn.Module:
    return TorchvisionTransformer(IMAGE_SIZE, PATCH_SIZE, depth, heads, width, 4 * width, num_classes=CLASSES)


def _timm(depth: int, width: int, head_dim: int, heads: int) -> nn.Module:
    return TimmTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_classes=CLASSES,
        global_pool="avg",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        class_token=False,
    )


def _matrix_rate(dtype: torch.dtype, device: torch.device, products: int = 10) -> float:
    """FLOP/s of one large matrix product, the best of several."""
    side = MATRIX_SIDE[device.type]
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(products):
        _wait_for(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _figures(arms: dict[str, _Arm], seconds: dict[str, list[float]], rate: float) -> dict[str, Any]:
    measured = {name: common.figure(values) for name, values in seconds.items()}
    return {
        name: {
            "seconds": measured[name],
            "flops": arm.flops,
            "mfu": arm.flops / measured[name]["median"] / rate,
            "parameters": arm.parameters,
            "ratio_vs_this": measured[name]["median"] / measured[OURS]["median"],
        }
        for name, arm in arms.items()
    }


def _row(size: str, name: str, figures: dict[str, Any]) -> list[str]:
    return [
        size,
        name,
        common.with_spread(figures["seconds"], 1000),
        f"{figures['ratio_vs_this']:.2f}×",
        f"{figures['flops'] / 1e9:.1f}",
        f"{100 * figures['mfu']:.0f} %",
        f"{figures['parameters']:,}",
    ]


if __name__ == "__main__":
    common.run_app(app)
