"""The fused attention of GPUs against its definition in float64. Without a GPU, Triton interprets the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="torch without CUDA comes without Triton")

SIZES = [(2, 3, 2, 16, 8), (1, 5, 3, 49, 12), (3, 2, 2, 64, 12), (1, 2, 1, 4, 5), (1, 3, 2, 9, 17)]
"""Members, images, heads, tokens and width of a head; tiles are filled in part, on both sides."""
LARGE_SIZES = [(16, 64, 9, 64, 12), (4, 128, 9, 64, 32)]


def errors(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[float]:
    """Relative errors of the output and of the gradients of query, key, value and bias."""
    from cvit.models.tile_attention import tile_attention

    members, images, heads, tokens, width = size
    torch.manual_seed(0)

    def projected() -> Tensor:
        flat = torch.randn(members, images, tokens, heads * width, device=device).to(dtype)
        return flat.unflatten(-1, (heads, width)).transpose(-3, -2)

    bias = 4 * torch.randn(members, 1, heads, tokens, tokens + 1, device=device)
    given = [projected(), projected(), projected(), bias]
    upstream = projected()
    exact = [tensor.double().requires_grad_() for tensor in given]
    key, value = (F.pad(tensor, (0, 0, 0, 1)) for tensor in exact[1:3])
    logits = exact[0] * width**-0.5 @ key.transpose(-1, -2) + exact[3]
    expected = logits.softmax(dim=-1) @ value
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    own = [tensor.clone().requires_grad_() for tensor in given]
    output = tile_attention(*own)
    gradients = torch.autograd.grad(output, own, upstream)
    pairs = zip((output, *gradients), (expected, *expected_gradients), strict=True)
    return [float(((a.double() - b).norm() / b.norm().clamp(min=1e-9)).detach()) for a, b in pairs]


def check_interpreted() -> None:
    """Runs in a process of its own, since Triton decides at import whether it interprets."""
    from cvit.models import tile_attention

    tile_attention._PROGRAMS = 4  # several images for a program, and a last group that is not full
    for size in SIZES:
        assert max(errors(size, torch.float32, torch.device("cpu"))) < 2e-6, size
    print("all sizes agree")


def test_the_kernels_compute_attention_and_its_gradients() -> None:
    root = Path(__file__).resolve().parents[2]
    command = "from tests.cvit.test_tile_attention import check_interpreted; check_interpreted()"
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", command], env=env, cwd=root, capture_output=True, text=True)
    assert ended.stdout == "all sizes agree\n", ended.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, *LARGE_SIZES])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_the_compiled_kernels_do_too(size: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    assert max(errors(size, dtype, torch.device("cuda"))) < bound


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [49, 64, 100, 256])
@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu_is_that_of_the_cpu(tokens: int, width: int, dtype: torch.dtype) -> None:
    """By our kernels and by torch's, with and without gradients: 65 keys had been silently wrong in bfloat16."""
    from cvit.models.attention import attend

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 16, 9, tokens, width).unbind()
    bias = 4 * torch.randn(4, 1, 9, tokens, tokens + 1)
    given = [tensor.to(dtype) for tensor in (query, key, value, bias)]
    expected = attend(*(tensor.double() for tensor in given))
    on_gpu = [tensor.cuda() for tensor in given]
    bound = 2e-6 if dtype == torch.float32 else 1e-2
    for needs_gradient in (False, True):
        output = attend(*(tensor.requires_grad_(needs_gradient) for tensor in on_gpu)).detach()
        assert float((output.double().cpu() - expected).norm() / expected.norm()) < bound
