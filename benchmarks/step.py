"""Measures one training step: our ViT against torchvision's and timm's of the same shape.

python benchmarks/step.py
python benchmarks/step.py --model-size digits --members 4
python benchmarks/step.py --device cuda --precision bfloat16 --json step.json

A step is forward, cross-entropy, backward and torch's AdamW on a batch that lies on the device. The models have the
same image, patch, depth, width, MLP and number of classes. What differs:

ours         9 heads (`--head-dim` wide, independent of the width), a learned relative position bias per head, the zero
             slot as one more key; mean pooling, no class token
torchvision  heads that divide the tokens' width; absolute position embedding; a class token
timm         the same heads; absolute position embedding; mean pooling, no class token
trainer      our model in the engine's own trainer, in a pack of `--members`: its step also draws, augments and
             normalises the batch, clips the gradient and measures; on a GPU it is a CUDA graph

Without a suffix, an arm computes in float32, ours by the fused operators of a CPU where there are any (cvit/native).

_torch       float32 by torch's operators, as on a machine without the fused ones
_bfloat16    bfloat16 autocast, in which the fused operators round the factors of products alone

A time is that of a member's step: that of a pack's step over its members. On a CPU one thread does everything, as in
the engine's workers, and its processor time counts, which neighbours disturb least. MFU is the fraction of the device's
measured matrix rate: the operations of a model's own matrix products, forward and backward, over the time of its step
and over that rate. The rate is that of a large product in the same precision, the best of several.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from cyclopts import Parameter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from cvit import native
from cvit.config import DataConfig, ModelConfig, Precision, TrainingConfig, TrialConfig
from cvit.data.augment import channel_statistics
from cvit.init.random import initialise
from cvit.models.vit import VisionTransformer
from cvit.parameters import ConfigError
from cvit.stages import TrainingStage
from cvit.training.batches import LabelledImages, PackData
from cvit.training.pack import TrainingPack
from cvit.vocabulary import ATTENTION

OURS, TRAINER = "ours", "trainer"
TORCH, HALF = "_torch", "_bfloat16"
HEADS, CLASSES = 9, 10


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and its batch; `heads` are those of the others."""

    depth: int
    width: int
    head_dim: int
    heads: int
    mlp_ratio: float = 4.0
    image_size: int = 32
    patch_size: int = 4
    channels: int = 3
    batch_size: int = 64


SHAPES = {
    "digits": Shape(4, 48, 8, 6, mlp_ratio=2.0, image_size=8, patch_size=2, channels=1, batch_size=32),
    "small": Shape(4, 96, 12, 8),
    "medium": Shape(9, 144, 16, 9),
    "vit_s": Shape(12, 384, 32, 6),
}
"""`digits` is the model of the preset `laptop` of sweeps/low_data.py; `medium` has the same heads in all models."""
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
    batch_size: Annotated[int | None, Parameter(help="Images per step; without, as the model's shape has it.")] = None,
    members: Annotated[int, Parameter(help="Members of the trainer's pack.")] = 1,
    steps: Annotated[int, Parameter(help="Steps of a turn.")] = 5,
    precision: Annotated[
        tuple[Precision, ...],
        Parameter(consume_multiple=True, help="Of float32 and bfloat16; those for which the device has instructions."),
    ] = (),
    repeats: common.Repeats = 5,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Milliseconds per training step and MFU: our ViT against torchvision's and timm's of the same shape."""
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    common.check(json, repeats=repeats, steps=steps, members=members, **sizes)
    if unknown := [name for name in model_size if name not in SHAPES]:
        raise ConfigError(f"model_size {unknown[0]!r} is not valid: one of {', '.join(SHAPES)}")
    where = common.chosen_device(device)
    precision = precision or common.precisions(where)
    before = common.machine()
    torch.set_num_threads(1)
    rates = {name: common.matrix_rate(name, where) for name in precision}
    figures, rows = {}, []
    for size in model_size:
        arms = _arms(replace(SHAPES[size], **sizes), precision, members, steps, where)
        seconds = common.interleaved({name: partial(arm.seconds, steps) for name, arm in arms.items()}, repeats)
        figures[size] = _figures(arms, seconds, rates)
        rows += [_row(size, name, of_arm) for name, of_arm in figures[size].items()]
    pack = f", the trainer's in packs of {members}" if members > 1 else ""
    title = f"A member's training step on {where.type}{pack}; median of n = {repeats}"
    columns = ["model", "by", "ms", "÷ ours", "÷ ours_bfloat16", "÷ trainer", "GFLOP", "MFU"]
    notes = ["÷: the time over that of another arm, which is so many times as fast"]
    notes += [f"matrix rate in {name}: {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()]
    if where.type == "cpu" and (reason := native.problem()):
        notes.append(f"without the fused operators: {reason}")
    common.show(title, columns, rows, notes)
    setting = {"device": where.type, "members": members, "n": repeats, "matrix_flops_per_second": rates}
    common.write_json(json, "step", before, {**setting, "models": figures})


@dataclass(frozen=True)
class _Arm:
    """An arm is a way to take training steps: `seconds` takes so many and says how long a member's step took."""

    seconds: Callable[[int], float]
    flops: float
    parameters: int
    precision: Precision


