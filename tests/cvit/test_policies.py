"""Augmentation policies: every operation is torchvision's, and so are the magnitudes."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cvit.config import AugmentationPolicy, TrialConfig
from cvit.data.operations import OPERATIONS, settings
from cvit.data.policies import BINS, apply_policy, code_table, draw_policy, magnitudes, meaning
from cvit.parameters import ConfigError
from cvit.randomness import generator

POLICIES: dict[AugmentationPolicy, Any] = {"trivial_augment": v2.TrivialAugmentWide(), "rand_augment": v2.RandAugment()}
NUM_CODES = len(POLICIES) * len(OPERATIONS) * BINS * 2
BLENDS = {"Color", "Contrast", "Sharpness"}
GEOMETRIC = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}


def noise(count: int, channels: int, side: int) -> Tensor:
    """Random images: some of all values, some of a few grays, some of one value."""
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator(0, "test"), dtype=torch.uint8)
    images[1::4] = images[1::4] // 4 + 60
    images[2::4] = images[2::4] // 64 * 80
    images[3::16] = images[3::16, :, :1, :1]
    return images


def photographs(count: int, channels: int, side: int) -> Tensor:
    """Pieces of photographs, or of scanned digits where these have the size."""
    if (channels, side) == (1, 8):
        values, _ = load_digits(return_X_y=True)
        digits = torch.from_numpy(np.asarray(values) * 255 / 16).to(torch.uint8).view(-1, 1, 8, 8)
        return digits[torch.arange(count) % len(digits)]
    pixels = np.array(load_sample_image("china.jpg"))[:416, :640]
    pieces = torch.from_numpy(pixels).permute(2, 0, 1).unfold(1, side, side).unfold(2, side, side)
    pieces = pieces.flatten(1, 2).transpose(0, 1)[:, :channels]
    return pieces[torch.arange(count) % len(pieces)].contiguous()


def is_between_pixels(code: int, side: int) -> Tensor:
    """True where a pixel's source lies halfway between two pixels up to rounding, so that it may be either."""
    _, a, b, c, d, e, f, *_ = settings(*meaning(code, side), side)
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    x, y = line[None, :], line[:, None]
    places = torch.stack([a * x + b * y + c, d * x + e * y + f]) + (side - 1) / 2
    return ((places - places.floor() - 0.5).abs() < 1e-4).any(dim=0)


