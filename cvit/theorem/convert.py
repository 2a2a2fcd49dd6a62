"""Replaces the convolutions of a network by attention that computes the same."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cvit.theorem.layer import PatchAttention, convolution_as_attention, why_not

Sizes = set[tuple[int, int]]
"""(height, width) in pixels of the images that a convolution has met."""


@dataclass(frozen=True)
class Conversion:
    """A converted network and what became of each of its convolutions, by their qualified names.

    `replaced` says with how many heads, `kept` says why. A convolution of two names appears under both.
    """

    network: nn.Module
    replaced: Mapping[str, int]
    kept: Mapping[str, str]


def convert(network: nn.Module, example: Tensor, patch_size: int) -> Conversion:
    """A copy of a network whose convolutions are attention over patches, wherever that can compute the same.

    The original stays as it is; the copy has its training modes. Strided and unpadded convolutions are kept, and those
    that meet images, on the example, which the patch size does not divide.

    Args:
        example: an input of the network, of the size it will be used with; it goes through the copy once, in eval mode.

    Raises:
        ValueError: the patch size is below 1.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, not {patch_size}")
    network = copy.deepcopy(network)
    training = {module: module.training for module in network.modules()}
    network.eval()
    convolutions = {
        name: module for name, module in network.named_modules(remove_duplicate=False) if isinstance(module, _ConvNd)
    }
    sizes = _image_sizes(network, {conv for conv in convolutions.values() if isinstance(conv, nn.Conv2d)}, example)
    replacements: dict[nn.Module, PatchAttention] = {}
    replaced: dict[str, int] = {}
    kept: dict[str, str] = {}
    for name, conv in convolutions.items():
        if not isinstance(conv, nn.Conv2d):
            kept[name] = f"{type(conv).__name__} is not a Conv2d"
            continue
        reason = why_not(conv) or _why_not_there(sizes[conv], patch_size)
        if reason is not None:
            kept[name] = reason
            continue
        if conv not in replacements:  # in eval mode, in which a parametrised weight stays as it is
            replacements[conv] = convolution_as_attention(conv, patch_size).train(training[conv])
        replaced[name] = replacements[conv].num_heads
        if name:
            network.set_submodule(name, replacements[conv])
        else:
            network = replacements[conv]
    for module, mode in training.items():
        module.training = mode
    return Conversion(network, replaced, kept)


@torch.no_grad()
def _image_sizes(network: nn.Module, convolutions: set[nn.Conv2d], example: Tensor) -> dict[nn.Module, Sizes]:
    """The sizes that come out of each convolution; where it has padding "same", they are those that go in."""
    sizes: dict[nn.Module, Sizes] = {conv: set() for conv in convolutions}

    def record(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = output.shape[-2:]
        sizes[conv].add((height, width))

    hooks = [conv.register_forward_hook(record) for conv in convolutions]
    network(example)
    for hook in hooks:
        hook.remove()
    return sizes


def _why_not_there(sizes: Sizes, patch_size: int) -> str | None:
    if not sizes:
        return "not called on the example, so the size of its images is unknown"
    for height, width in sorted(sizes):
        if height % patch_size or width % patch_size:
            return f"patch size {patch_size} does not divide its images of {height}x{width} pixels"
    return None
