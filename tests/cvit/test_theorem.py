import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.theorem.convolutions import dense_kernel, reason_not_convertible
from cvit.theorem.counts import half_width, heads_needed
from cvit.theorem.kernel import offsets
from cvit.theorem.layer import PatchAttention, convolution_as_attention
from tests.support.convolutions import convolved, dense_sides, own_count, randn, random_conv, relative_error

# Counts


@pytest.mark.parametrize(
    ("kernel_size", "patch_size", "heads"),
    [
        (1, 1, 1), (1, 4, 1),
        (2, 1, 9), (2, 2, 9), (3, 1, 9), (3, 2, 9), (3, 4, 9),
        (4, 1, 25), (4, 2, 9), (5, 1, 25), (5, 2, 9), (7, 1, 49), (7, 2, 25), (7, 3, 9), (9, 4, 9), (10, 4, 25),
    ],
)  # fmt: skip
def test_heads_worked_out_by_hand(kernel_size: int, patch_size: int, heads: int) -> None:
    assert heads_needed(kernel_size, patch_size) == heads
    assert len(offsets(kernel_size, patch_size)) == heads


@given(st.integers(1, 100), st.integers(1, 50))
def test_nine_heads_where_the_kernel_reaches_no_further_than_the_next_patch(kernel_size: int, patch_size: int) -> None:
    assert (heads_needed(kernel_size, patch_size) <= 9) == (kernel_size - 1 <= 2 * patch_size)
    # The pixel furthest away that any pixel of a patch sees: K/2 to the right of the last one, rounded down.
    furthest = (patch_size - 1 + kernel_size // 2) // patch_size
    assert half_width(kernel_size, patch_size) == furthest


@pytest.mark.parametrize(("sizes", "name"), [((0, 1), "kernel_size"), ((3, 0), "patch_size"), ((3, -2), "patch_size")])
def test_sizes_below_one(sizes: tuple[int, int], name: str) -> None:
    for count in (half_width, heads_needed):
        with pytest.raises(ValueError, match=rf"^{name} must be at least 1, not {min(sizes)}$"):
            count(*sizes)


# The construction


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, int, tuple[int, int]]:
    """A convolution, a patch size, and the rows and columns of patches of an image."""
    groups = draw(st.integers(1, 2))
    channels = [groups * draw(st.integers(1, 4 // groups)) for _ in range(2)]
    size = draw(st.integers(1, 7))
    kernel_size = draw(st.sampled_from([(size, size), (size, size), (size, 1 + size // 2), (1, size)]))
    dilation = draw(st.sampled_from([1, 1, 2])) if size <= 4 else 1
    conv = random_conv(
        *channels,
        kernel_size,
        groups=groups,
        dilation=dilation,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )
    return conv, draw(st.integers(1, 4)), (draw(st.integers(1, 4)), draw(st.integers(1, 4)))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(convolutions())
def test_attention_computes_the_convolution(drawn: tuple[nn.Conv2d, int, tuple[int, int]]) -> None:
    conv, patch_size, (rows, columns) = drawn
    assert reason_not_convertible(conv) is None
    layer = convolution_as_attention(conv, patch_size)
    assert layer.num_heads == own_count(conv, patch_size) <= heads_needed(dense_sides(conv), patch_size)
    images = randn(2, conv.in_channels, rows * patch_size, columns * patch_size, seed=7)
    with torch.no_grad():
        expected = convolved(conv, images)
        assert layer(images).shape == expected.shape
        assert (layer(images) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("kernel_size", "patch_size", "heads"), [(3, 2, 9), (5, 1, 25), (7, 1, 49), (6, 1, 36), (7, 2, 25)]
)
def test_more_than_nine_heads_on_an_image_larger_than_the_neighbourhood(
    kernel_size: int, patch_size: int, heads: int
) -> None:
    """Most pairs of patches are further apart than any offset, and the same layer takes images of other sizes too."""
    conv = random_conv(3, 2, kernel_size)
    layer = convolution_as_attention(conv, patch_size)
    assert layer.num_heads == heads
    for height, width in ((14, 14), (10, 16), (4, 2)):
        images = randn(2, 3, height, width, seed=height)
        torch.testing.assert_close(layer(images), convolved(conv, images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel_size", [(2, 2), (4, 4), (3, 4), (5, 2), (3, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_padding_is_that_of_torchs_same(kernel_size: tuple[int, int], dilation: int) -> None:
    conv = random_conv(2, 3, kernel_size, dilation=dilation)
    images = randn(2, 2, 6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that "same" copies the images where the kernel is even
        expected = conv(images)
    torch.testing.assert_close(convolution_as_attention(conv, 2)(images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 1, "padding": "valid"},
        {"kernel_size": (3, 5), "padding": (1, 2)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (1, 5), "padding": (0, 4), "dilation": (3, 2), "groups": 4, "bias": False},
    ],
)
def test_paddings_that_are_the_same_in_numbers(options: dict[str, Any]) -> None:
    conv = random_conv(4, 8, **({"padding": 0} | options))
    images = randn(2, 4, 6, 4)
    torch.testing.assert_close(convolution_as_attention(conv, 2)(images), conv(images), rtol=0, atol=1e-10)


def test_an_image_without_a_batch() -> None:
    conv = random_conv(2, 3, 3)
    image = randn(2, 6, 4)
    for content in (False, True):
        layer = convolution_as_attention(conv, 2, content=content)
        torch.testing.assert_close(layer(image), conv(image), rtol=0, atol=1e-10)


def test_the_dense_kernel_convolves_as_the_sparse_one() -> None:
    conv = random_conv(4, 6, (2, 3), groups=2, dilation=(3, 2), bias=False)
    kernel = dense_kernel(conv).detach()
    assert kernel.shape == (6, 4, 5, 5)
    assert int(kernel.count_nonzero()) == conv.weight.numel()
    images = randn(2, 4, 7, 6)
    torch.testing.assert_close(F.conv2d(images, kernel, padding=2), convolved(conv, images), rtol=0, atol=1e-12)


# What the layer is made of


def test_the_attention_is_exactly_one_hot() -> None:
    layer = convolution_as_attention(random_conv(1, 1, 3), 2)
    attention = layer.position_bias((3, 4)).softmax(dim=-1)
    assert attention.shape == (9, 12, 13)
    assert set(attention.unique().tolist()) == {0.0, 1.0}
    for head, (dy, dx) in enumerate(offsets(3, 2)):
        for query in range(12):
            y, x = query // 4 + dy, query % 4 + dx
            target = 4 * y + x if 0 <= y < 3 and 0 <= x < 4 else 12  # outside: the zero slot
            assert attention[head, query].argmax() == target


def test_a_soft_softmax_in_float32() -> None:
    conv = random_conv(3, 4, 5).float()
    images = randn(4, 3, 12, 12).float()
    expected = conv(images)
    for patch_size in (1, 2, 3, 4):
        actual = convolution_as_attention(conv, patch_size, sharpness=20.0)(images)
        assert actual.dtype == torch.float32
        assert 0 < (actual - expected).norm() / expected.norm() <= 1e-5


def test_the_error_shrinks_as_the_softmax_sharpens() -> None:
    conv = random_conv(3, 4, 3)
    images = randn(4, 3, 12, 12)
    expected = conv(images).detach()
    layers = [convolution_as_attention(conv, 2, sharpness=sharpness) for sharpness in (2.0, 4.0, 8.0, 16.0, 1000.0)]
    errors = [relative_error(layer, images, expected) for layer in layers]
    assert all(sharper < softer / 5 for softer, sharper in pairwise(errors))
    assert 1e-8 < errors[-2] < 1e-6  # e^-16 = 1.1e-7
    assert errors[-1] < 1e-15


@torch.no_grad()
def test_content_changes_nothing_until_queries_and_keys_do() -> None:
    conv = random_conv(2, 3, 3)
    images = randn(3, 2, 6, 8)
    soft = {"patch_size": 2, "sharpness": 2.0}
    layer = convolution_as_attention(conv, **soft, content=True)
    plain = convolution_as_attention(conv, **soft)
    expected = plain(images)
    assert plain.query is None and plain.key is None
    assert layer.query is not None and layer.key is not None
    assert not layer.query.weight.any() and not layer.key.weight.any()
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-12)
    layer.query.weight.copy_(randn(*layer.query.weight.shape))
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-12)  # the key is still zero
    layer.key.weight.copy_(randn(*layer.key.weight.shape, seed=1))
    assert (layer(images) - expected).abs().max() > 0.1


@torch.no_grad()
def test_content_gives_each_image_its_own_attention() -> None:
    """With queries and keys the layer is no longer linear: the logits, by hand, of one head on two patches."""
    layer = PatchAttention(1, 1, (1, 1), num_heads=1, head_dim=1, half_widths=(0, 0), bias=False, content=True).double()
    assert layer.query is not None and layer.key is not None
    for parameter, value in ((layer.query, 2.0), (layer.key, 3.0), (layer.value, 1.0), (layer.output, 1.0)):
        parameter.weight.fill_(value)
    layer.relative_bias.copy_(torch.tensor([[0.5, -0.5, 0.25]]))  # itself, the other patch, the zero slot
    first, second = 0.3, -0.7
    weights = np.exp([0.5 + 6 * first * first, -0.5 + 6 * first * second, 0.25])
    expected = (weights[0] * first + weights[1] * second) / weights.sum()
    actual = layer(torch.tensor([[[[first, second]]]], dtype=torch.float64))
    assert float(actual[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-12)


def test_a_layer_of_its_own_starts_without_bias_and_learns() -> None:
    layer = PatchAttention(2, 3, (2, 2), num_heads=4, head_dim=5, half_widths=(1, 1), content=True)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "bias": (3,),
        "relative_bias": (4, 11),
        "value.weight": (20, 8),
        "output.weight": (12, 20),
        "query.weight": (20, 8),
        "key.weight": (20, 8),
    }
    zero = [name for name, parameter in layer.named_parameters() if not parameter.any()]
    assert zero == ["relative_bias", "bias", "query.weight", "key.weight"]
    layer(randn(2, 2, 4, 6).float()).square().sum().backward()
    assert layer.relative_bias.grad is not None
    assert layer.relative_bias.grad[:, [0, -2, -1]].all()  # the nearest above left, far away, and the zero slot


def test_the_layer_takes_over_what_kind_of_parameters_the_convolution_has() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        conv = nn.Conv2d(2, 3, 3, padding=1, dtype=dtype).eval()
        conv.weight.requires_grad_(False)
        layer = convolution_as_attention(conv, 2, content=True)
        assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
        assert not any(module.training for module in layer.modules())
        assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["bias"]
    frozen_bias = nn.Conv2d(2, 3, 3, padding=1)
    assert frozen_bias.bias is not None
    frozen_bias.bias.requires_grad_(False)
    layer = convolution_as_attention(frozen_bias, 2)
    assert layer.training and layer.value.training
    assert [name for name, parameter in layer.named_parameters() if not parameter.requires_grad] == ["bias"]
    assert convolution_as_attention(nn.Conv2d(2, 3, 3, padding=1, bias=False), 2).bias is None
    assert {parameter.device.type for parameter in convolution_as_attention(conv.to("meta"), 2).parameters()} == {
        "meta"
    }


def test_the_parameters_are_copies_and_no_random_number_is_drawn() -> None:
    for channels, kernel_size, patch_size in (((2, 3), 1, 2), ((3, 2), 1, 2), ((1, 1), 1, 1), ((2, 3), 3, 1)):
        conv = random_conv(*channels, kernel_size)
        before = [parameter.detach().clone() for parameter in conv.parameters()]
        state = torch.get_rng_state()
        layer = convolution_as_attention(conv, patch_size, content=True)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():
            for parameter in layer.parameters():
                assert parameter.is_contiguous()
                parameter.add_(1.0)
        assert all(torch.equal(*both) for both in zip(before, conv.parameters(), strict=True))


def test_the_layer_moves_to_another_dtype() -> None:
    conv = random_conv(2, 3, 3)
    images = randn(2, 2, 6, 6)
    layer = convolution_as_attention(conv, 2)
    torch.testing.assert_close(layer(images), conv(images), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.float()(images.float()), conv.float()(images.float()), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_the_layer_moves_to_a_gpu() -> None:
    conv = random_conv(2, 3, 3)
    images = randn(2, 2, 6, 8)
    expected = conv(images)
    for content in (False, True):
        layer = convolution_as_attention(conv, 2, content=content)
        torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(layer.cuda()(images.cuda()).cpu(), expected, rtol=0, atol=1e-10)
    on_device = convolution_as_attention(conv.cuda(), 2)
    torch.testing.assert_close(on_device(images.cuda()).cpu(), expected, rtol=0, atol=1e-10)


# What cannot be replaced


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / weight.norm(), bias)


class OwnName(nn.Conv2d):
    pass


def doubled(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


def hooked() -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    conv.register_forward_hook(doubled)
    return conv


def patched() -> nn.Conv2d:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    conv.forward = lambda input: 2 * input
    return conv


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(2, 2, 3, stride=2), "padding (0, 0) is not 'same' for stride (2, 2)"),
        (nn.Conv2d(2, 2, 3, padding=2, stride=(2, 1)), "padding (2, 2) is not 'same' for stride (2, 1)"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding mode 'circular'"),
        (nn.Conv2d(2, 2, 3), "padding (0, 0) is not 'same'"),
        (nn.Conv2d(2, 2, 3, padding="valid"), "padding 'valid' is not 'same'"),
        (nn.Conv2d(2, 2, 3, padding=2), "padding (2, 2) is not 'same'"),
        (nn.Conv2d(2, 2, 3, padding=1, dilation=2), "padding (1, 1) is not 'same'"),
        (nn.Conv2d(2, 2, (3, 5), padding=1), "padding (1, 1) is not 'same'"),
        (nn.Conv2d(2, 2, 2, padding=1), "padding (1, 1) is not 'same'"),
        (nn.Conv2d(2, 2, 1, padding=1), "padding (1, 1) is not 'same'"),
        (OwnForward(2, 2, 3, padding=1), "OwnForward has a forward of its own"),
        (OwnConvForward(2, 2, 3, padding=1), "OwnConvForward has a forward of its own"),
        (patched(), "Conv2d has a forward of its own"),
        (hooked(), "it has forward hooks, which would be lost"),
    ],
)
def test_why_a_convolution_cannot_be_replaced(conv: nn.Conv2d, reason: str) -> None:
    assert reason_not_convertible(conv) == reason
    with pytest.raises(ValueError, match=r"^this convolution cannot be replaced by attention: ") as caught:
        convolution_as_attention(conv, 2)
    assert str(caught.value).endswith(reason)


def test_subclasses_that_convolve_as_any_other() -> None:
    assert reason_not_convertible(OwnName(2, 2, 3, padding=1)) is None
    conv = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    nn.utils.parametrizations.weight_norm(conv)
    images = randn(1, 2, 4, 4)
    with torch.no_grad():
        layer = convolution_as_attention(conv, 2)  # trainable, though nothing can be without gradients
    torch.testing.assert_close(layer(images), conv(images), rtol=0, atol=1e-12)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    conv.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in convolution_as_attention(conv, 2).parameters())


def test_images_that_cannot_be_cut_into_patches() -> None:
    layer = convolution_as_attention(nn.Conv2d(1, 1, 3, padding=1), 2)
    for height, width in ((4, 5), (3, 4)):
        message = rf"^patch size 2 does not divide an image of {height}x{width} pixels$"
        with pytest.raises(ValueError, match=message):
            layer(torch.zeros(1, 1, height, width))
    with pytest.raises(ValueError, match=r"^patch_size must be at least 1, not 0$"):
        convolution_as_attention(nn.Conv2d(1, 1, 3, padding=1), 0)