@pytest.mark.parametrize("source", [noise, photographs])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32])
def test_every_operation_at_every_magnitude_is_torchvisions(source: Any, channels: int, side: int) -> None:
    """One batch with an image of every third or fifth code, against torchvision image by image.

    Colour, contrast and sharpness may differ by one gray level in few pixels: torchvision adds products with one
    rounding on some CPUs, and it sums the parts of sharpness in another order; both then round down. Everything else is
    equal, but for pixels whose source lies halfway between two.
    """
    # No divisor of 2 · 31, so that all bins and both signs occur.
    codes = torch.arange(0, NUM_CODES, 3 if side == 8 else 5, dtype=torch.int16)
    images = source(len(codes), channels, side)
    found = apply_policy(images, codes[:, None], code_table(side))
    assert found.dtype == torch.uint8 and found.shape == images.shape
    differing: dict[str, list[Tensor]] = {name: [] for name in OPERATIONS}
    policy = POLICIES["trivial_augment"]
    for code, image, result in zip(codes.tolist(), images, found, strict=True):
        name, magnitude = meaning(code, side)
        expected = policy._apply_image_or_video_transform(
            image, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=policy._fill
        )
        difference = (result.int() - expected.int()).abs()
        if name in GEOMETRIC:
            difference = difference.masked_fill(is_between_pixels(code, side), 0)
        differing[name].append(difference)
    for name, differences in differing.items():
        difference = torch.stack(differences)
        assert difference.max() <= (name in BLENDS), name
        assert (difference > 0).float().mean() < 0.03, name
    changed = (found != images).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.6 and not changed[0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("side", [8, 32, 96])
def test_magnitudes_are_those_of_torchvision(policy: AugmentationPolicy, side: int) -> None:
    space = POLICIES[policy]._AUGMENTATION_SPACE
    assert list(space) == list(OPERATIONS)
    for name, (values, is_signed) in space.items():
        expected = values(BINS, side, side)
        assert magnitudes(policy, name, side) == ([0.0] * BINS if expected is None else expected.tolist()), name
        if policy == "trivial_augment":
            first = OPERATIONS.index(name) * BINS * 2
            drawn = [meaning(code, side)[1] for code in range(first, first + BINS * 2)]
            most = max(map(abs, drawn))
            assert (min(drawn) == -most) == (is_signed or most == 0), name


def test_trivial_augment_draws_every_code_equally_often() -> None:
    codes = draw_policy(200_000, "trivial_augment", generator(0, "test"))
    assert codes.shape == (200_000, 1) and codes.dtype == torch.int16
    counts = torch.bincount(codes[:, 0].int(), minlength=NUM_CODES)
    expected = 200_000 / (len(OPERATIONS) * BINS * 2)
    assert not counts[len(OPERATIONS) * BINS * 2 :].any()
    # The sum of squared deviations of n equally likely values is about n - 1, with a standard deviation of √(2n).
    kinds = len(OPERATIONS) * BINS * 2
    excess = float(((counts[:kinds] - expected) ** 2 / expected).sum()) - (kinds - 1)
    assert abs(excess) < 4 * math.sqrt(2 * kinds)


def test_rand_augment_draws_two_operations_at_magnitude_9() -> None:
    codes = draw_policy(20_000, "rand_augment", generator(0, "test"))
    assert codes.shape == (20_000, 2)
    found = [[meaning(int(code), 32) for code in column] for column in codes[:2000].T]
    for name, magnitude in itertools.chain(*found):
        values = POLICIES["rand_augment"]._AUGMENTATION_SPACE[name][0](BINS, 32, 32)
        assert abs(magnitude) == (0.0 if values is None else float(values[9]))
    for column in codes.T:
        _, counts = column.unique(return_counts=True)
        assert len(counts) == 2 * len(OPERATIONS)
        assert torch.allclose(counts / 20_000, torch.tensor(1 / 28), atol=0.006)
    assert abs(torch.corrcoef(codes.T.float())[0, 1]) < 0.03


def test_draws_are_repeatable_and_none_draws_nothing() -> None:
    for policy in POLICIES:
        first, again = (draw_policy(64, policy, generator(3, "test", 5)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, draw_policy(64, policy, generator(3, "test", 6)))
    source = generator(0, "test")
    assert draw_policy(64, "none", source).shape == (64, 0)
    assert torch.equal(source.get_state(), generator(0, "test").get_state())


def test_two_operations_are_done_one_after_the_other() -> None:
    images, table = photographs(64, 3, 32), code_table(32)
    codes = draw_policy(64, "rand_augment", generator(1, "test"))
    after_first = apply_policy(images, codes[:, :1], table)
    assert torch.equal(apply_policy(images, codes, table), apply_policy(after_first, codes[:, 1:], table))


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images_keep_their_shape(side: int) -> None:
    images = noise(NUM_CODES, 3, side)
    found = apply_policy(images, torch.arange(NUM_CODES, dtype=torch.int16)[:, None], code_table(side))
    sharpened = [code for code in range(NUM_CODES) if meaning(code, side)[0] == "Sharpness"]
    assert found.shape == images.shape
    assert side == 3 or torch.equal(found[sharpened], images[sharpened]), "no pixel has eight neighbours"


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3])
def test_results_do_not_depend_on_the_device(channels: int) -> None:
    images, codes = photographs(NUM_CODES, channels, 32), torch.arange(NUM_CODES, dtype=torch.int16)[:, None]
    on_cpu = apply_policy(images, codes, code_table(32))
    on_gpu = apply_policy(images.cuda(), codes.cuda(), code_table(32).cuda()).cpu()
    difference = (on_cpu.int() - on_gpu.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3, "the mean of contrast may round otherwise"


@pytest.mark.parametrize("policy", POLICIES)
def test_images_of_other_channels_are_refused(policy: AugmentationPolicy) -> None:
    with pytest.raises(
        ConfigError, match=r"^augmentation_policy '\w+' is defined for images of 1 or 3 channels, .* 2$"
    ):
        TrialConfig.from_flat({"augmentation_policy": policy, "in_channels": 2})
    TrialConfig.from_flat({"augmentation_policy": "none", "in_channels": 2})
