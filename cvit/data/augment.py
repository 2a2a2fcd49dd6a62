"""Augmentation and normalisation of image batches on the images' device.

All draws come from a CPU generator, so results do not depend on the device. Drawing and applying are separate, so that
members of a pack, each with its own generator, can be augmented together: concatenate their draws and apply once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cvit.config import Augmentation


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments every image with its own draw.

    Args:
        images: (B, C, H, H) of any type; what lies outside an image is 0.
        kind: "none"; "shift", a translation by up to max(1, H // 8) pixels along each axis; "crop_flip", the same
            translation (a random crop of the zero-padded image), then a horizontal flip with probability 1/2.
        generator: CPU generator; "none" draws nothing from it.
    """
    if kind == "none":
        return images
    return apply_augmentation(images, draw_augmentation(len(images), images.shape[-1], kind, generator))


def draw_augmentation(count: int, image_size: int, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """(count, 3) int64 on the CPU: rows and columns by which each image moves (down, right), and 1 where it is flipped.

    Images move first and are flipped then.
    """
    if kind == "none":
        return torch.zeros(count, 3, dtype=torch.int64)
    margin = _margin(image_size)
    moves = torch.randint(-margin, margin + 1, (count, 2), generator=generator)
    if kind == "shift":
        flips = torch.zeros(count, 1, dtype=torch.int64)
    else:
        flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([moves, flips], dim=1)


def apply_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """Moves and flips images (B, C, H, H) by the draws (B, 3) of `draw_augmentation`."""
    size, margin = images.shape[-1], _margin(images.shape[-1])
    down, right, flip = draws.to(images.device).unsqueeze(-1).unbind(1)
    pixel = torch.arange(size, device=images.device)
    rows = pixel - down + margin
    columns = torch.where(flip == 1, size - 1 - pixel, pixel) - right + margin
    padded = F.pad(images, (margin, margin, margin, margin))
    sources = rows.unsqueeze(2) * padded.shape[-1] + columns.unsqueeze(1)
    sources = sources.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, sources).view_as(images)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in units where 255 is 1: two float32 (C,) on the images' device.

    Exact, from counts of the 256 values, so the same on every device. The deviation is at least 1/255, so that a
    constant channel can be divided by it.

    Args:
        images: (N, C, H, W) uint8, N >= 1.
    """
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    shares = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    variance = (shares * (values - mean.unsqueeze(1)) ** 2).sum(dim=1)
    return mean.float(), variance.sqrt().clamp(min=1 / 255).float()


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 (images / 255 - mean) / std per channel.

    Args:
        images: (B, C, H, W) uint8.
        mean, std: (C,) float32 as `channel_statistics` returns them; on the images' device, to avoid a copy per call.
    """
    scale = (1 / (255 * std)).view(-1, 1, 1).to(images.device)
    return images * scale - (mean / std).view(-1, 1, 1).to(images.device)


def _margin(image_size: int) -> int:
    return max(1, image_size // 8)
