"""The 14 operations of RandAugment and TrivialAugment, on batches in which every image has its own.

They compute what the functions of the same names in `torchvision.transforms.v2.functional` compute for uint8 images,
with the interpolation `nearest` and black outside the image. Every operation is a case of one of three maps:

- *geometric*: each pixel comes from a place that is an affine function of its own;
- *blend*: other + factor · (image − other), where the other image is black (brightness), gray (colour), the mean of the
  gray image (contrast) or blurred (sharpness);
- *levels*: each of the 256 values of a channel becomes another (posterise, solarise, autocontrast, equalise).

A batch goes through all three, each the identity for images of another operation. So the work does not depend on the
draws, as a CUDA graph requires, and nothing waits for the device: no number is given to torch.where, which would copy
it there. Arithmetic is elementwise or in whole numbers, so that results do not depend on the device.
"""

import math

import torch
from torch import Tensor

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""The operations by the names that torchvision gives them; images carry their place in this list."""
_BRIGHTNESS, _COLOR, _CONTRAST, _SHARPNESS = map(OPERATIONS.index, ("Brightness", "Color", "Contrast", "Sharpness"))
_AUTO_CONTRAST, _EQUALIZE = map(OPERATIONS.index, ("AutoContrast", "Equalize"))
_WHITE = 255
_GRAY = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in gray."""
NUM_SETTINGS = 10


def settings(operation: str, magnitude: float, side: int) -> list[float]:
    """The numbers by which `apply_operations` does an operation, `NUM_SETTINGS` of them.

    These are: the operation's place; the affine map (a, b, c, d, e, f) from a pixel (x, y), seen from the image's
    centre, to its source (a x + b y + c, d x + e y + f); the factor of the blend; the mask of the bits that remain; and
    the least value that is inverted.

    Args:
        magnitude: shear as a slope; translation in pixels, of which the fraction is dropped; rotation in degrees
            counterclockwise; blend as factor − 1; posterise as bits that remain; solarise as a share of white.
        side: pixels along each side of the image.
    """
    matrix, factor, mask, threshold = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 1.0, _WHITE, _WHITE + 1
    if operation == "ShearX":
        matrix[1:3] = magnitude, magnitude * side / 2
    elif operation == "ShearY":
        matrix[3], matrix[5] = magnitude, magnitude * side / 2
    elif operation == "TranslateX":
        matrix[2] = -int(magnitude)
    elif operation == "TranslateY":
        matrix[5] = -int(magnitude)
    elif operation == "Rotate":
        cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
        matrix = [cos, -sin, 0.0, sin, cos, 0.0]
    elif operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        factor = 1 + magnitude
    elif operation == "Posterize":
        mask = _WHITE - (_WHITE >> int(magnitude))
    elif operation == "Solarize":
        threshold = _WHITE * magnitude
    return [float(OPERATIONS.index(operation)), *matrix, factor, float(mask), float(threshold)]


def apply_operations(images: Tensor, chosen: Tensor) -> Tensor:
    """Does an operation to each image.

    Args:
        images: (B, C, side, side) uint8 of 1 or 3 channels.
        chosen: (B, NUM_SETTINGS) float32 on the same device, the `settings` of each image's operation.
    """
    operations, *matrix, factors, masks, thresholds = chosen.view(len(images), NUM_SETTINGS, 1, 1).unbind(1)
    moved = _moved(images, [entry.flatten(1) for entry in matrix])
    blended = _blended(moved, operations[..., None], factors[..., None])
    return _levelled(blended, operations, masks, thresholds)


def _moved(images: Tensor, matrix: list[Tensor]) -> Tensor:
    """Takes every pixel from its source, rounded to the nearest pixel; black where that lies outside.

    Args:
        matrix: the six numbers a to f, each (B, 1).
    """
    side = images.shape[-1]
    x, y = _centred_places(side, images.device)
    a, b, c, d, e, f = matrix
    middle = (side - 1) / 2
    column = (a * x + b * y + c + middle).round()
    row = (d * x + e * y + f + middle).round()
    is_inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    source = (row * side + column).masked_fill(~is_inside, 0.0).long()[:, None]
    moved = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1))
    return (moved * is_inside[:, None]).view_as(images)


