"""MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019): each image of a batch is mixed with another, and so is its
label.

The other image is the one before it in the batch, whose order is random; the first one's is the last. As in torchvision
all images of a step are mixed alike: MixUp adds them up with weights, CutMix replaces a rectangle. A *mixture* is six
numbers: the weight of an image's own label, the weight of its own pixels, and the rectangle of the other image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from cvit.data.erasing import inside

NUM_UNIFORM = 4
"""The number of uniform draws from which the mixture of a step is made."""
UNMIXED = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def mixtures(uniform: Tensor, mixup_alpha: float, cutmix_alpha: float, shape: tuple[int, ...]) -> Tensor:
    """The mixtures of steps, (S, 6) float32 on the CPU.

    With both alphas, each step takes either way with probability 1/2; with neither, nothing is mixed.

    Args:
        uniform: (S, NUM_UNIFORM) float64 in [0, 1).
        shape: pixels along each axis of an image; CutMix needs two.
    """
    coin, quantile, down, right = uniform.numpy().T
    found = np.tile(UNMIXED, (len(uniform), 1))
    takes_cutmix = coin < 0.5 if mixup_alpha and cutmix_alpha else np.full(len(coin), bool(cutmix_alpha))
    if mixup_alpha:
        found[:, :2] = _share(quantile, mixup_alpha)[:, None]
    if cutmix_alpha:
        box = _cutmix_boxes(_share(quantile, cutmix_alpha), down, right, shape)
        top, left, bottom, right = box.T
        own = 1 - (bottom - top) * (right - left) / (shape[0] * shape[1])
        found[takes_cutmix] = np.column_stack([own, np.ones_like(own), box])[takes_cutmix]
    return torch.from_numpy(found).float()


def _share(quantile: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """The quantiles of Beta(alpha, alpha): random if these are uniform."""
    return betaincinv(alpha, alpha, quantile)


def _cutmix_boxes(
    share: NDArray[np.float64], down: NDArray[np.float64], right: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Rectangles (S, 4) around a random pixel, cut off at the edge of the image: first row, first column, and the row
    and the column after the last. Before that, their share of the image is 1 − share."""
    halves = [np.floor(0.5 * np.sqrt(1 - share) * length) for length in shape]
    middles = [np.floor(uniform * length) for uniform, length in zip((down, right), shape, strict=True)]
    ends = [
        np.clip(middle + sign * half, 0, length)
        for sign in (-1, 1)
        for middle, half, length in zip(middles, halves, shape, strict=True)
    ]
    return np.column_stack(ends)


def mixed(images: Tensor, mixture: Tensor) -> Tensor:
    """Mixes the images of each member.

    Args:
        images: (M, B, C, *shape), normalised.
        mixture: (M, 6), by `mixtures`.
    """
    others = images.roll(1, dims=1)
    weight = mixture[:, 1].view(-1, *(1,) * (images.ndim - 1))
    images_mixed = others * (1 - weight) + images * weight
    if images.ndim != 5:
        return images_mixed
    return torch.where(inside(mixture[:, 2:], tuple(images.shape[-2:]))[:, None, None], others, images_mixed)


def partners(labels: Tensor) -> Tensor:
    """The labels (M, B) of the images with which `mixed` mixes."""
    return labels.roll(1, dims=1)
