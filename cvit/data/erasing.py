"""Random erasing (Zhong et al. 2020): a rectangle of an image is replaced by the mean of the training images. On a
sequence it is a stretch of time, in all channels: the time masking of SpecAugment (Park et al. 2019).

The rectangles follow torchvision's `RandomErasing`: shares of the image's area between 0.02 and 0.33, ratios of height
to width between 0.3 and 3.3, drawn until the rectangle is smaller than the image along both axes, four times at most.
Of the draws for an image of 32 pixels 0.6 % are too large, of 8 pixels 2 %. A stretch has the first of these shares of
a sequence, and at least a sample.
"""

import math

import torch
from torch import Tensor

SCALE = (0.02, 0.33)
RATIO = (0.3, 3.3)
BOXES = torch.int32
"""The type of rectangles and stretches: sequences may be longer than int16 counts."""
_TRIES = 4
NUM_UNIFORM = 2 * _TRIES + 3
"""The number of uniform draws from which one rectangle is made."""


def boxes(uniform: Tensor, shape: tuple[int, ...], probability: float) -> Tensor:
    """Rectangles (..., 4) int32: first row, first column, and the row and the column after the last; 0 if nothing is
    erased. On sequences stretches (..., 2): the first sample, and the one after the last.

    Args:
        uniform: (..., NUM_UNIFORM) in [0, 1).
        shape: rows and columns of the images, or the length of the sequences.
        probability: the share of images in which something is erased.
    """
    coin, down, right, tries = uniform.double().split([1, 1, 1, 2 * _TRIES], dim=-1)
    if len(shape) == 1:
        share = SCALE[0] + (SCALE[1] - SCALE[0]) * tries[..., :1]
        length = (shape[0] * share).round().clamp(min=1)
        first = (down * (shape[0] - length + 1)).floor()
        return torch.where(coin < probability, torch.cat([first, first + length], dim=-1), 0).to(BOXES)
    area, ratio = tries.unflatten(-1, (2, _TRIES)).unbind(-2)
    area = math.prod(shape) * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
    heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (heights < shape[0]) & (widths < shape[1])
    first = fits.byte().argmax(dim=-1, keepdim=True)
    is_erased = (coin < probability) & fits.gather(-1, first)
    height, width = (torch.where(is_erased, sizes.gather(-1, first), 0) for sizes in (heights, widths))
    top, left = (down * (shape[0] - height + 1)).floor(), (right * (shape[1] - width + 1)).floor()
    box = torch.cat([top, left, top + height, left + width], dim=-1)
    return torch.where(is_erased, box, 0).to(BOXES)


def inside(box: Tensor, shape: tuple[int, ...]) -> Tensor:
    """True in the rectangles (..., 4), or the stretches (..., 2), of `boxes`: (..., *shape) bool."""
    is_inside = torch.ones((), dtype=torch.bool, device=box.device)
    first, after = box[..., None].chunk(2, dim=-2)
    for axis, length in enumerate(shape):
        places = torch.arange(length, device=box.device)
        along_axis = (places >= first[..., axis, :]) & (places < after[..., axis, :])
        is_inside = is_inside[..., None] & along_axis.unflatten(-1, (*(1,) * axis, length))
    return is_inside


def erased(images: Tensor, box: Tensor) -> Tensor:
    """Normalised images (..., C, *shape) with the mean of the training images, 0, in the boxes (..., 2 · axes)."""
    axes = box.shape[-1] // 2
    return images.masked_fill(inside(box, tuple(images.shape[-axes:])).unsqueeze(-1 - axes), 0.0)
