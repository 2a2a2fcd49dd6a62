"""The operators in torch: loads their library and declares the shapes of their results to tensors without data."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cvit.native.library import Unavailable


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
    """The result, and what the backward pass needs: one row of numbers, whose length only the library knows."""
    tokens = tensors[0]
    return torch.empty_like(tokens, memory_format=torch.contiguous_format), tokens.new_empty(0)


def _shapes_of_backward(
    block: str, gradient: Tensor, kept: Tensor, tensors: Sequence[Tensor], eps: float, half_products: bool
) -> list[Tensor]:
    """The gradients of all numbers but the factors of images, which come after the weights if there are any."""
    numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
    count = {"mlp": 7, "attention": 9, "shift": 6}[block]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in numbers[:count]]
