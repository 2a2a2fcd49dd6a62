import itertools

import pytest
import torch
from torch import Tensor

from cvit.config import Augmentation
from cvit.data.augment import apply_augmentation, channel_statistics, draw_augmentation
from cvit.randomness import generator
from cvit.training.batches import LabelledImages, PackData


def batch(count: int, channels: int, size: int) -> Tensor:
    return torch.randint(1, 256, (count, channels, size, size), generator=generator(0, "test"), dtype=torch.uint8)


def augment(images: Tensor, kind: Augmentation, source: torch.Generator) -> Tensor:
    """Draws and applies, as a training step does."""
    return apply_augmentation(images, draw_augmentation(len(images), tuple(images.shape[2:]), kind, source))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """As for the only member of a pack."""
    split = LabelledImages(images, torch.zeros(len(images), dtype=torch.int64))
    return PackData(split, (), split, split, mean[None], std[None]).normalised(images[None])[0]


def reference(images: Tensor, draws: Tensor) -> Tensor:
    """Moves and flips pixel by pixel."""
    size = images.shape[-1]
    result = torch.zeros_like(images)
    for image, out, (down, right, flip) in zip(images, result, draws.tolist(), strict=True):
        for y in range(size):
            for x in range(size):
                if 0 <= y - down < size and 0 <= x - right < size:
                    out[:, y, size - 1 - x if flip else x] = image[:, y - down, x - right]
    return result


