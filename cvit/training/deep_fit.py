"""Gradient descent that fits layers of attention to a given convolution, to compare its heads with the exact frontier.

L layers with skip connections, whose attention does not depend on the content, compute

    Σ A¹_{h_1} ⋯ A^L_{h_L} ⊗ (W¹_{h_1} ⋯ W^L_{h_L}),   A^l_0 = I,

a sum over one head or the skip connection of each layer: Π (H_l + 1) terms. Where the tokens between the layers are
wide enough, the second factors may be any maps, since the tensor train that has them exists (`cvit.theorem.depth`).
Then, as for one layer (`cvit.training.fit`), the best maps for given attention are linear least squares, solved exactly
in every step, and only the relative position biases are learned. No fit is closer to the convolution than `error_bound`
with so many terms, so none is exact with fewer than its R independent maps.
"""

import torch
from torch import Tensor

from cvit.deep_fits import DepthConfig
from cvit.geometry import Grid, num_relative_positions
from cvit.randomness import generator
from cvit.results import Point
from cvit.theorem.kernel import error_bound
from cvit.training.fit import Target, attention, follow_gradient, log_squared_error, point, projection, target
from cvit.vocabulary import EXPRESSIVITY_BOUND

_LEAST_NORM = 1e-150


def kernel(config: DepthConfig) -> Tensor:
    """The convolution's kernel (fit_channels, fit_channels, K, ...), standard normal, float64; the same for all
    seeds."""
    shape = (config.fit_channels, config.fit_channels, *config.kernel_shape)
    return torch.randn(shape, generator=generator(0, "depth/kernel"), dtype=torch.float64)


def products(logits: Tensor, grid: Grid) -> Tensor:
    """The products of one attention matrix of each layer, or the identity, as columns (N², (H + 1)^L) of norm 1.

    Column Σ_l h_l (H + 1)^{L − l} is A^L_{h_L} ⋯ A¹_{h_1}, with h_l = H for the skip connection. A product that moves
    along the image may be tiny, and its maps large: norm 1 lets the least squares tell it from rounding.

    Args:
        logits: (L, H, R + 1) biases: for each of the grid's R relative positions, then for the zero slot.
    """
    layers, heads, _ = logits.shape
    matrices = attention(logits.flatten(0, 1), grid).T.unflatten(0, (layers, heads))
    patches = round(matrices.shape[-1] ** 0.5)
    matrices = matrices.unflatten(-1, (patches, patches))
    skip = torch.eye(patches, dtype=matrices.dtype).expand(layers, 1, -1, -1)
    first, *others = torch.cat([matrices, skip], dim=1)
    product = first
    for layer in others:
        product = torch.einsum("aij,bjk->baik", layer, product).flatten(0, 1)
    columns = product.flatten(1).T
    return columns / columns.norm(dim=0).clamp_min(_LEAST_NORM)


def relative_error(logits: Tensor, goal: Target) -> float:
    """The error of the best layers with this attention, relative to the convolution's norm: by projection."""
    return float((goal.shifts - projection(products(logits, goal.grid), goal)).matmul(goal.basis).norm())


def descend(config: DepthConfig) -> tuple[list[Point], Tensor]:
    """Gradient descent (Adam, cosine schedule) on the attention of all layers.

    Returns:
        The measured errors and the bound; and the biases (depth, num_heads, R + 1), for the grid's R relative positions
        and the zero slot.
    """
    weight, options = kernel(config), config.options
    goal = target(weight, config.patch_size, config.fit_image_size, **options)
    shape = (config.depth, config.num_heads, num_relative_positions(goal.grid) + 1)
    draws = generator(config.seed, "depth/attention")
    logits = torch.randn(shape, generator=draws, dtype=torch.float64).requires_grad_()
    points = follow_gradient(logits, _loss, relative_error, goal, steps=config.fit_steps, rate=config.fit_learning_rate)
    bound = error_bound(weight, config.patch_size, config.terms, config.fit_image_size, **options)
    points.append(point(EXPRESSIVITY_BOUND, config.fit_steps, bound))
    return points, logits.detach()


def _loss(logits: Tensor, goal: Target) -> Tensor:
    return log_squared_error(products(logits, goal.grid), goal)
