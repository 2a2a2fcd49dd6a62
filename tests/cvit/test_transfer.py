from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cvit.config import ConvolutionForm, ModelConfig
from cvit.geometry import nearest_offsets
from cvit.init.transfer import factorize, logit_error, point_heads_at, transfer
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FullConvolution
from cvit.models.vit import VisionTransformer

# (image size, patch size, heads): grids of 1 to 6 patches a side
GEOMETRIES = [
    (4, 4, 1),
    (4, 2, 1),
    (4, 2, 4),
    (6, 3, 9),
    (8, 2, 1),
    (8, 2, 4),
    (8, 2, 9),
    (8, 2, 12),
    (8, 2, 25),
    (9, 3, 25),
    (6, 1, 12),
]


def pair(
    form: ConvolutionForm = "factorized", dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: Any
) -> tuple[VisionTransformer, VisionTransformer]:
    """A twin and an attention model, all their parameters random, biases and norms too."""
    small: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 2,
        "in_channels": 2,
        "embed_dim": 12,
        "depth": 2,
        "num_heads": 9,
    }
    config = ModelConfig(
        **(small | {"head_dim": 5, "mlp_ratio": 2.0, "position_encoding": "relative+absolute"} | sizes)
    )
    generator = torch.Generator().manual_seed(seed)
    models = (VisionTransformer(config, "convolution", form), VisionTransformer(config, "attention", form))
    for model in models:
        model.to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return models


def images_for(model: VisionTransformer, count: int = 3) -> Tensor:
    side = model.config.image_size
    shape = (count, model.config.in_channels, side, side)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return drawn.to(next(model.parameters()).dtype)


def mixing(model: VisionTransformer, block: int = 0) -> Any:
    return model.blocks[block].get_submodule("mixing")


@pytest.mark.parametrize(("image_size", "patch_size", "num_heads"), GEOMETRIES)
def test_attention_computes_the_factorized_convolution(image_size: int, patch_size: int, num_heads: int) -> None:
    twin, model = pair(image_size=image_size, patch_size=patch_size, num_heads=num_heads)
    images = images_for(twin)
    assert (model(images) - twin(images)).abs().max() > 1e-2
    assert transfer(twin, model, sharpness=80.0) == 0.0
    assert (model(images) - twin(images)).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("image_size", "patch_size", "num_heads"),
    [g for g in GEOMETRIES if g[2] >= 9 or g == (4, 4, 1)],
)
def test_attention_with_wide_heads_computes_the_full_convolution(
    image_size: int, patch_size: int, num_heads: int
) -> None:
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "num_heads": num_heads}
    twin, model = pair("full", head_dim=12, **sizes)
    images = images_for(twin)
    # The error is the root of what rounding leaves of 1 - 1.
    assert transfer(twin, model, sharpness=80.0) < 1e-7
    assert (model(images) - twin(images)).abs().max() <= 1e-10


@pytest.mark.parametrize(("form", "num_heads"), [("factorized", 1), ("factorized", 9), ("full", 9), ("full", 25)])
def test_in_float32_the_error_is_that_of_rounding(form: ConvolutionForm, num_heads: int) -> None:
    twin, model = pair(form, torch.float32, num_heads=num_heads, head_dim=12)
    transfer(twin, model, sharpness=80.0)
    images = images_for(twin)
    error = logit_error(twin, model, images)
    assert error <= 1e-5
    with torch.no_grad():
        expected = twin(images)
        assert error == pytest.approx(float((model(images) - expected).norm() / expected.norm()))


@settings(max_examples=20)
@given(
    grid_size=st.integers(1, 5),
    patch_size=st.integers(1, 2),
    num_heads=st.integers(1, 25),
    head_dim=st.integers(1, 14),
    embed_dim=st.integers(2, 12),
    seed=st.integers(0, 2**32),
)
def test_any_factorized_twin_is_carried_over(grid_size: int, patch_size: int, num_heads: int, **sizes: Any) -> None:
    heads = min(num_heads, (2 * grid_size - 1) ** 2)
    twin, model = pair(image_size=grid_size * patch_size, patch_size=patch_size, num_heads=heads, depth=1, **sizes)
    transfer(twin, model, sharpness=80.0)
    images = images_for(twin)
    torch.testing.assert_close(model(images), twin(images), rtol=0, atol=1e-10)


