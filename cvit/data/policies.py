"""Augmentation policies: which operation of `cvit.data.operations` each image gets, and how strongly.

A draw is one number per operation, its *code*, which says operation, magnitude and sign. The device looks up what a
code means, so that a batch of 64 images takes 128 bytes. Code 0 is the identity.
"""

from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor

from cvit.config import AugmentationPolicy
from cvit.data.operations import OPERATIONS, apply_operations, settings

BINS = 31
"""The number of magnitudes of an operation, evenly spaced."""
RAND_AUGMENT_BIN = 9
"""The magnitude of RandAugment, torchvision's default."""
OPERATIONS_PER_IMAGE = {"none": 0, "trivial_augment": 1, "rand_augment": 2}
"""The number of operations that a policy does to an image, one after the other."""
CODES = torch.int16
"""The type of codes."""

_SIGNS = 2
_CODES_PER_POLICY = len(OPERATIONS) * BINS * _SIGNS
_POLICIES = tuple(policy for policy in get_args(AugmentationPolicy) if policy != "none")
_BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
_RAND_AUGMENT_CODES = torch.tensor(
    [
        _POLICIES.index("rand_augment") * _CODES_PER_POLICY + (operation * BINS + RAND_AUGMENT_BIN) * _SIGNS + sign
        for operation in range(len(OPERATIONS))
        for sign in range(_SIGNS)
    ],
    dtype=CODES,
)
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_BLENDS)
_BITS = 8


def draw_policy(count: int, policy: AugmentationPolicy, generator: torch.Generator) -> Tensor:
    """Draws for a batch of images, (count, operations) int16 codes on the CPU.

    Args:
        policy: "none"; "trivial_augment", one of 14 operations with one of 31 magnitudes and a sign, all equally
            likely (Müller and Hutter 2021, "wide"); "rand_augment", two of the 14 operations at the magnitude 9 of 31,
            with a sign (Cubuk et al. 2020).
        generator: CPU generator; "none" draws nothing from it.
    """
    shape = (count, OPERATIONS_PER_IMAGE[policy])
    if policy == "none":
        return torch.zeros(shape, dtype=CODES)
    if policy == "rand_augment":
        return _RAND_AUGMENT_CODES[torch.randint(len(_RAND_AUGMENT_CODES), shape, generator=generator)]
    first = _POLICIES.index(policy) * _CODES_PER_POLICY
    return torch.randint(first, first + _CODES_PER_POLICY, shape, generator=generator, dtype=CODES)


def meaning(code: int, side: int) -> tuple[str, float]:
    """The operation and the magnitude of a code, for images of so many pixels along each side."""
    policy, rest = divmod(code, _CODES_PER_POLICY)
    operation, rest = divmod(rest, BINS * _SIGNS)
    place, is_negative = divmod(rest, _SIGNS)
    name = OPERATIONS[operation]
    magnitude = magnitudes(_POLICIES[policy], name, side)[place]
    return name, -magnitude if is_negative and name in _SIGNED else magnitude


def magnitudes(policy: AugmentationPolicy, operation: str, side: int) -> list[float]:
    """The magnitudes of an operation, in the units of `cvit.data.operations.settings`.

    TrivialAugment translates by up to 32 pixels whatever the size of the image, RandAugment by a share of its side.
    """
    is_wide = policy == "trivial_augment"
    if operation == "Posterize":
        lost = torch.arange(BINS) / ((BINS - 1) / (6 if is_wide else 4))
        return (_BITS - lost).round().tolist()
    if operation == "Solarize":
        return torch.linspace(1.0, 0.0, BINS).tolist()
    if operation in ("ShearX", "ShearY"):
        most = 0.99 if is_wide else 0.3
    elif operation in ("TranslateX", "TranslateY"):
        most = 32.0 if is_wide else 150.0 / 331.0 * side
    elif operation == "Rotate":
        most = 135.0 if is_wide else 30.0
    elif operation in _BLENDS:
        most = 0.99 if is_wide else 0.9
    else:
        return [0.0] * BINS
    return torch.linspace(0.0, most, BINS).tolist()


@lru_cache(maxsize=4)
def code_table(side: int) -> Tensor:
    """The settings of every code, (number of codes, settings) float32 on the CPU, for images of this side."""
    codes = range(len(_POLICIES) * _CODES_PER_POLICY)
    return torch.tensor([settings(*meaning(code, side), side) for code in codes])


def apply_policy(images: Tensor, codes: Tensor, table: Tensor) -> Tensor:
    """Does the operations of their codes to images.

    Args:
        images: (B, C, side, side) uint8 of 1 or 3 channels.
        codes: (B, operations) int16, by `draw_policy`, on the images' device.
        table: `code_table(side)` on the images' device.
    """
    for column in codes.unbind(1):
        images = apply_operations(images, table.index_select(0, column.int()))
    return images
