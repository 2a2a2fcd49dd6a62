"""`mimetic`: attention weights that look like those of pre-trained transformers (Trockman and Kolter 2023,
"Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828).

For every head W_Q W_Kᵀ ≈ 0.7 Z + 0.7 I, and for all heads together W_V W_proj ≈ 0.4 Z' − 0.4 I. Z and Z' are (d, d)
with independent N(0, 1/d) entries, d = embed_dim, drawn anew for every head and layer. The weights are the factors of
the products' singular value decompositions, cut to the available width, each with the root of the singular values.

Adapted to this architecture:

- The paper has num_heads · head_dim = d. Here all heads together may be wider than the token: then the product is
  exact, and a random orthonormal basis spreads its d singular directions over all channels (the paper's order, one
  direction per channel, would leave the last heads without output and, with both factors zero, without gradient). The
  same holds for a head wider than the token. If heads are narrower, the product is the best approximation of that rank,
  as it is for W_Q W_Kᵀ in the paper.
- The logits are xᵀ W_Q W_Kᵀ y / √head_dim, as in the paper: the product is set without the scale.
- Relative biases, which the paper's transformers lack, keep their small random start.
- The paper's position embeddings start as sinusoids. Here they start as in all schemes: on digits, sinusoids cost this
  scheme 12 to 17 points of accuracy (docs/LOG.md), and a rival should be as strong as possible.
"""

import torch
from torch import Tensor

from cvit.config import TrialConfig
from cvit.init.random import random
from cvit.models.attention import RelativeAttention
from cvit.models.vit import VisionTransformer
from cvit.randomness import generator

QUERY_KEY = (0.7, 0.7)
"""(α, β) of the query–key product α Z + β I."""
VALUE_OUTPUT = (0.4, -0.4)
"""(α, β) of the value–output product."""


@torch.no_grad()
def mimetic(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer whose attention mimics that of a pre-trained one."""
    assert parent is None
    model, _ = random(config, None)
    for name, attention in model.named_modules():
        if isinstance(attention, RelativeAttention):
            _imitate(attention, config.seed, f"init/{name}")
    return model, {}


def _imitate(attention: RelativeAttention, seed: int, purpose: str) -> None:
    embed_dim, width = attention.query.in_features, attention.head_dim
    for head in range(attention.num_heads):
        rows = slice(head * width, (head + 1) * width)
        product = _near_identity(embed_dim, *QUERY_KEY, generator(seed, f"{purpose}.query_key", head))
        query, key = factors(product, attention.query.weight[rows])
        attention.query.weight[rows] = query
        attention.key.weight[rows] = key
    product = _near_identity(embed_dim, *VALUE_OUTPUT, generator(seed, f"{purpose}.value_output"))
    output, value = factors(product, attention.value.weight)
    attention.value.weight.copy_(value)
    attention.output.weight.copy_(output.T)


def _near_identity(size: int, alpha: float, beta: float, source: torch.Generator) -> Tensor:
    """α Z + β I with Z ~ N(0, 1/size)."""
    return alpha * torch.randn(size, size, generator=source) / size**0.5 + beta * torch.eye(size)


def factors(product: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product is the best approximation of `product` by their width (Eckart–Young).

    Args:
        product: (d, d).
        drawn: (width, d), random; if width > d, its column space is the basis that spreads the directions.

    Returns:
        left and right, both (width, d): leftᵀ · right ≈ product, exactly if width ≥ d.
    """
    width, embed_dim = drawn.shape
    left, singular, right = torch.linalg.svd(product)
    rank = min(width, embed_dim)
    root = singular[:rank, None].sqrt()
    basis = torch.linalg.qr(drawn).Q if width > embed_dim else torch.eye(width)
    return basis @ (root * left.T[:rank]), basis @ (root * right[:rank])
