"""Random erasing (Zhong et al. 2020): a rectangle of an image is replaced by the mean of the training images.

The rectangles follow torchvision's `RandomErasing`: shares of the image's area between 0.02 and 0.33, ratios of height
to width between 0.3 and 3.3, drawn until the rectangle is smaller than the image along both axes, four times at most.
Of the draws for an image of 32 pixels 0.6 % are too large, of 8 pixels 2 %.
"""

import math

import torch
from torch import Tensor

SCALE = (0.02, 0.33)
RATIO = (0.3, 3.3)
BOXES = torch.int16
"""The type of rectangles."""
_TRIES = 4
NUM_UNIFORM = 2 * _TRIES + 3
"""The number of uniform draws from which one rectangle is made."""


def boxes(uniform: Tensor, shape: tuple[int, int], probability: float) -> Tensor:
    """Rectangles (..., 4) int16: first row, first column, and the row and the column after the last; 0 if nothing is
    erased.

    Args:
        uniform: (..., NUM_UNIFORM) in [0, 1).
        shape: rows and columns of the images.
        probability: the share of images in which something is erased.
    """
    coin, down, right, tries = uniform.double().split([1, 1, 1, 2 * _TRIES], dim=-1)
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
    """True in the rectangles (..., 4) of `boxes`: (..., rows, columns) bool."""
    rows, columns = (torch.arange(length, device=box.device) for length in shape)
    top, left, bottom, right = box[..., None].unbind(-2)
    return ((rows >= top) & (rows < bottom))[..., :, None] & ((columns >= left) & (columns < right))[..., None, :]


def erased(images: Tensor, box: Tensor) -> Tensor:
    """Normalised images (..., C, rows, columns) with the mean of the training images, 0, in the rectangles (..., 4)."""
    return images.masked_fill(inside(box, tuple(images.shape[-2:]))[..., None, :, :], 0.0)
