"""`local`: the convolutional initialisation of ConViT (d'Ascoli et al. 2021, "ConViT: Improving Vision Transformers
with Soft Convolutional Inductive Biases", arXiv 2103.10697, section 3 and its published code).

The position logits of head h for a patch at offset δ are −α ‖δ − Δ_h‖² up to a constant, with locality strength α = 1
and the heads' centres Δ_h on a grid of √num_heads × √num_heads offsets around the patch. The value projection is the
identity, so that every head passes on its own share of the channels; the other weights are random.

Adapted to this architecture:

- ConViT's gate mixes two softmaxes, sigmoid(1) = 73 % position and 27 % content at the start, and its small weights
  (standard deviation 0.02) make the content part almost uniform. Here position is a bias inside one softmax, and the
  larger random weights of this project would drown it. So keys start at zero: attention is the position part alone,
  while random queries let the keys learn.
- ConViT's position logits remain an affine function of ‖δ‖² and δ; here the bias of every offset is free to change.
- The centres have as many axes as the grid. If num_heads is no square (on three axes no cube), they are the nearest
  offsets; ConViT leaves the heads beyond the square random.
- All heads together may be narrower than the token: then no head passes on its last channels. Or wider: then heads
  begin again at its first channel.
- ConViT has no zero slot: here it starts closed, at the logit of a patch twice the grid's length from the centre.

`attention_sharpness`, the gap to the zero slot, has no influence: α is always the published value.
"""

import itertools

import torch

from cvit.config import TrialConfig
from cvit.geometry import Grid, nearest_offsets, patch_places
from cvit.init.random import random
from cvit.models.attention import RelativeAttention
from cvit.models.vit import VisionTransformer

LOCALITY_STRENGTH = 1.0
"""α: the difference of logits between a head's centre and the patch beside it."""


@torch.no_grad()
def local(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer whose heads attend softly to the places of a neighbourhood."""
    assert parent is None
    model, _ = random(config, None)
    for attention in model.modules():
        if isinstance(attention, RelativeAttention):
            attention.key.weight.zero_()
            _localise(attention)
    return model, {}


def _localise(attention: RelativeAttention) -> None:
    grid = attention.grid
    offsets = patch_places(tuple(2 * length - 1 for length in grid)) - torch.tensor(grid) + 1
    for head, centre in enumerate(centres(attention.num_heads, grid)):
        squared_distance = (offsets - torch.tensor(centre)).square().sum(dim=1)
        attention.relative_bias[head, :-1] = -LOCALITY_STRENGTH * squared_distance
    attention.relative_bias[:, -1] = -LOCALITY_STRENGTH * (2 * max(grid)) ** 2
    inner_dim, embed_dim = attention.value.weight.shape
    attention.value.weight.copy_(torch.eye(embed_dim)[torch.arange(inner_dim) % embed_dim])


def centres(num_heads: int, grid: Grid) -> list[tuple[float, ...]]:
    """Steps along each axis from a patch to every head's centre; centres lie between patches if √num_heads is even."""
    side = round(num_heads ** (1 / len(grid)))
    if side ** len(grid) != num_heads:
        return list(nearest_offsets(num_heads, grid))
    places = [place - (side - 1) / 2 for place in range(side)]
    return list(itertools.product(places, repeat=len(grid)))
