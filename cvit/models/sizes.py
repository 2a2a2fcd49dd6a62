"""The sizes of the ResNet that follow from the transformer's, without torch: a plan counts operations by them."""

import math

from cvit.config import ModelConfig

NORM_GROUPS = 4
"""Number of groups of group norm (Wu and He 2018), which has no running statistics: the weights are the whole state."""
WIDENING = (1, 2, 4)
"""Channels of the three groups of blocks, relative to the first one."""


def network_size(config: ModelConfig) -> tuple[int, int]:
    """(blocks per group, channels of the first group): see `cvit.models.reference.ResidualNetwork`.

    With w channels and n blocks per group, the convolutions have (378 n − 80) w² weights: n · 18 (1 + 4 + 16) w², less
    for the narrower inputs of the second and third group, plus their 1×1 convolutions.
    """
    num_blocks = max(1, round(config.depth / 3))
    weights = (4 + 2 * config.mlp_ratio) * config.depth * config.embed_dim**2
    width = math.sqrt(weights / (378 * num_blocks - 80))
    return num_blocks, NORM_GROUPS * max(1, round(width / NORM_GROUPS))
