"""Stochastic depth: branches dropped by image, in every transformer and its twins."""

import pytest
import torch
from torch import nn

from cvit.config import ConvolutionForm, ModelConfig
from cvit.models.pack import FusedModels
from cvit.models.stochastic_depth import branch_scales, drop_probabilities
from cvit.models.vit import Block, VisionTransformer
from cvit.randomness import generator
from cvit.vocabulary import ATTENTION, CONVOLUTION

CONFIG = ModelConfig(patch_size=2, embed_dim=8, depth=3, num_heads=4, head_dim=3, mlp_ratio=2.0)
DEPTH, MEMBERS, BATCH = 3, 2, 5


def model(phase: str = ATTENTION, form: ConvolutionForm = "factorized") -> VisionTransformer:
    torch.manual_seed(0)
    found = VisionTransformer(CONFIG, phase, form)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found.double()


@pytest.mark.parametrize("depth", [2, 4, 12])
def test_probabilities_rise_linearly_to_the_last_block(depth: int) -> None:
    expected = torch.linspace(0, 0.3, depth).repeat_interleave(2)  # timm's rule for a transformer
    torch.testing.assert_close(torch.tensor(drop_probabilities(depth, 0.3)), expected)
    assert drop_probabilities(1, 0.3) == [0.3, 0.3], "a single block is the last"


def test_the_expectation_of_a_branch_stays() -> None:
    probabilities = torch.tensor([drop_probabilities(DEPTH, 0.6), drop_probabilities(DEPTH, 0.0)])
    uniform = torch.rand(MEMBERS, 2 * DEPTH, 40_000, generator=generator(0, "test"))
    scales = branch_scales(uniform >= probabilities[..., None], probabilities)
    assert scales.shape == (2 * DEPTH, MEMBERS, 40_000)
    assert torch.allclose(scales.mean(dim=2), torch.tensor(1.0), atol=0.03)
    assert (scales[:, 1] == 1).all() and (scales[:2, 0] == 1).all(), "without a probability, nothing changes"
    for branch, probability in enumerate(probabilities[0].tolist()):
        dropped_and_kept = [0.0, 1 / (1 - probability)] if probability else [1.0]
        assert scales[branch, 0].unique().tolist() == pytest.approx(dropped_and_kept)
        assert (scales[branch, 0] == 0).float().mean() == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("phase", [ATTENTION, CONVOLUTION])
@pytest.mark.parametrize("form", ["factorized", "full"])
def test_a_forward_pass_is_the_plain_one_image_by_image(phase: str, form: ConvolutionForm) -> None:
    """Against a loop that leaves out the branches of each image that are dropped."""
    net = model(phase, form)
    images = torch.randn(BATCH, 1, 8, 8, generator=generator(0, "test"), dtype=torch.float64)
    probabilities = torch.tensor([drop_probabilities(DEPTH, 0.7)], dtype=torch.float64)
    is_kept = torch.rand(1, 2 * DEPTH, BATCH, generator=generator(1, "test")) >= probabilities[..., None]
    found = net(images, branch_scales=branch_scales(is_kept, probabilities)[:, 0])
    for number, image in enumerate(images):
        tokens = net.patch_embedding(image[None])
        for place, block in enumerate(net.blocks):
            assert isinstance(block, Block)
            branches = ((block.mixing, block.mixing_norm), (block.mlp, block.mlp_norm))
            for branch, (layer, norm) in enumerate(branches, 2 * place):
                if is_kept[0, branch, number]:
                    tokens = tokens + layer(norm(tokens)) / (1 - 0.7 * place / (DEPTH - 1))
        expected = net.head(net.norm(tokens).mean(dim=1))[0]
        torch.testing.assert_close(found[number], expected, rtol=1e-10, atol=1e-12)
    assert not is_kept.all()
    assert torch.equal(net(images), net(images, branch_scales=torch.ones(2 * DEPTH, BATCH)))


def test_members_of_a_pack_drop_their_own_branches() -> None:
    net = model()
    pack = FusedModels(net, MEMBERS, torch.device("cpu"))
    for member in range(MEMBERS):
        pack.put(member, pack.matrix, dict(net.named_parameters()))
    pack.model.double()
    images = torch.randn(MEMBERS, BATCH, 1, 8, 8, generator=generator(0, "test"), dtype=torch.float64)
    scales = torch.randint(0, 3, (2 * DEPTH, MEMBERS, BATCH), generator=generator(1, "test")).double()
    together = pack.model(images, branch_scales=scales)
    same_weights = net.float().double()  # the pack keeps float32
    for member in range(MEMBERS):
        torch.testing.assert_close(together[member], same_weights(images[member], branch_scales=scales[:, member]))
