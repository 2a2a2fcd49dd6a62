"""The floating-point operations of an optimiser step, as a function of the architecture; without torch.

The operations are those of matrix products and convolutions, forward and backward, as torch's `FlopCounterMode` counts
them: a test compares the two. Each product of the forward pass has two of the same size in the backward pass, one for
the gradient of each factor; but images have no gradient.
"""

import math
from functools import lru_cache

from cvit.config import ModelConfig
from cvit.geometry import neighbourhood, num_relative_positions, radius_of
from cvit.models.sizes import KERNEL_SIZE, WIDENING, network_size, stem_kernel, stem_stride
from cvit.vocabulary import ATTENTION, CONVOLUTION

Architecture = tuple[str, str, ModelConfig, str]
"""Phase, name of a scheme whose model or steps are not the transformer's, sizes, form of the convolutional twin; see
`cvit.stages.TrainingStage.architecture`."""

FORWARD_AND_BACKWARD = 3
"""The products of a step for each one of its forward pass."""
WITHOUT_GRADIENT_OF_INPUT = 2
"""The same for the first layer, whose inputs are images."""


_EXPECTED = {"cpu": (2e-3, 3.5e10), "cuda": (3e-4, 1e13)}
"""The seconds that a step costs whatever its size, and the operations a second beside them, of one worker: a core of a
server of 2023, and half of an H100, both with packs (docs/PERFORMANCE.md)."""
UNKNOWN_STEP_S = 5e-3
"""The seconds that a step is expected to take whose operations are not known."""


def expected_step_seconds(flops: float | None, device: str) -> float:
    """The seconds of one worker that a step is expected to take before any is measured, right within a factor of a few:
    it depends on the machine and on what else the machine does.

    Args:
        device: cpu or cuda.
    """
    start, rate = _EXPECTED[device]
    return UNKNOWN_STEP_S if flops is None else start + flops / rate


COMPILE_S = 60.0
"""The seconds that a GPU's worker is expected to compile a kind of step for. On a busy core of a CPU it took 62 s."""
SHARE_SAVED = 0.25
"""The share of the time of a step on a GPU that compiling is expected to save: a third, by counting kernels and bytes
of the preset `reference`; not measured."""


def compile_seconds(seconds_left: float, device: str) -> float:
    """The seconds for which the steps of a pack are compiled: none where that would not save more.

    Args:
        seconds_left: the time that the steps take as they are.
    """
    return COMPILE_S if device == "cuda" and seconds_left * SHARE_SAVED > COMPILE_S else 0.0


@lru_cache(maxsize=4096)
def step_flops(architecture: Architecture, batch_size: int) -> int | None:
    """The operations of one optimiser step; None for a model whose operations this module does not know."""
    phase, kind, config, form = architecture
    if kind == "resnet":
        of_image = _resnet(config)
    elif phase == ATTENTION and kind:  # a scheme of two readings: the mean of its two kinds of steps, which take turns
        both = (_transformer(config, "factorized", blocks) for blocks in (config.num_attention_blocks, 0))
        of_image = sum(both) // 2
    elif phase == ATTENTION:
        of_image = _transformer(config, form, config.num_attention_blocks)
    elif phase == CONVOLUTION or kind == "convolution":
        of_image = _transformer(config, form, 0)
    else:
        return None
    return batch_size * of_image


def _transformer(config: ModelConfig, form: str, num_attention: int) -> int:
    """The operations of an image, whose last blocks are attention and whose first ones are convolutions."""
    num_convolutions, has_pixels = config.depth - num_attention, form == "pixel"
    embedding = _pixel_embedding(config) if has_pixels and num_convolutions else _embedding(config)
    blocks = num_attention * (_attention(config) + _mlp(config))
    if num_convolutions:
        convolution = _pixel_block(config) if has_pixels else _TOKEN_TWINS[form](config) + _mlp(config)
        blocks += num_convolutions * convolution
    head = _product(1, config.embed_dim, config.num_classes)
    return WITHOUT_GRADIENT_OF_INPUT * embedding + FORWARD_AND_BACKWARD * (blocks + head)


def _embedding(config: ModelConfig) -> int:
    return _product(math.prod(config.grid), config.in_channels * math.prod(config.patch), config.embed_dim)


def _mlp(config: ModelConfig) -> int:
    return 2 * _product(math.prod(config.grid), config.embed_dim, round(config.embed_dim * config.mlp_ratio))


def _attention(config: ModelConfig) -> int:
    """Query, key, value and output, and the two products of each head with the tokens and the zero slot."""
    tokens = math.prod(config.grid)
    projections = 4 * _product(tokens, config.embed_dim, config.num_heads * config.head_dim)
    return projections + 2 * config.num_heads * _product(tokens, config.head_dim, tokens + 1)


def _factorized(config: ModelConfig) -> int:
    """Value and output; the shift in between multiplies nothing."""
    return 2 * _product(math.prod(config.grid), config.embed_dim, config.num_heads * config.head_dim)


def _full(config: ModelConfig) -> int:
    """A convolution with the smallest kernel that has all offsets."""
    grid = config.grid
    count = max(len(neighbourhood(grid)), min(config.num_heads, num_relative_positions(grid)))
    kernel = (2 * radius_of(count, grid) + 1) ** len(grid)
    return _product(math.prod(grid), kernel * config.embed_dim, config.embed_dim)


_TOKEN_TWINS = {"factorized": _factorized, "full": _full}
"""The operations of the mixing of the twins that convolve tokens, by the form of the convolution."""


def _pixel_embedding(config: ModelConfig) -> int:
    """The embedding of the twin of `cvit.models.pixel`, whose layers are those of single pixels."""
    return _product(math.prod(config.shape), config.in_channels, config.embed_dim // math.prod(config.patch))


def _pixel_block(config: ModelConfig) -> int:
    """A block of that twin: its convolution of pixels and its MLP."""
    pixels_of_patch = math.prod(config.patch)
    pixels, channels = math.prod(config.shape), config.embed_dim // pixels_of_patch
    hidden = round(config.embed_dim * config.mlp_ratio) // pixels_of_patch
    mixing = _product(pixels, 3 ** len(config.shape) * channels, channels)
    return mixing + 2 * _product(pixels, channels, hidden)


def _resnet(config: ModelConfig) -> int:
    """The operations of an image in `cvit.models.reference.ResidualNetwork`."""
    num_blocks, width = network_size(config)
    axes, taps = config.dimensions, KERNEL_SIZE**config.dimensions
    side, channels, blocks = -(-config.image_size // stem_stride(config)), width, 0
    stem = _product(side**axes, stem_kernel(config) ** axes * config.in_channels, width)
    for factor in WIDENING:
        for block in range(num_blocks):
            before, channels = channels, factor * width
            stride = 2 if block == 0 and factor > 1 else 1
            side = -(-side // stride)
            blocks += _product(side**axes, taps * before + taps * channels, channels)
            blocks += _product(side**axes, before, channels) if before != channels else 0
    head = _product(1, channels, config.num_classes)
    return WITHOUT_GRADIENT_OF_INPUT * stem + FORWARD_AND_BACKWARD * (blocks + head)


def _product(rows: int, inner: int, columns: int) -> int:
    """The operations of a product of matrices, rows × inner by inner × columns."""
    return 2 * rows * inner * columns