def test_the_attention_layer_equals_conv2d_borders_included() -> None:
    """Against a kernel put together here, not against this project's own convolution."""
    twin, model = pair(num_heads=9, head_dim=5, depth=1)
    transfer(twin, model, sharpness=80.0)
    source, layer = mixing(twin), mixing(model)
    kernel = torch.zeros(12, 12, 3, 3, dtype=torch.float64)
    for head, (dy, dx) in enumerate(nearest_offsets(9, (4, 4))):
        part = slice(5 * head, 5 * (head + 1))
        kernel[:, :, 1 + dy, 1 + dx] = source.output.weight[:, part] @ source.value.weight[part]
    grid = torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = nn.functional.conv2d(grid, kernel, source.output.bias, padding=1)
    mixed = layer(grid.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-10)
    corner = source.output.bias + sum(  # offsets (0, 0), (0, 1), (1, 0), (1, 1) are inside; the others see zeros
        kernel[:, :, 1 + dy, 1 + dx] @ grid[0, :, dy, dx] for dy in (0, 1) for dx in (0, 1)
    )
    torch.testing.assert_close(mixed[0, :, 0, 0], corner, rtol=0, atol=1e-10)


def test_the_transfer_changes_neither_the_twin_nor_the_queries() -> None:
    twin, model = pair()
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    queries = [mixing(model, i).query.weight.clone() for i in range(2)]
    transfer(twin, model, sharpness=4.0)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert all(torch.equal(mixing(model, i).query.weight, queries[i]) for i in range(2))
    shared = {name: value for name, value in model.state_dict().items() if ".mixing." not in name}
    assert all(torch.equal(value, before[name]) for name, value in shared.items())


# Rank


