"""The sizes of the ResNet that follow from the transformer's, without torch: a plan counts operations by them."""

import math

from cvit.config import ModelConfig

NORM_GROUPS = 4
"""Number of groups of group norm (Wu and He 2018), which has no running statistics: the weights are the whole state."""
WIDENING = (1, 2, 4)
"""Channels of the three groups of blocks, relative to the first one."""
KERNEL_SIZE = 3
"""Taps of a convolution along each axis."""
FEWEST_PLACES = 128
"""Places that the first convolution leaves of a long sequence, at least."""


def network_size(config: ModelConfig) -> tuple[int, int]:
    """(blocks per group, channels of the first group): see `cvit.models.reference.ResidualNetwork`.

    With w channels and n blocks per group, and kernels of k taps, 9 on images, the convolutions have
    (42 k n − 10 k + 10) w² weights: n · 2 k (1 + 4 + 16) w², less for the narrower inputs of the second and third
    group, plus their 1×1 convolutions.
    """
    num_blocks = max(1, round(config.depth / 3))
    weights = (4 + 2 * config.mlp_ratio) * config.depth * config.embed_dim**2
    taps = KERNEL_SIZE**config.dimensions
    width = math.sqrt(weights / (42 * taps * num_blocks - 10 * taps + 10))
    return num_blocks, NORM_GROUPS * max(1, round(width / NORM_GROUPS))


def stem_stride(config: ModelConfig) -> int:
    """The stride of the first convolution: 1 on images, and on sequences so many samples that fewer than 256 places
    are left. At stride 1 the network would see a few milliseconds of speech at a time."""
    return max(1, config.image_size // FEWEST_PLACES) if config.is_of_sequences else 1


def stem_kernel(config: ModelConfig) -> int:
    """Taps of the first convolution along each axis: 3, and on long sequences as many as reach one stride both ways."""
    return 2 * stem_stride(config) + 1