@pytest.mark.parametrize("kind", ["shift", "crop_flip"])
@pytest.mark.parametrize(("channels", "size"), [(1, 4), (1, 8), (3, 16)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_equal_the_reference(kind: Augmentation, channels: int, size: int, dtype: torch.dtype) -> None:
    images = batch(12, channels, size).to(dtype)
    draws = draw_augmentation(12, (size, size), kind, generator(1, "augmentation"))
    expected = reference(images, draws)
    result = augment(images, kind, generator(1, "augmentation"))
    assert result.dtype == dtype and result.is_contiguous()
    assert torch.equal(result, expected)
    assert not torch.equal(result, images)


@pytest.mark.parametrize(("size", "most"), [(4, 1), (8, 1), (16, 2), (32, 4)])
def test_draws_cover_their_range_evenly(size: int, most: int) -> None:
    draws = draw_augmentation(20_000, (size, size), "crop_flip", generator(0, "augmentation"))
    for column in (0, 1):
        values, counts = draws[:, column].unique(return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        assert torch.allclose(counts / 20_000, torch.tensor(1 / len(values)), atol=0.02)
    assert abs(draws[:, 2].float().mean().item() - 0.5) < 0.02
    assert abs(torch.corrcoef(draws.T.float()).triu(1)).max() < 0.03
    assert draw_augmentation(100, (size, size), "shift", generator(0, "augmentation"))[:, 2].sum() == 0


def test_none_changes_and_draws_nothing() -> None:
    images, source = batch(3, 1, 8), generator(0, "augmentation")
    assert torch.equal(augment(images, "none", source), images)
    assert torch.equal(source.get_state(), generator(0, "augmentation").get_state())


def test_every_image_has_its_own_draw_and_draws_are_repeatable() -> None:
    images = batch(1, 1, 16).expand(64, -1, -1, -1)
    first, again = (augment(images, "crop_flip", generator(3, "augmentation", 5)) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) > 30
    assert not torch.equal(first, augment(images, "crop_flip", generator(3, "augmentation", 6)))


def test_members_of_a_pack_can_be_augmented_together() -> None:
    images = batch(10, 3, 8)
    draws = torch.cat([draw_augmentation(5, (8, 8), "crop_flip", generator(seed, "augmentation")) for seed in (0, 1)])
    apart = [augment(images[5 * seed :][:5], "crop_flip", generator(seed, "augmentation")) for seed in (0, 1)]
    assert torch.equal(apply_augmentation(images, draws), torch.cat(apart))


@pytest.mark.gpu
def test_results_do_not_depend_on_the_device() -> None:
    images = batch(16, 3, 32)
    on_cpu = augment(images, "crop_flip", generator(0, "augmentation"))
    assert torch.equal(augment(images.cuda(), "crop_flip", generator(0, "augmentation")).cpu(), on_cpu)
    for cpu, cuda in zip(channel_statistics(images), channel_statistics(images.cuda()), strict=True):
        assert torch.allclose(cpu, cuda.cpu(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(40,), (8, 24), (6, 16, 8)])
def test_images_of_any_shape_move_along_every_axis(shape: tuple[int, ...]) -> None:
    """Against a walk over all pixels; axes of other lengths have margins of their own. Sequences keep their ends."""
    images = torch.randn(6, 2, *shape, generator=generator(0, "test"))
    draws = draw_augmentation(6, shape, "shift", generator(1, "augmentation"))
    assert draws.shape == (6, len(shape) + 1) and not draws[:, -1].any()
    expected = torch.zeros_like(images)
    for image, out, (*moves, _) in zip(images, expected, draws.tolist(), strict=True):
        for place in itertools.product(*map(range, shape)):
            source = [at - move for at, move in zip(place, moves, strict=True)]
            if len(shape) == 1:
                source = [min(max(source[0], 0), shape[0] - 1)]
            if all(0 <= at < length for at, length in zip(source, shape, strict=True)):
                out[(slice(None), *place)] = image[(slice(None), *source)]
    assert torch.equal(apply_augmentation(images, draws), expected)
    many = draw_augmentation(2000, shape, "shift", generator(1, "augmentation"))
    for moves, length in zip(many.T, shape, strict=False):
        assert (int(moves.min()), int(moves.max())) == (-max(1, length // 8), max(1, length // 8))


def test_draws_of_square_images_are_those_of_results_stored_before() -> None:
    draws = draw_augmentation(4, (16, 16), "crop_flip", generator(3, "augmentation", 5))
    source = generator(3, "augmentation", 5)
    moves = torch.randint(-2, 3, (4, 2), generator=source)
    assert torch.equal(draws, torch.cat([moves, torch.randint(0, 2, (4, 1), generator=source)], dim=1))


# Statistics


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(40,), (8, 8), (3, 4, 5)])
def test_normalised_images_have_mean_0_and_deviation_1(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images = torch.randint(1, 256, (200, 3, *shape), generator=generator(0, "test"), dtype=torch.uint8)
    images[:, 1] //= 4
    axes = (0, *range(2, images.ndim))
    expected = images.double() / 255
    if dtype == torch.float32:  # a unit of its own, far from 0 and 1
        expected = 1000 + 50 * expected
        images = expected.float()
    mean, std = channel_statistics(images)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected.mean(dim=axes), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(std.double(), expected.std(dim=axes, correction=0), rtol=1e-5, atol=1e-7)
    normal = normalise(images, mean, std)
    assert normal.dtype == torch.float32 and normal.shape == images.shape
    tolerance = 1e-4 if dtype == torch.uint8 else 1e-3  # 1000 of 14 deviations in float32
    assert torch.allclose(normal.mean(dim=axes), torch.zeros(3), atol=tolerance)
    assert torch.allclose(normal.std(dim=axes, correction=0), torch.ones(3), atol=tolerance)


def test_constant_channel_is_normalised_to_zero() -> None:
    images = torch.full((4, 1, 8, 8), 77, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert std.item() == pytest.approx(1 / 255)
    assert normalise(images, mean, std).abs().max() < 1e-4


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4, 1e-9])
def test_constant_channel_of_floats_is_normalised_to_zero(value: float) -> None:
    images = torch.full((7, 1, 9), value)
    mean, std = channel_statistics(images)
    assert std.item() == 1.0
    assert normalise(images, mean, std).abs().max() <= 1e-6 * abs(value)
