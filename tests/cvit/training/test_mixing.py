"""MixUp and CutMix: as torchvision mixes, on the same draws."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import betainc
from torch import Tensor
from torchvision.transforms import v2

from cvit.randomness import generator
from cvit.training.mixing import NUM_UNIFORM, mixed, mixtures, partners, unmixed


def uniform(count: int) -> Tensor:
    return torch.rand(count, NUM_UNIFORM, generator=generator(0, "test"), dtype=torch.float64)


def images_and_labels(side: int) -> tuple[Tensor, Tensor]:
    source = generator(1, "test")
    return torch.randn(12, 3, side, side, generator=source), torch.randint(0, 10, (12,), generator=source)


@pytest.mark.parametrize("share", [0.0, 0.137, 0.5, 1.0])
def test_mixup_mixes_as_torchvision(share: float) -> None:
    images, labels = images_and_labels(8)
    parameters = {"lam": share, "labels": labels, "batch_size": len(labels)}
    transform = v2.MixUp(num_classes=10)
    mixture = torch.tensor([[share, share, 0, 0, 0, 0]])
    torch.testing.assert_close(mixed(images[None], mixture)[0], transform.transform(images, parameters))
    one_hot = [torch.nn.functional.one_hot(found, 10) for found in (labels, partners(labels[None])[0])]
    torch.testing.assert_close(share * one_hot[0] + (1 - share) * one_hot[1], transform.transform(labels, parameters))


@pytest.mark.parametrize(("side", "alpha"), [(8, 1.0), (32, 1.0), (32, 0.3)])
def test_cutmix_mixes_as_torchvision_on_the_same_draws(side: int, alpha: float) -> None:
    images, labels = images_and_labels(side)
    transform = v2.CutMix(num_classes=10, alpha=alpha)
    sizes = set()
    for seed in range(100):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parameters = transform.make_params([images])
            torch.manual_seed(seed)
            share = float(transform._dist.sample(()))
            right, down = (int(torch.randint(side, size=(1,))) for _ in range(2))
        quantile = betainc(alpha, alpha, share)
        draws = torch.tensor([[0.0, quantile, (down + 0.5) / side, (right + 0.5) / side]], dtype=torch.float64)
        (mixture,) = mixtures(draws, 0.0, alpha, (side, side))
        left, top, end, bottom = parameters["box"]
        assert mixture[2:].tolist() == [top, left, bottom, end]
        assert float(mixture[0]) == pytest.approx(parameters["lam_adjusted"], abs=1e-6)
        expected = transform.transform(images, parameters | {"labels": labels, "batch_size": len(labels)})
        assert torch.equal(mixed(images[None], mixture[None])[0], expected)
        sizes.add((bottom - top) * (end - left))
    assert len(sizes) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    found = mixtures(uniform(4000), alpha, 0.0, (8, 8))
    assert torch.equal(found[:, 0], found[:, 1]) and not found[:, 2:].any()
    assert stats.kstest(found[:, 0].numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_both_take_turns_at_random_and_neither_mixes_nothing() -> None:
    draws = uniform(4000)
    both, mixup, cutmix = (mixtures(draws, *alphas, (32, 32)) for alphas in ((0.8, 1.0), (0.8, 0.0), (0.0, 1.0)))
    is_mixup = (both == mixup).all(dim=1)
    assert (is_mixup | (both == cutmix).all(dim=1)).all(), "each step is mixed as by one of the two alone"
    assert is_mixup.float().mean() == pytest.approx(0.5, abs=0.03)
    assert mixtures(draws[:3], 0.0, 0.0, (32, 32)).tolist() == [list(unmixed(2))] * 3


def test_every_member_of_a_pack_has_its_own_mixture() -> None:
    images = torch.randn(4, 6, 3, 8, 8, generator=generator(0, "test"))
    mixture = torch.cat([mixtures(uniform(2), 0.0, 1.0, (8, 8)), mixtures(uniform(1), 1.0, 0.0, (8, 8))])
    mixture = torch.cat([mixture, torch.tensor([unmixed(2)])])
    together = mixed(images, mixture)
    for number in range(4):
        assert torch.equal(together[number], mixed(images[number, None], mixture[number, None])[0])
    assert torch.equal(together[3], images[3]) and not torch.equal(together[2], images[2])


@pytest.mark.parametrize("shape", [(9,), (3, 4, 5)])
def test_mixup_mixes_images_on_any_axes(shape: tuple[int, ...]) -> None:
    images = torch.randn(1, 5, 2, *shape, generator=generator(0, "test"))
    mixture = mixtures(uniform(1), 1.0, 0.0, shape)
    share = float(mixture[0, 0])
    expected = share * images[0] + (1 - share) * torch.from_numpy(np.roll(images[0].numpy(), 1, axis=0))
    torch.testing.assert_close(mixed(images, mixture)[0], expected)
