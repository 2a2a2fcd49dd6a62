"""Random erasing: rectangles as torchvision draws them."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from cvit.data.erasing import NUM_UNIFORM, RATIO, SCALE, boxes, erased, inside
from cvit.randomness import generator

TRIES = (NUM_UNIFORM - 3) // 2


def torchvisions(seed: int, side: int) -> tuple[dict[str, int], Tensor]:
    """The rectangle that torchvision draws, and the uniform draws that lead to it, read from the same stream."""
    transform = v2.RandomErasing(p=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parameters = transform.make_params([torch.zeros(3, side, side)])
        torch.manual_seed(seed)
        uniform = torch.zeros(NUM_UNIFORM, dtype=torch.float64)
        low, high = torch.log(torch.tensor(RATIO)).tolist()
        height = width = side
        for number in range(TRIES):
            share, log_ratio = (torch.empty(1).uniform_(*ends).item() for ends in (SCALE, (low, high)))
            uniform[3 + number] = (share - SCALE[0]) / (SCALE[1] - SCALE[0])
            uniform[3 + TRIES + number] = (log_ratio - low) / (high - low)
            height, width = (round(math.sqrt(share * side * side * math.exp(sign * log_ratio))) for sign in (1, -1))
            if height < side and width < side:
                break
        for place, length in ((1, height), (2, width)):
            count = side - length + 1
            uniform[place] = (int(torch.randint(0, count, size=(1,))) + 0.5) / count
    return {name: parameters[name] for name in "ijhw"}, uniform


@pytest.mark.parametrize("side", [8, 32])
def test_the_same_draws_erase_what_torchvision_erases(side: int) -> None:
    drawn = [torchvisions(seed, side) for seed in range(300)]
    found = boxes(torch.stack([uniform for _, uniform in drawn]), (side, side), probability=1.0)
    images = torch.randn(len(drawn), 3, side, side, generator=generator(0, "test"))
    results = erased(images, found)
    for (parameters, _), image, result in zip(drawn, images, results, strict=True):
        row, column, height, width = (parameters[name] for name in "ijhw")
        assert torch.equal(result, functional.erase(image, row, column, height, width, v=torch.zeros(1)))


@pytest.mark.parametrize("side", [4, 32])
def test_shares_and_ratios_are_in_their_ranges(side: int) -> None:
    count = 20_000
    found = boxes(torch.rand(count, NUM_UNIFORM, generator=generator(0, "test")), (side, side), probability=1.0)
    top, left, bottom, right = found.int().T
    height, width = bottom - top, right - left
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= side).all() and (right <= side).all()
    assert (height < side).all() and (width < side).all()
    if side == 32:
        assert (height * width > 0).all()
        area = height * width / side**2
        assert 0.8 * SCALE[0] < area.min() < 0.025 and 0.32 < area.max() < 1.1 * SCALE[1], "sides are whole pixels"
        assert area.mean() == pytest.approx(sum(SCALE) / 2, abs=0.01)
        assert (height / width).log().mean() == pytest.approx(math.log(RATIO[0] * RATIO[1]) / 2, abs=0.02)
        assert (top == 0).any() and (bottom == side).any() and (left == 0).any() and (right == side).any()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_share_of_the_images_is_erased(probability: float) -> None:
    found = boxes(torch.rand(20_000, NUM_UNIFORM, generator=generator(0, "test")), (16, 16), probability)
    share = (found != 0).any(dim=1).float().mean()
    assert float(share) == pytest.approx(probability, abs=0.01 if 0 < probability < 1 else 0)


def test_the_inside_of_a_rectangle() -> None:
    mask = inside(torch.tensor([[[1, 2, 3, 5]], [[0, 0, 0, 0]]]), (4, 6))
    expected = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    expected[0, 0, 1:3, 2:5] = True
    assert torch.equal(mask, expected)
