"""Gaussian noise on sequences and images: every one of a batch gets a window of one long row of normal draws.

The row is the same for all trainings; a draw by address, one number, says where an image's window begins. So noise for
a batch travels to a device as one number an image, and is the same on every device, digit for digit.
"""

from functools import lru_cache

import torch
from torch import Tensor

from cvit.randomness import generator

WINDOWS = torch.int32
"""The type of the places at which windows begin."""
NUM_NORMAL = 2**20
"""The length of the row: 4 MiB; longer than any window of a usual batch, so that two windows hardly ever coincide."""


@lru_cache(maxsize=4)
def normal_row(device: torch.device) -> Tensor:
    """The row of normal draws, (NUM_NORMAL,) float32 on a device."""
    return torch.randn(NUM_NORMAL, generator=generator(0, "noise")).to(device)


def draw_windows(count: int, source: torch.Generator) -> Tensor:
    """The beginnings of the windows of a batch, (count,) int32 on the CPU."""
    return torch.randint(NUM_NORMAL, (count,), generator=source, dtype=WINDOWS)


def noisy(images: Tensor, windows: Tensor, std: Tensor, row: Tensor) -> Tensor:
    """Normalised images with noise.

    Args:
        images: (M, B, C, *shape).
        windows: (M, B), by `draw_windows`, on the images' device.
        std: (M,), the standard deviation of each member's noise.
        row: `normal_row` of the device.
    """
    places = torch.arange(images[0, 0].numel(), device=images.device)
    noise = row[(windows[..., None] + places) % NUM_NORMAL].view_as(images)
    return images + std.view(-1, *(1,) * (images.ndim - 1)) * noise
