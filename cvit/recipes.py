"""Recipes: models and settings that several presets share, as flat parameters. `|` combines them."""

from typing import Any

SMALL_VIT: dict[str, Any] = {"embed_dim": 48, "depth": 4, "num_heads": 9, "head_dim": 8, "mlp_ratio": 2.0}
"""A transformer for digits on a laptop: a trial takes seconds."""
SMALL_TRAINING: dict[str, Any] = {"batch_size": 32, "epochs": 10, "min_steps": 300, "validation_fraction": 0.2}

PHOTO_VIT: dict[str, Any] = SMALL_VIT | {"embed_dim": 96, "head_dim": 12, "patch_size": 4}
"""A transformer for photographs of 32 × 32 pixels on a CPU: a trial takes minutes."""
PHOTO_TRAINING: dict[str, Any] = {
    "batch_size": 64,
    "epochs": 0,
    "min_steps": 4000,
    "learning_rate": 2e-3,
    "evaluations": 16,
    "max_validation_images": 1000,
}
"""Steps, not epochs: after 2,000 of them the twin of CIFAR-10 hardly improves, however few its images are. On one core
a trial of two_phase takes about 12 minutes (an estimate from 0.14 s a step of the twin and 0.31 s of attention, on a
loaded machine)."""

PAPER_VIT: dict[str, Any] = {"embed_dim": 384, "depth": 12, "num_heads": 9, "head_dim": 32}
"""A transformer of the paper's depth and width, meant for GPUs."""
PAPER_TRAINING: dict[str, Any] = {
    "batch_size": 128,
    "epochs": 100,
    "min_steps": 32_000,
    "learning_rate": 1e-3,
    "label_smoothing": 0.1,
    "precision": "bfloat16",
    "evaluations": 20,
}
"""AdamW moves a relative bias by at most about the sum of the learning rates, and a two_phase trial starts 8 logits
away from uniform attention. So the attention phase gets a sum of at least 8, in half of the steps too."""

SMOKE: dict[str, Any] = {
    "depth": 1,
    "batch_size": 32,
    "epochs": 1,
    "min_steps": 40,
    "evaluations": 2,
    "max_validation_images": 500,
    "max_test_images": 500,
}
"""Does it run? One block, a few steps and a few images; these override a model's and a training's settings."""
SMALLEST_SMOKE: dict[str, Any] = SMOKE | {
    "batch_size": 16,
    "epochs": 0,
    "min_steps": 20,
    "max_validation_images": 200,
    "max_test_images": 200,
}
"""The same, smaller, for images with many tokens: patches of 2 on 32 × 32 photographs make 256."""

WIDE_HEADS: dict[str, Any] = {"head_dim": 16}
"""Heads with a third of the small transformer's width, so that few heads are enough."""
FULL_TWIN: dict[str, Any] = {"convolution_form": "full"}
"""A twin of full rank is the same 3×3 convolution whatever the number of heads, and is trained once for all of them:
with fewer than 9 heads, the attention keeps the offsets that carry most of its energy."""
ABSOLUTE: dict[str, Any] = {"position_encoding": "relative+absolute"}
"""A learned absolute embedding beside the relative bias, which is best for most schemes (docs/LOG.md)."""
