"""`impulse`: attention maps that start as random impulse convolutions (Zheng, Li and Lucey 2024, "Convolutional
Initialization for Data-Efficient Vision Transformers", arXiv 2401.12511, and "Structured Initialization for Attention
in Vision Transformers", arXiv 2404.01139).

In the papers every head of every layer draws one offset of a 3×3 neighbourhood, with replacement. W_Q and W_K are then
fitted by gradient descent, so that softmax(P W_Q W_Kᵀ Pᵀ), with P the position embeddings after a layer norm, is the
matrix that shifts the image by that offset, with zero padding. Values and outputs stay random: the papers argue that
random impulse filters mix patches as well as trained filters do.

Adapted to this architecture, the relative bias has the pattern, in place of W_Q and W_K. With a relative position
encoding alone, tokens do not know their position, so no W_Q and W_K could have it. Beside an absolute embedding, the
bias does exactly what the fit does approximately: on real images, not only on position embeddings, in every layer alike
and for any rank head_dim. Keys start at zero, so that content does not influence attention yet, while random queries
let the keys learn. If the offset points outside the image, the head attends to the zero slot, the papers' zero row.

The difference from `conv_structured`, whose heads take every offset once: here offsets are random, by head and layer.
"""

import torch

from cvit.config import TrialConfig
from cvit.geometry import Offset, neighbourhood
from cvit.init.random import random
from cvit.init.transfer import point_heads_at
from cvit.models.attention import RelativeAttention
from cvit.models.vit import VisionTransformer
from cvit.randomness import generator


@torch.no_grad()
def impulse(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer whose heads attend to patches at random offsets, with the sharpness `attention_sharpness`."""
    assert parent is None
    model, _ = random(config, None)
    for name, attention in model.named_modules():
        if isinstance(attention, RelativeAttention):
            attention.key.weight.zero_()
            point_heads_at(attention, _drawn_offsets(attention, config.seed, name), config.attention_sharpness)
    return model, {}


def _drawn_offsets(attention: RelativeAttention, seed: int, name: str) -> tuple[Offset, ...]:
    """An offset for each head, drawn from the 3×3 neighbourhood, or from the part of it that occurs on the grid."""
    offsets = neighbourhood(attention.grid)
    source = generator(seed, f"init/{name}.offsets")
    return tuple(offsets[i] for i in torch.randint(len(offsets), (attention.num_heads,), generator=source).tolist())
