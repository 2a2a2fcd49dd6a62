"""Augmentation of image batches, and the statistics for normalising them, on the images' device.

All draws come from a CPU generator, so results do not depend on the device. Drawing and applying are separate, so that
members of a pack, each with its own generator, can be augmented together: concatenate their draws and apply once.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from cvit.config import Augmentation

UNIT = {torch.uint8: 255, torch.float32: 1}
"""The value that counts as 1 in the statistics, by the type of the images."""


def draws_per_image(shape: tuple[int, ...]) -> int:
    """The number of draws for the augmentation of one image: a move along each axis, and a flip."""
    return len(shape) + 1


def draw_augmentation(count: int, shape: tuple[int, ...], kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Draws for a batch of images, (count, axes + 1) int64 on the CPU: the move of each image along each axis, in
    pixels (on two axes down and right), then 1 if it is flipped. The move comes before the flip.

    Args:
        shape: pixels along each axis.
        kind: "none"; "shift", a translation by up to max(1, pixels // 8) along each axis (in time, for sequences);
            "crop_flip", for images of two axes, the same translation (a random crop of the zero-padded image), then a
            horizontal flip with probability 1/2.
        generator: CPU generator; "none" draws nothing from it.
    """
    if kind == "none":
        return torch.zeros(count, draws_per_image(shape), dtype=torch.int64)
    # Consecutive axes with the same margin are drawn together.
    moves = [
        torch.randint(-margin, margin + 1, (count, len(list(axes))), generator=generator)
        for margin, axes in itertools.groupby(map(_margin, shape))
    ]
    if kind == "shift":
        flips = torch.zeros(count, 1, dtype=torch.int64)
    else:
        assert len(shape) == 2, "only images of two axes are flipped"
        flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([*moves, flips], dim=1)


def apply_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """Moves images (B, C, *shape) of any type and flips them along their last axis, by the draws (B, axes + 1) of
    `draw_augmentation`. Pixels from outside an image are 0. A sequence keeps its first or last value there: with zeros
    it would jump, since 0 is nothing special among the values of a sensor."""
    shape = images.shape[2:]
    if len(shape) == 1:
        return _moved_in_time(images, draws[:, 0].to(images.device))
    margins = [_margin(length) for length in shape]
    padded = F.pad(images, [margin for margin in reversed(margins) for _ in range(2)])
    *moves, flip = draws.to(images.device).unsqueeze(-1).unbind(1)
    pixels = [torch.arange(length, device=images.device) for length in shape]
    pixels[-1] = torch.where(flip == 1, shape[-1] - 1 - pixels[-1], pixels[-1])
    first, *others = (pixel - move + margin for pixel, move, margin in zip(pixels, moves, margins, strict=True))
    sources = first  # (B, pixels): the place in a padded, flattened image that each pixel comes from
    for along_axis, length in zip(others, padded.shape[3:], strict=True):
        sources = (sources.unsqueeze(2) * length + along_axis.unsqueeze(1)).flatten(1)
    sources = sources.unsqueeze(1).expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, sources).view_as(images)


def _moved_in_time(sequences: Tensor, moves: Tensor) -> Tensor:
    """Sequences (B, C, length) moved by (B,) samples to the right."""
    length = sequences.shape[2]
    sources = (torch.arange(length, device=sequences.device) - moves[:, None]).clamp(0, length - 1)
    return sequences.gather(2, sources[:, None].expand(-1, sequences.shape[1], -1))


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in the unit of `UNIT`: two float32 (C,) on the images' device.

    For uint8 they are exact, from counts of the 256 values, so the same on every device; the deviation is at least
    1/255, so that a constant channel can be divided by it. For float32 they are summed in float64; the deviation of a
    channel that is constant up to rounding counts as 1.

    Args:
        images: (N, C, *shape) of uint8 or float32, N >= 1.
    """
    return _byte_statistics(images) if images.dtype == torch.uint8 else _float_statistics(images)


def _byte_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.arange(256, dtype=torch.float64, device=images.device) / UNIT[torch.uint8]
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    shares = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    variance = (shares * (values - mean.unsqueeze(1)) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp(min=1 / UNIT[torch.uint8]).float()


def _float_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    values = images.transpose(0, 1).flatten(1).double()
    std, mean = torch.std_mean(values, dim=1, correction=0)
    rounding = torch.finfo(torch.float32).eps * values.abs().amax(dim=1)
    return mean.float(), torch.where(std > rounding, std, 1.0).float()


def _margin(length: int) -> int:
    """The largest move along an axis, pixels."""
    return max(1, length // 8)
