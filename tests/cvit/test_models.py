import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cvit import native
from cvit.config import ConvolutionForm, ModelConfig, PositionEncoding
from cvit.geometry import (
    nearest_offsets,
    num_relative_positions,
    reach,
    relative_position,
    relative_position_index,
)
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FactorizedConvolution, FullConvolution
from cvit.models.vit import VisionTransformer
from cvit.parameters import choices

PHASES = ("attention", "convolution")


def model_config(**changes: Any) -> ModelConfig:
    small: dict[str, Any] = {"image_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 4}
    small |= {"head_dim": 5, "mlp_ratio": 2.0}
    return ModelConfig(**(small | changes))


def all_random(module: nn.Module, seed: int = 0, std: float = 0.5) -> None:
    """Every parameter drawn, biases and norms too, so that no term hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def random_model(phase: str = "attention", form: ConvolutionForm = "factorized", **changes: Any) -> VisionTransformer:
    model = VisionTransformer(model_config(**changes), phase, form).double()
    all_random(model)
    return model


def random_tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_attention(attention: RelativeAttention, tokens: Tensor) -> Tensor:
    """What RelativeAttention documents, patch by patch, in loops."""
    side, width, heads = attention.grid[0], attention.head_dim, attention.num_heads
    query, key, value = (layer(tokens) for layer in (attention.query, attention.key, attention.value))
    mixed = torch.zeros_like(query)
    for image in range(len(tokens)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(side**2):
                scores, values = [], []
                for j in range(side**2):
                    dy, dx = j // side - i // side, j % side - i % side
                    bias = attention.relative_bias[head, (dy + side - 1) * (2 * side - 1) + dx + side - 1]
                    scores.append(query[image, i, part] @ key[image, j, part] / math.sqrt(width) + bias)
                    values.append(value[image, j, part])
                scores.append(attention.relative_bias[head, (2 * side - 1) ** 2])  # the zero slot: key 0, value 0
                values.append(torch.zeros(width, dtype=tokens.dtype))
                mixed[image, i, part] = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
    return attention.output(mixed)


# Geometry


def test_nearest_offsets_are_square_neighbourhoods() -> None:
    for radius in (0, 1, 2, 3):
        span = range(-radius, radius + 1)
        offsets = nearest_offsets((2 * radius + 1) ** 2, (9, 9))
        assert sorted(offsets) == [(dy, dx) for dy in span for dx in span]
        assert reach(offsets) == radius


def test_fewer_offsets_are_the_first_of_more() -> None:
    all_offsets = nearest_offsets(81, (9, 9))
    assert len(set(all_offsets)) == 81
    for count in range(1, 82):
        assert nearest_offsets(count, (9, 9)) == all_offsets[:count]


def test_nearer_offsets_come_first() -> None:
    # The order decides what fewer than 9 heads look at, and thereby stored results: it may not change.
    centre, edges = [(0, 0)], [(-1, 0), (0, -1), (0, 1), (1, 0)]
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    assert list(nearest_offsets(9, (9, 9))) == centre + edges + corners
    lengths = [dy**2 + dx**2 for dy, dx in nearest_offsets(25, (9, 9))[9:]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_relative_positions_are_those_of_the_offsets(side: int) -> None:
    index = relative_position_index((side, side))
    assert index.shape == (side**2, side**2)
    for i in range(side**2):
        for j in range(side**2):
            offset = (j // side - i // side, j % side - i % side)
            assert index[i, j] == relative_position(offset, (side, side))
    assert set(index.flatten().tolist()) == set(range(num_relative_positions((side, side))))


@pytest.mark.parametrize("offset", [(3, 0), (0, -3), (5, 5)])
def test_an_offset_beyond_the_grid_has_no_position(offset: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"does not occur on a grid of 3x3"):
        relative_position(offset, (3, 3))


# Attention


@pytest.mark.parametrize(("side", "heads", "width"), [(1, 1, 4), (2, 3, 5), (3, 4, 2), (3, 1, 20)])
def test_attention_is_what_it_documents(side: int, heads: int, width: int) -> None:
    attention = RelativeAttention(embed_dim=12, num_heads=heads, head_dim=width, grid=(side, side)).double()
    all_random(attention)
    tokens = random_tensor(2, side**2, 12)
    torch.testing.assert_close(attention(tokens), plain_attention(attention, tokens), rtol=1e-12, atol=1e-12)


def test_without_position_terms_attention_is_torchs_with_a_zero_slot() -> None:
    attention = RelativeAttention(embed_dim=12, num_heads=3, head_dim=4, grid=(3, 3)).double()
    all_random(attention)
    torchs = nn.MultiheadAttention(12, 3, bias=False, add_zero_attn=True, batch_first=True, dtype=torch.float64)
    assert torchs.in_proj_weight is not None
    with torch.no_grad():
        attention.relative_bias.zero_()
        attention.output.bias.zero_()
        torchs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        torchs.out_proj.weight.copy_(attention.output.weight)
    tokens = random_tensor(2, 9, 12)
    torch.testing.assert_close(attention(tokens), torchs(tokens, tokens, tokens)[0], rtol=1e-12, atol=1e-12)


def test_a_head_on_the_zero_slot_contributes_nothing() -> None:
    attention = RelativeAttention(embed_dim=6, num_heads=2, head_dim=3, grid=(2, 2)).double()
    all_random(attention)
    with torch.no_grad():
        attention.relative_bias[:, -1] = 1000.0
    expected = attention.output.bias.expand(2, 4, 6)
    assert torch.equal(attention(random_tensor(2, 4, 6)), expected)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_the_bias_depends_only_on_the_offset(side: int) -> None:
    attention = RelativeAttention(embed_dim=4, num_heads=2, head_dim=2, grid=(side, side))
    with torch.no_grad():  # every entry is different
        attention.relative_bias.copy_(torch.arange(attention.relative_bias.numel()).view_as(attention.relative_bias))
    bias = attention.position_bias().detach()
    assert bias.shape == (2, side**2, side**2 + 1)
    by_offset: dict[tuple[int, int, int], set[float]] = {}
    for head in range(2):
        assert bias[head, :, -1].unique().numel() == 1
        for i in range(side**2):
            for j in range(side**2):
                offset = (j // side - i // side, j % side - i % side)
                by_offset.setdefault((head, *offset), set()).add(float(bias[head, i, j]))
    assert all(len(values) == 1 for values in by_offset.values())
    zero_slots = {float(bias[head, 0, -1]) for head in range(2)}
    assert len({value for values in by_offset.values() for value in values} | zero_slots) == len(by_offset) + 2


def test_the_width_of_a_head_does_not_depend_on_the_tokens() -> None:
    attention = RelativeAttention(embed_dim=10, num_heads=9, head_dim=7, grid=(2, 2))
    assert attention.query.weight.shape == attention.key.weight.shape == attention.value.weight.shape == (63, 10)
    assert attention.output.weight.shape == (10, 63)
    assert attention(torch.randn(3, 4, 10)).shape == (3, 4, 10)


# The whole model


@settings(max_examples=25)
@given(
    grid_size=st.integers(1, 4),
    patch_size=st.integers(1, 3),
    in_channels=st.integers(1, 3),
    embed_dim=st.integers(2, 9),
    depth=st.integers(1, 2),
    num_heads=st.integers(1, 25),
    head_dim=st.integers(1, 6),
    num_classes=st.integers(2, 5),
    position_encoding=st.sampled_from(choices(PositionEncoding)),
    form=st.sampled_from(choices(ConvolutionForm)),
)
def test_every_valid_architecture_runs_in_both_phases(
    grid_size: int, patch_size: int, num_heads: int, embed_dim: int, form: ConvolutionForm, **sizes: Any
) -> None:
    config = ModelConfig(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        num_heads=min(num_heads, (2 * grid_size - 1) ** 2),
        embed_dim=embed_dim * (patch_size**2 if form == "pixel" else 1),
        **sizes,
    )
    images = torch.randn(2, config.in_channels, config.image_size, config.image_size)
    for phase in PHASES:
        logits = VisionTransformer(config, phase, form)(images)
        assert logits.shape == (2, config.num_classes)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("phase", PHASES)
def test_intermediates_are_named_and_are_those_of_the_forward_pass(phase: str) -> None:
    model = random_model(phase, position_encoding="relative+absolute")
    images = random_tensor(3, 1, 8, 8)
    kept: dict[str, Tensor] = {}
    logits = model(images, kept)
    with native.switched_off():  # torch's operators compute the intermediates
        assert torch.equal(logits, model(images))
    torch.testing.assert_close(logits, model(images), rtol=1e-12, atol=1e-12)
    blocks = ["block0/mixing", "block0", "block1/mixing", "block1"]
    assert list(kept) == ["embedding", *blocks, "pooled"]
    assert {name: tuple(kept[name].shape) for name in kept} == dict.fromkeys(kept, (3, 16, 16)) | {"pooled": (3, 16)}
    assert torch.equal(model.head(kept["pooled"]), logits)
    assert torch.equal(model.norm(kept["block1"]).mean(dim=1), kept["pooled"])
    block: Any = model.blocks[1]
    assert torch.equal(block.mixing(block.mixing_norm(kept["block0"])), kept["block1/mixing"])
    after = kept["block0"] + kept["block1/mixing"]
    assert torch.equal(after + block.mlp(block.mlp_norm(after)), kept["block1"])
    patch = images[1, :, 2:4, 6:8]  # row 1, column 3 of the grid
    embedding, positions = model.patch_embedding, model.position_embedding
    assert embedding.bias is not None and positions is not None
    embedded = (embedding.weight * patch).sum(dim=(1, 2, 3)) + embedding.bias
    torch.testing.assert_close(kept["embedding"][1, 7], embedded + positions[0, 7])


def permuted(images: Tensor, order: Tensor, patch: int) -> Tensor:
    """The images with their patches in another order."""
    patches = nn.functional.unfold(images, patch, stride=patch)
    return nn.functional.fold(patches[:, :, order], images.shape[-2:], patch, stride=patch)


def test_without_position_terms_the_order_of_the_patches_does_not_matter() -> None:
    model = random_model(depth=2)
    images, order = random_tensor(2, 1, 8, 8), torch.randperm(16, generator=torch.Generator().manual_seed(3))
    with_terms = model(permuted(images, order, 2)) - model(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("relative_bias"):
                parameter.zero_()
    without_terms = model(permuted(images, order, 2)) - model(images)
    assert without_terms.abs().max() < 1e-12 < 1e-3 < with_terms.abs().max()


@pytest.mark.parametrize("phase", PHASES)
def test_the_absolute_embedding_tells_places_apart(phase: str) -> None:
    model = random_model(phase, position_encoding="relative+absolute", num_heads=1)
    images, order = random_tensor(2, 1, 8, 8), torch.arange(15, -1, -1)
    assert (model(permuted(images, order, 2)) - model(images)).abs().max() > 1e-3


@pytest.mark.parametrize("phase", PHASES)
def test_images_do_not_see_each_other(phase: str) -> None:
    model, images = random_model(phase), random_tensor(5, 1, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-12, atol=1e-12)


def test_phases_share_everything_but_the_mixing() -> None:
    forms: tuple[Any, ...] = choices(ConvolutionForm)
    for form in forms:
        attention, twin = (random_model(phase, form).state_dict() for phase in PHASES)
        common = {name for name in attention if ".mixing." not in name}
        assert common == {name for name in twin if ".mixing." not in name}
        same_shape = {name for name in common if attention[name].shape == twin[name].shape}
        assert same_shape == ({"head.weight", "head.bias"} if form == "pixel" else common), (
            "the pixel twin ties weights over pixels"
        )


# The convolutional twins


@pytest.mark.parametrize("heads", [1, 4, 9, 12, 25])
def test_the_factorized_twin_is_a_convolution_with_zero_padding(heads: int) -> None:
    twin = FactorizedConvolution(embed_dim=6, num_heads=heads, head_dim=4, grid=(5, 5)).double()
    all_random(twin)
    radius = reach(twin.offsets)
    kernel = torch.zeros(6, 6, 2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    for head, (dy, dx) in enumerate(nearest_offsets(heads, (5, 5))):
        part = slice(4 * head, 4 * (head + 1))
        kernel[:, :, dy + radius, dx + radius] = twin.output.weight[:, part] @ twin.value.weight[part]
    tokens = random_tensor(2, 25, 6)
    expected = nn.functional.conv2d(
        tokens.transpose(1, 2).reshape(2, 6, 5, 5), kernel, twin.output.bias, padding=radius
    )
    torch.testing.assert_close(twin(tokens), expected.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 9, 12, 25])
def test_the_full_twin_is_a_convolution_with_zero_padding(heads: int) -> None:
    twin = FullConvolution(embed_dim=6, num_heads=heads, grid=(5, 5)).double()
    all_random(twin)
    radius = 1 if heads <= 9 else 2
    kernel = torch.zeros(6, 6, 2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    for weight, (dy, dx) in zip(twin.weight, nearest_offsets(max(9, heads), (5, 5)), strict=True):
        kernel[:, :, dy + radius, dx + radius] = weight
    tokens = random_tensor(2, 25, 6)
    expected = nn.functional.conv2d(tokens.transpose(1, 2).reshape(2, 6, 5, 5), kernel, twin.bias, padding=radius)
    torch.testing.assert_close(twin(tokens), expected.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)
    assert torch.equal(twin.kernel(), kernel)


@pytest.mark.parametrize(
    ("patch", "sources"),
    [
        (0, {(0, 0): 0, (0, 1): 1, (1, 0): 4, (1, 1): 5}),  # the upper left corner
        (7, {(-1, -1): 2, (-1, 0): 3, (0, -1): 6, (0, 0): 7, (1, -1): 10, (1, 0): 11}),  # the right border
        (15, {(-1, -1): 10, (-1, 0): 11, (0, -1): 14, (0, 0): 15}),  # the lower right corner
    ],
)
def test_border_patches_see_zeros_beyond_the_border(patch: int, sources: dict[tuple[int, int], int]) -> None:
    tokens = random_tensor(1, 16, 6)
    full = FullConvolution(embed_dim=6, num_heads=9, grid=(4, 4)).double()
    factorized = FactorizedConvolution(embed_dim=6, num_heads=9, head_dim=4, grid=(4, 4)).double()
    all_random(full)
    all_random(factorized)
    value, output = factorized.value.weight.view(9, 4, 6), factorized.output.weight.view(6, 9, 4)
    by_full, by_factorized = full.bias.clone(), factorized.output.bias.clone()
    for offset, source in sources.items():
        head = nearest_offsets(9, (9, 9)).index(offset)
        by_full = by_full + full.weight[head] @ tokens[0, source]
        by_factorized = by_factorized + output[:, head] @ value[head] @ tokens[0, source]
    torch.testing.assert_close(full(tokens)[0, patch], by_full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factorized(tokens)[0, patch], by_factorized, rtol=1e-12, atol=1e-12)
