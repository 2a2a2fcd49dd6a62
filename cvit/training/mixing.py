"""MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019): each image of a batch is mixed with another, and so is its
label.

The other image is the one before it in the batch, whose order is random; the first one's is the last. As in torchvision
all images of a step are mixed alike: MixUp adds them up with weights, CutMix replaces a rectangle, of a sequence a
stretch. A *mixture* is a row of numbers: the weight of an image's own label, the weight of its own pixels, and the box
of the other image, where it begins along each axis and where it ends.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from cvit.data.erasing import inside

NUM_UNIFORM = 4
"""The number of uniform draws from which the mixture of a step is made."""


def unmixed(axes: int) -> tuple[float, ...]:
    """The mixture of images of so many axes that are not mixed: full weights, and an empty box."""
    return (1.0, 1.0, *(0.0,) * (2 * axes))


def mixtures(uniform: Tensor, mixup_alpha: float, cutmix_alpha: float, shape: tuple[int, ...]) -> Tensor:
    """The mixtures of steps, (S, 2 + 2 · axes) float32 on the CPU.

    With both alphas, each step takes either way with probability 1/2; with neither, nothing is mixed.

    Args:
        uniform: (S, NUM_UNIFORM) float64 in [0, 1).
        shape: pixels along each axis of an image, of which it has one or two.
    """
    coin, quantile, down, right = uniform.numpy().T
    found = np.tile(unmixed(len(shape)), (len(uniform), 1))
    takes_cutmix = coin < 0.5 if mixup_alpha and cutmix_alpha else np.full(len(coin), bool(cutmix_alpha))
    if mixup_alpha:
        found[:, :2] = _share(quantile, mixup_alpha)[:, None]
    if cutmix_alpha:
        box = _cutmix_boxes(_share(quantile, cutmix_alpha), (down, right)[: len(shape)], shape)
        first, after = np.split(box, 2, axis=1)
        own = 1 - np.prod(after - first, axis=1) / math.prod(shape)
        found[takes_cutmix] = np.column_stack([own, np.ones_like(own), box])[takes_cutmix]
    return torch.from_numpy(found).float()


def _share(quantile: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """The quantiles of Beta(alpha, alpha): random if these are uniform."""
    return betaincinv(alpha, alpha, quantile)


def _cutmix_boxes(
    share: NDArray[np.float64], places: tuple[NDArray[np.float64], ...], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Boxes (S, 2 · axes) around a random pixel, cut off at the edge of the image: the first row and column, and the
    row and the column after the last. Before that, their share of the image is 1 − share.

    Args:
        places: (S,) uniform draws in [0, 1) for each axis.
    """
    side = np.sqrt(1 - share) if len(shape) == 2 else 1 - share
    halves = [np.floor(0.5 * side * length) for length in shape]
    middles = [np.floor(uniform * length) for uniform, length in zip(places, shape, strict=True)]
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
        mixture: (M, 2 + 2 · axes), by `mixtures`.
    """
    others = images.roll(1, dims=1)
    weight = mixture[:, 1].view(-1, *(1,) * (images.ndim - 1))
    images_mixed = others * (1 - weight) + images * weight
    return torch.where(inside(mixture[:, 2:], tuple(images.shape[3:]))[:, None, None], others, images_mixed)


def partners(labels: Tensor) -> Tensor:
    """The labels (M, B) of the images with which `mixed` mixes."""
    return labels.roll(1, dims=1)
