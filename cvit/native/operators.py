"""The operators in torch: loads their library and declares the shapes of their results to tensors without data."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cvit.native.library import Unavailable, processor_flags

_TOKENS_OF_A_GROUP = 64
"""The number of tokens that the library computes at a time, where an image has fewer."""


def load(path: Path) -> None:
    """Loads the library, so that `torch.ops.cvit` has the operators.

    Raises:
        Unavailable: the file is no library, or not one of this version of torch.
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded ({error}); python -m cvit.native makes it anew") from error
    with contextlib.suppress(RuntimeError):  # a second library has the shapes of the first
        torch.library.register_fake("cvit::block_forward", _shapes_of_forward)
        torch.library.register_fake("cvit::block_backward", _shapes_of_backward)


def _shapes_of_forward(
    block: str, tensors: Sequence[Tensor], eps: float, half_products: bool, keeps: bool
) -> tuple[Tensor, Tensor]:
    """The result, and a row of numbers that the backward pass needs."""
    tokens = tensors[0]
    kept = tokens.new_empty(_num_kept(block, tensors) if keeps else 0)
    return torch.empty_like(tokens, memory_format=torch.contiguous_format), kept


def _shapes_of_backward(
    block: str, gradient: Tensor, kept: Tensor, tensors: Sequence[Tensor], eps: float, half_products: bool
) -> list[Tensor]:
    """The gradients of all numbers but the factors of images, which come after the weights if there are any."""
    numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
    count = {"mlp": 7, "attention": 9, "shift": 6}[block]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in numbers[:count]]


def _num_kept(block: str, tensors: Sequence[Tensor]) -> torch.types.IntLikeType:
    """The numbers that the backward pass needs, as `blocks.h` lays them out: whole vectors, images in groups."""
    tokens, weight = tensors[0], tensors[3]
    members = len(weight) if weight.ndim == 3 else 1
    num_tokens, width = tokens.shape[-2], weight.shape[-2]
    images = tokens.numel() // (members * num_tokens * tokens.shape[-1])
    moments = 2 * members * images * num_tokens
    if block == "mlp":
        return members * images * num_tokens * _padded(width, tokens) + moments
    padded_tokens = _padded(num_tokens, tokens)
    group = torch.sym_max(1, _TOKENS_OF_A_GROUP // padded_tokens)
    groups = (images + group - 1) // group
    channels = width if block == "shift" else 4 * width  # mixed values, and queries, keys and values
    return members * groups * channels * group * padded_tokens + moments


def _padded(count: int, numbers: Tensor) -> int:
    """A count rounded up to whole vectors of the processor."""
    vector = (64 if "avx512f" in processor_flags() else 32) // numbers.element_size()
    return -(-count // vector) * vector
