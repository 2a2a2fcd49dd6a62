"""Checks the compiled operators against torch's, so that a library that computes nonsense is never used."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cvit import native
from cvit.config import ModelConfig
from cvit.models.vit import VisionTransformer
from cvit.randomness import generator
from cvit.vocabulary import ATTENTION, CONVOLUTION

# Sizes that no vector divides.
_MODEL = ModelConfig(image_size=6, patch_size=2, embed_dim=20, depth=2, num_heads=5, head_dim=6, mlp_ratio=1.7)
_BATCH_SIZE = 7
_FLOAT32_ERROR, _BFLOAT16_ERROR = 1e-4, 0.1
"""Far above rounding, far below a fault."""


def check() -> None:
    """Raises ValueError if a network's logits or gradients differ from torch's by more than rounding."""
    for phase in (ATTENTION, CONVOLUTION):
        model = VisionTransformer(_MODEL, phase)
        draws = generator(0, "native check")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) / 3)
        images = torch.randn(_BATCH_SIZE, _MODEL.in_channels, *_MODEL.shape, generator=draws)
        with native.switched_off():
            expected = list(_results(model, images, halves=False))
        for halves in (False, True) if native.has_half_products() else (False,):
            allowed = _BFLOAT16_ERROR if halves else _FLOAT32_ERROR
            for name, found, right in zip(_names(model), _results(model, images, halves), expected, strict=True):
                error = float((found - right).norm() / right.norm())
                if not error <= allowed:
                    kind = "bfloat16 products" if halves else "float32"
                    raise ValueError(f"the operators compute {name} wrongly ({phase}, {kind}, error {error:.2g})")


def _names(model: VisionTransformer) -> list[str]:
    return ["logits", *(f"the gradient of {name}" for name, _ in model.named_parameters())]


def _results(model: VisionTransformer, images: Tensor, halves: bool) -> Iterator[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=halves):
        logits = model(images).float()
    yield logits.detach()
    yield from torch.autograd.grad(logits.square().sum(), list(model.parameters()))