def _arms(
    shape: Shape, precisions: Sequence[Precision], members: int, steps: int, device: torch.device
) -> dict[str, _Arm]:
    """Returns the arms of a shape by name. Those of packages that are not installed are left out."""
    has_native = device.type == "cpu" and native.is_available()
    arms: dict[str, _Arm] = {}
    for precision in precisions:
        suffix = HALF if precision == "bfloat16" else ""
        for name, make in MAKERS.items():
            if name == OURS or importlib.util.find_spec(name):
                arms[name + suffix] = _arm(make(shape), shape, precision, device)
        trainer = _trainer(shape, precision, members, steps, device)
        arms[TRAINER + suffix] = replace(arms[OURS + suffix], seconds=trainer)
        if has_native and precision == "float32":
            with native.switched_off():
                by_torch = _arm(_ours(shape), shape, precision, device)
                trainer = _trainer(shape, precision, members, steps, device)
            arms[OURS + TORCH] = replace(by_torch, seconds=_by_torch(by_torch.seconds))
            arms[TRAINER + TORCH] = replace(by_torch, seconds=_by_torch(trainer))
    return arms


def _by_torch(seconds: Callable[[int], float]) -> Callable[[int], float]:
    """Returns the same, computed by torch's operators alone."""

    def measured(steps: int) -> float:
        with native.switched_off():
            return seconds(steps)

    return measured


