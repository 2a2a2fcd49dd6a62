"""Attention as GPUs compute it, against its definition with one more key.

Where there is no GPU, torch's memory-efficient kernel, which exists for GPUs alone, is replaced by its definition: the
softmax over the patches, the logarithm of its sums, and, backward, the gradient that its source computes from whatever
output and gradient it is given.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cvit.geometry import crosses_windows
from cvit.models.attention import RelativeAttention, attend
from cvit.models.cuda_attention import _by_torch, _slot_attention

PADDED_ROWS = 32
"""The kernel's sums have a multiple of so many rows; those beyond the patches mean nothing."""


def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *_: Any, scale: float) -> tuple[Tensor, ...]:
    logits = scale * query @ key.transpose(-1, -2) + bias
    sums = torch.nn.functional.pad(logits.logsumexp(-1), (0, -query.shape[-2] % PADDED_ROWS), value=math.inf)
    nothing = torch.zeros((), dtype=torch.int64)
    return logits.softmax(-1) @ value, sums, nothing, nothing.clone()


def backward(gradient: Tensor, *given: Any, scale: float) -> tuple[Tensor, ...]:
    query, key, value, bias, output, sums = given[:6]
    weights = (scale * query @ key.transpose(-1, -2) + bias - sums[..., : query.shape[-2], None]).exp()
    of_logits = weights * (gradient @ value.transpose(-1, -2) - (gradient * output).sum(-1, keepdim=True))
    of_key = scale * of_logits.transpose(-1, -2) @ query
    return scale * of_logits @ key, of_key, weights.transpose(-1, -2) @ gradient, of_logits


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Iterator[None]:
    """torch's kernel on the CPU, by its definition."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_scaled_dot_product_efficient_attention", forward, "CPU")
        library.impl("_scaled_dot_product_efficient_attention_backward", backward, "CPU")
        yield


def with_one_more_key(projected: Tensor, bias: Tensor) -> Tensor:
    query, key, value = projected.transpose(2, 4).unbind(3)
    return attend(query, key, value, bias.unsqueeze(1)).transpose(2, 3)


@settings(max_examples=40)
@given(
    members=st.integers(1, 3),
    images=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.integers(1, 20),
    sharpness=st.sampled_from([0.1, 4.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_a_scale_is_the_zero_slot(
    members: int, images: int, heads: int, tokens: int, width: int, sharpness: float, seed: int
) -> None:
    """In float64, output and gradients: also where a head attends to the slot alone, or to a patch alone."""
    source = torch.Generator().manual_seed(seed)
    sizes = {"dtype": torch.float64, "generator": source}
    projected = torch.randn(members, images, tokens, 3, heads, width, **sizes)
    bias = sharpness * torch.randn(members, heads, tokens, tokens + 1, **sizes)
    upstream = torch.randn(members, images, tokens, heads, width, **sizes)
    found, expected = (
        (output, *torch.autograd.grad(output, given, upstream))
        for function in (_by_torch, with_one_more_key)
        for given in [[projected.clone().requires_grad_(), bias.clone().requires_grad_()]]
        for output in [function(*given)]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's check itself
def test_the_operator_is_registered_as_torch_wants_it() -> None:
    query, key, value = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    position, slot = (torch.randn(3, 9, *more, requires_grad=True) for more in ((9,), ()))
    torch.library.opcheck(_slot_attention, (query, key, value, position, slot, 8**-0.5))


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize(("grid", "width"), [((3, 3), 4), ((12,), 5), ((2, 2, 3), 8)])
@pytest.mark.parametrize("windows", [(None, 0), (2, 1), (1, 0)])
def test_the_layer_on_a_gpu_is_the_layer(
    members: int | None, grid: tuple[int, ...], width: int, windows: tuple[int | None, int]
) -> None:
    """One product for queries, keys and values, in float64: output and gradients of every parameter."""
    torch.manual_seed(0)
    layer, pack = RelativeAttention(10, 4, width, grid, *windows).double(), () if members is None else (members,)
    for name, parameter in list(layer.named_parameters()):
        module, _, kind = name.rpartition(".")
        drawn = torch.randn(*pack, *parameter.shape, dtype=torch.float64)
        setattr(layer.get_submodule(module), kind, torch.nn.Parameter(drawn))
    tokens = torch.randn(*pack, 2, math.prod(grid), 10, dtype=torch.float64)
    parameters = list(layer.parameters())
    found, expected = layer._forward_on_cuda(tokens), layer(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(output.square().sum(), parameters) for output in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [49, 64, 100, 256])
@pytest.mark.parametrize("width", [4, 8, 12, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_in_windows", [False, True])
def test_attention_on_a_gpu_is_that_of_the_cpu(
    tokens: int, width: int, dtype: torch.dtype, is_in_windows: bool
) -> None:
    """By our kernels and by torch's, against float64; 65 keys had been silently wrong in bfloat16."""
    from cvit.models.cuda_attention import attention_on_cuda

    torch.manual_seed(0)
    given = [torch.randn(4, 16, tokens, 3, 9, width).to(dtype), 4 * torch.randn(4, 9, tokens, tokens + 1)]
    if is_in_windows:
        outside = crosses_windows((tokens,), (8,), (3,))
        given[1][..., :-1].masked_fill_(outside, -math.inf)
    upstream = torch.randn(4, 16, tokens, 9, width).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in given]
    expected = with_one_more_key(exact[0], exact[1])
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    for function in (attention_on_cuda, _by_torch):
        on_gpu = [tensor.cuda().requires_grad_() for tensor in given]
        output = function(*on_gpu)
        gradients = torch.autograd.grad(output, on_gpu, upstream.cuda())
        with torch.inference_mode():
            again = function(*on_gpu)
        pairs = zip((output, again, *gradients), (expected, expected, *expected_gradients), strict=True)
        for found, right in pairs:
            assert float((found.detach().double().cpu() - right).norm() / right.norm()) < bound
