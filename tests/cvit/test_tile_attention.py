"""The fused attention of GPUs against its definition in float64. Without a GPU, Triton interprets the kernels."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvit.geometry import crosses_windows
from cvit.models.attention import attend

pytest.importorskip("triton", reason="torch without CUDA comes without Triton")

SIZES = [(2, 3, 2, 16, 8), (1, 5, 3, 49, 12), (3, 2, 2, 64, 12), (1, 2, 1, 4, 5), (1, 3, 2, 9, 17)]
"""Members, images, heads, tokens and width of a head; tiles are filled in part, on both sides."""
SHARED_MEMORY_OF_AN_H100 = 227 * 2**10
"""Bytes that a program may have."""
LARGE_SIZES = [(16, 64, 9, 64, 12), (4, 128, 9, 64, 32)]


def errors(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device, window_size: int | None = None
) -> list[float]:
    """Relative errors of the output and of the gradients of projections and bias."""
    from cvit.models.tile_attention import tile_attention

    members, images, heads, tokens, width = size
    torch.manual_seed(0)
    projected = torch.randn(members, images, tokens, 3, heads, width, device=device).to(dtype)
    bias = 4 * torch.randn(members, heads, tokens, tokens + 1, device=device)
    if window_size is not None:
        outside = crosses_windows((tokens,), (window_size,), (1,)).to(device)
        bias[..., :-1].masked_fill_(outside, -math.inf)
    upstream = torch.randn(members, images, tokens, heads, width, device=device).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in (projected, bias)]
    query, key, value = exact[0].transpose(2, 4).unbind(3)
    expected = attend(query, key, value, exact[1].unsqueeze(1)).transpose(2, 3)
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    own = [tensor.clone().requires_grad_() for tensor in (projected, bias)]
    output = tile_attention(own[0], own[1])
    gradients = torch.autograd.grad(output, own, upstream)
    pairs = zip((output, *gradients), (expected, *expected_gradients), strict=True)
    return [float(((a.double() - b).norm() / b.norm().clamp(min=1e-9)).detach()) for a, b in pairs]


def check_interpreted() -> None:
    """Runs in a process of its own, since Triton decides at import whether it interprets."""
    from cvit.models import tile_attention

    tile_attention._PROGRAMS = 4  # several images for a program, and a last group that is not full
    for size in SIZES:
        for window_size in (None, 2):
            assert max(errors(size, torch.float32, torch.device("cpu"), window_size)) < 2e-6, size
    check_operators()
    print("all sizes agree")


def check_operators() -> None:
    """Shapes of the fake operators, registration and derivatives, by torch's own check of operators."""
    from cvit.models.tile_attention import _forward

    projected = torch.randn(1, 2, 9, 3, 2, 4, requires_grad=True)
    bias = torch.randn(1, 2, 9, 10, requires_grad=True)
    torch.library.opcheck(_forward, (projected, bias))


def test_the_kernels_compute_attention_and_its_gradients() -> None:
    root = Path(__file__).resolve().parents[2]
    command = "from tests.cvit.test_tile_attention import check_interpreted; check_interpreted()"
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", command], env=env, cwd=root, capture_output=True, text=True)
    assert ended.stdout == "all sizes agree\n", ended.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, *LARGE_SIZES])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("window_size", [None, 3])
def test_the_compiled_kernels_do_too(
    size: tuple[int, ...], dtype: torch.dtype, bound: float, window_size: int | None
) -> None:
    assert max(errors(size, dtype, torch.device("cuda"), window_size)) < bound


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_kernels_fit_an_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for its instructions, which needs no GPU, at the size of the preset `reference`."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from cvit.models import tile_attention as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, sizes = kernels._launch(torch.empty(16, 128, 64, 3, 9, 32, device="meta"))
    warps = sizes.pop("num_warps")
    numbers = dict.fromkeys(("bias", "normaliser", "of_bias"), "*fp32")
    for kernel in (kernels._output_kernel, kernels._gradient_kernel):
        pointers = {name: numbers.get(name, "*bf16") for name in kernel.arg_names if name not in sizes}
        source = ASTSource(kernel, pointers | dict.fromkeys(sizes, "constexpr"), constexprs=sizes)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert compiled.metadata.shared <= SHARED_MEMORY_OF_AN_H100