def _centred_places(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The column and the row of every pixel, seen from the centre of the image, both (1, pixels) float32."""
    line = torch.arange(side, device=device) - (side - 1) / 2
    square = line.expand(side, side)
    return square.reshape(1, -1), square.T.reshape(1, -1)


def _blended(images: Tensor, operations: Tensor, factors: Tensor) -> Tensor:
    """other + factor · (image − other), cut off at black and white, and rounded down."""
    values = images.float()
    gray = _gray(values)
    other = values.masked_fill(operations == _BRIGHTNESS, 0.0)
    other = torch.where(operations == _COLOR, gray, other)
    other = torch.where(operations == _CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True), other)
    other = torch.where(operations == _SHARPNESS, _blurred(values), other)
    return (other + factors * (values - other)).clamp(0, _WHITE).to(torch.uint8)


def _gray(values: Tensor) -> Tensor:
    """The gray image (B, 1, side, side), rounded down; an image of one channel is gray already."""
    if values.shape[1] == 1:
        return values
    red, green, blue = (weight * channel for weight, channel in zip(_GRAY, values.unbind(1), strict=True))
    return (red + green + blue).floor()[:, None]


def _blurred(values: Tensor) -> Tensor:
    """The mean over 3×3 pixels in which the middle counts five times, rounded; the pixels at the edge stay."""
    if values.shape[-1] < 3:
        return values
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = values.clone()
    blurred[..., 1:-1, 1:-1] = ((around + 4 * values[..., 1:-1, 1:-1]) / 13).round()
    return blurred


def _levelled(images: Tensor, operations: Tensor, masks: Tensor, thresholds: Tensor) -> Tensor:
    """Replaces the values of every channel by a table of 256.

    Args:
        operations, masks, thresholds: (B, 1, 1).
    """
    indices = images.flatten(2).long()
    levels = torch.arange(_WHITE + 1, device=images.device).view(1, 1, -1)
    table = levels & masks.long()
    table = torch.where(levels >= thresholds, _WHITE - levels, table)
    table = torch.where(operations == _AUTO_CONTRAST, _stretched(images, levels), table)
    table = torch.where(operations == _EQUALIZE, _equalized(indices, levels), table)
    return table.to(torch.uint8).gather(2, indices).view_as(images)


def _stretched(images: Tensor, levels: Tensor) -> Tensor:
    """The table (B, C, 256) by which the values of a channel reach from black to white; unchanged if it has but one."""
    darkest, lightest = (edge(images.flatten(2), dim=2, keepdim=True).float() for edge in (torch.amin, torch.amax))
    is_flat = darkest == lightest
    scale = ((lightest - darkest) * (1 / _WHITE)).masked_fill(is_flat, 1.0)
    return ((levels - darkest.masked_fill(is_flat, 0.0)) / scale).clamp(0, _WHITE).long()


def _equalized(indices: Tensor, levels: Tensor) -> Tensor:
    """The table (B, C, 256) by which the values of a channel become about equally frequent, as in Pillow.

    A value becomes (number of darker pixels + step // 2) // step, where step is the number of pixels that are not of
    the lightest value, over 255; with a step of 0, values stay.
    """
    counts = torch.zeros(*indices.shape[:2], _WHITE + 1, dtype=torch.int32, device=indices.device)
    counts.scatter_add_(2, indices, counts.new_ones(1).expand_as(indices))
    lightest = indices.amax(dim=2, keepdim=True)
    step = (indices.shape[2] - counts.gather(2, lightest)) // _WHITE
    darker = counts.cumsum(dim=2) - counts
    equalized = ((darker + step // 2) // step.clamp(min=1)).clamp(0, _WHITE)
    return torch.where(step == 0, levels, equalized)