def _arm(model: nn.Module, shape: Shape, precision: Precision, device: torch.device) -> _Arm:
    """Puts the usual training loop around a model."""
    model.to(device).train()
    images = torch.randn(shape.batch_size, shape.channels, shape.image_size, shape.image_size, device=device)
    labels = torch.arange(shape.batch_size, device=device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters())

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    def take(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    with FlopCounterMode(display=False) as counter:
        loss().backward()
    parameters = sum(p.numel() for p in model.parameters())
    return _Arm(_timed(take, device), float(counter.get_total_flops()), parameters, precision)


def _trainer(
    shape: Shape, precision: Precision, members: int, steps: int, device: torch.device
) -> Callable[[int], float]:
    """Our trainer's steps; it takes `steps` of them at a time, from one evaluation to the next."""
    model = _ours(shape)
    training = TrainingConfig(batch_size=shape.batch_size, precision=precision)
    trial = TrialConfig(data=DataConfig(augmentation="crop_flip"), model=model.config, training=training)
    stage = TrainingStage(ATTENTION, trial, MANY_STEPS, 0, evaluation_interval=steps)
    size = (NUM_IMAGES, shape.channels, shape.image_size, shape.image_size)
    pixels = torch.randint(256, size, dtype=torch.uint8, device=device)
    images = LabelledImages(pixels, torch.arange(NUM_IMAGES, device=device) % CLASSES)
    mean, std = (one.expand(members, -1) for one in channel_statistics(pixels))
    data = PackData(images, (torch.arange(NUM_IMAGES),) * members, images, images, mean, std)
    stages = [replace(stage, trial=replace(trial, seed=seed)) for seed in range(members)]
    pack = TrainingPack(stages, data, [dict(model.named_parameters())] * members, device)
    done = 0

    def take(count: int) -> None:
        nonlocal done
        for _ in range(0, count, steps):
            pack.train(done)
            done += steps

    seconds = _timed(take, device)
    return lambda count: seconds(count) / members


def _timed(take: Callable[[int], None], device: torch.device) -> Callable[[int], float]:
    """Returns the seconds of one step, the mean of those taken, on a CPU of the processor; some are taken before."""
    clock = common.clock_for(device)

    def seconds(steps: int) -> float:
        common.wait_for(device)
        started = clock()
        take(steps)
        common.wait_for(device)
        return (clock() - started) / steps

    take(WARM_UP_STEPS)
    return seconds


def _ours(shape: Shape) -> VisionTransformer:
    config = ModelConfig(
        image_size=shape.image_size,
        in_channels=shape.channels,
        num_classes=CLASSES,
        patch_size=shape.patch_size,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=HEADS,
        head_dim=shape.head_dim,
        mlp_ratio=shape.mlp_ratio,
    )
    model = VisionTransformer(config, ATTENTION)
    initialise(model, seed=0)
    return model


def _torchvision(shape: Shape) -> nn.Module:
    from torchvision.models import VisionTransformer as TorchvisionTransformer

    hidden = round(shape.mlp_ratio * shape.width)
    sizes = (shape.image_size, shape.patch_size, shape.depth, shape.heads, shape.width, hidden)
    model = TorchvisionTransformer(*sizes, num_classes=CLASSES)
    if shape.channels != 3:
        model.conv_proj = nn.Conv2d(shape.channels, shape.width, shape.patch_size, shape.patch_size)
    return model


def _timm(shape: Shape) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    return TimmTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        in_chans=shape.channels,
        num_classes=CLASSES,
        global_pool="avg",
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        class_token=False,
    )


MAKERS = {OURS: _ours, "torchvision": _torchvision, "timm": _timm}
"""The models; all but ours by the name of their package."""


def _figures(arms: dict[str, _Arm], seconds: dict[str, list[float]], rates: dict[str, float]) -> dict[str, Any]:
    measured = {name: common.figure(values) for name, values in seconds.items()}

    def ratio(name: str, reference: str) -> float | None:
        return measured[name]["median"] / measured[reference]["median"] if reference in measured else None

    return {
        name: {
            "seconds": measured[name],
            "precision": arm.precision,
            "flops": arm.flops,
            "mfu": arm.flops / measured[name]["median"] / rates[arm.precision],
            "parameters": arm.parameters,
            "ratio_vs_this": ratio(name, OURS),
            "ratio_vs_this_bfloat16": ratio(name, OURS + HALF),
            "ratio_vs_trainer": ratio(name, TRAINER),
        }
        for name, arm in arms.items()
    }


def _row(size: str, name: str, figures: dict[str, Any]) -> list[str]:
    ratios = (figures[ratio] for ratio in ("ratio_vs_this", "ratio_vs_this_bfloat16", "ratio_vs_trainer"))
    return [
        size,
        name,
        common.with_spread(figures["seconds"], 1000),
        *("" if ratio is None else f"{ratio:.2f}×" for ratio in ratios),
        f"{figures['flops'] / 1e9:.1f}",
        f"{100 * figures['mfu']:.0f} %",
    ]


if __name__ == "__main__":
    common.run_app(app)