def random_kernel(offsets: int = 9, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(offsets, dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("head_dim", [1, 3, 7, 8, 11])
def test_the_error_of_the_rank_is_eckart_youngs(head_dim: int) -> None:
    weight = random_kernel()
    value, output, offsets, error = factorize(weight, nearest_offsets(9, (4, 4)), 9, head_dim)
    assert value.shape == (9, head_dim, 8) and output.shape == (9, 8, head_dim)
    assert offsets == nearest_offsets(9, (4, 4))
    singular = np.stack([np.linalg.svd(matrix, compute_uv=False) for matrix in weight.numpy()])
    expected = np.sqrt(np.sum(singular[:, head_dim:] ** 2) / np.sum(singular**2))
    actual = float((output @ value - weight).norm() / weight.norm())
    # Where nothing is left out, the error is the root of what rounding leaves of 1 - 1.
    assert error == pytest.approx(expected, rel=1e-10, abs=1e-7)
    assert actual == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_error_falls_with_the_width_of_the_heads() -> None:
    weight = random_kernel()
    errors = [factorize(weight, nearest_offsets(9, (4, 4)), 9, head_dim)[3] for head_dim in range(1, 9)]
    assert all(wider < narrower for narrower, wider in pairwise(errors))
    assert errors[0] < 1 and errors[-1] < 1e-7


def test_the_error_that_the_transfer_reports_is_the_largest_over_the_blocks() -> None:
    twin, model = pair("full", head_dim=4)
    parts = [factorize(mixing(twin, i).weight.detach(), nearest_offsets(9, (4, 4)), 9, 4) for i in range(2)]
    errors = [error for *_, error in parts]
    assert errors[0] != errors[1]
    assert transfer(twin, model, sharpness=80.0) == max(errors)
    # The attention computes the convolution of the approximated kernel, exactly.
    with torch.no_grad():
        for i, (value, output, *_) in enumerate(parts):
            mixing(twin, i).weight.copy_(output @ value)
    images = images_for(twin)
    assert (model(images) - twin(images)).abs().max() <= 1e-10


@pytest.mark.parametrize("num_heads", [1, 4, 8])
def test_fewer_heads_keep_the_offsets_of_most_energy(num_heads: int) -> None:
    size = torch.tensor([1.0, 5, 3, 9, 2, 8, 4, 7, 6], dtype=torch.float64)
    weight = random_kernel()
    weight *= (size / weight.flatten(1).norm(dim=1))[:, None, None]
    value, output, offsets, error = factorize(weight, nearest_offsets(9, (4, 4)), num_heads, 8)
    kept = sorted(sorted(range(9), key=lambda i: -size[i])[:num_heads])
    assert offsets == tuple(nearest_offsets(9, (4, 4))[i] for i in kept)
    torch.testing.assert_close(output @ value, weight[kept], rtol=0, atol=1e-12)
    lost = sum(float(size[i]) ** 2 for i in range(9) if i not in kept)
    assert error == pytest.approx((lost / float(size.square().sum())) ** 0.5)


def test_fewer_heads_look_where_the_full_twin_had_most_energy() -> None:
    twin, model = pair("full", num_heads=2, head_dim=12, depth=1)
    weight = mixing(twin).weight
    with torch.no_grad():  # energy at (0, 1) and (1, -1) alone: two heads suffice
        for i, offset in enumerate(nearest_offsets(9, (4, 4))):
            if offset not in ((0, 1), (1, -1)):
                weight[i] = 0.0
    assert transfer(twin, model, sharpness=80.0) < 1e-7
    images = images_for(twin)
    assert (model(images) - twin(images)).abs().max() <= 1e-10


def test_in_float32_the_reported_error_is_the_actual_one() -> None:
    for seed in range(8):
        weight = random_kernel(dim=16, seed=seed).float()
        value, output, _, error = factorize(weight, nearest_offsets(9, (4, 4)), 9, 16)
        assert float((output @ value - weight).norm() / weight.norm()) < 1e-5
        assert error < 1e-5


def test_a_kernel_of_zeros_has_no_error() -> None:
    assert factorize(torch.zeros(9, 4, 4), nearest_offsets(9, (4, 4)), 4, 2)[3] == 0.0


def test_the_full_twins_of_few_heads_have_nine_offsets() -> None:
    assert FullConvolution(4, 2, (3, 3)).offsets == nearest_offsets(9, (3, 3))
    assert FullConvolution(4, 12, (3, 3)).offsets == nearest_offsets(12, (3, 3))


# Sharpness


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
def test_the_attention_weights_are_those_of_the_sharpness(sharpness: float) -> None:
    """+s on the target, 0 on the zero slot, −s elsewhere: e^s, 1 and e^−s before they are normalised."""
    side, offset = 3, (0, 1)
    layer = RelativeAttention(embed_dim=9, num_heads=1, head_dim=9, grid=(side, side)).double()
    with torch.no_grad():
        layer.key.weight.zero_()
        layer.value.weight.copy_(torch.eye(9))
        layer.output.weight.copy_(torch.eye(9))
        layer.output.bias.zero_()
    point_heads_at(layer, (offset,), sharpness)
    weights = layer(torch.eye(9, dtype=torch.float64)[None])[0]  # with one-hot tokens: the attention matrix
    for i in range(9):
        target = i + 1 if i % side < side - 1 else None
        scores = np.exp([sharpness if j == target else -sharpness for j in range(9)])
        np.testing.assert_allclose(weights[i].detach().numpy(), scores / (scores.sum() + 1), rtol=1e-12)


@pytest.mark.parametrize("num_heads", [9, 25])
def test_leakage_shrinks_with_the_sharpness(num_heads: int) -> None:
    twin, model = pair(num_heads=num_heads)
    errors = []
    for sharpness in (2.0, 4.0, 8.0, 16.0):
        transfer(twin, model, sharpness)
        errors.append(logit_error(twin, model, images_for(twin)))
    assert all(sharper < softer / 2 for softer, sharper in pairwise(errors))
    # The zero slot takes e^-16 = 1e-7 of a head's attention; the logits feel about as much.
    assert 1e-9 < errors[-1] < 1e-5


def test_an_offset_beyond_the_grid_leaves_the_zero_slot() -> None:
    layer = RelativeAttention(embed_dim=4, num_heads=2, head_dim=4, grid=(2, 2)).double()
    with torch.no_grad():
        layer.key.weight.zero_()
        point_heads_at(layer, ((0, 0), (2, 0)), 80.0)
        layer.output.weight[:, :4] = 0.0  # the second head alone
        mixed = layer(torch.randn(1, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(mixed, layer.output.bias.expand(1, 4, 4), rtol=0, atol=1e-12)


def test_attention_can_learn_content_after_the_transfer() -> None:
    twin, model = pair(dtype=torch.float32)
    transfer(twin, model, sharpness=4.0)
    images, layers = images_for(twin), [mixing(model, i) for i in range(2)]
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    for layer in layers:
        assert not layer.key.weight.any()
        assert layer.key.weight.grad.norm() > 1e-5
        assert layer.relative_bias.grad.norm() > 1e-5
        assert not layer.query.weight.grad.any()  # keys are zero, so queries wait for them
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    assert all(layer.query.weight.grad.any() for layer in layers)


@pytest.mark.parametrize("form", ["factorized", "full", "pixel"])
@pytest.mark.parametrize("attention_blocks", [1, 2, 3])
def test_a_hybrid_takes_over_any_number_of_last_blocks(form: ConvolutionForm, attention_blocks: int) -> None:
    """The transfer is exact block by block: the first blocks keep the twin's layers, bit for bit."""
    sizes: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 20, "head_dim": 24}
    twin, model = pair(form, attention_blocks=attention_blocks, **sizes)
    images, kept, expected = images_for(twin), {}, {}
    assert transfer(twin, model, sharpness=80.0) < 1e-7
    assert (model(images, kept) - twin(images, expected)).abs().max() <= 1e-10
    assert [isinstance(mixing(model, i), RelativeAttention) for i in range(3)] == [
        i >= 3 - attention_blocks for i in range(3)
    ]
    for i in range(3 - attention_blocks):
        assert torch.equal(kept[f"block{i}"], expected[f"block{i}"])
        own = {name: tuple(p.shape) for name, p in model.blocks[i].named_parameters()}
        assert own == {name: tuple(p.shape) for name, p in twin.blocks[i].named_parameters()}
