"""Replaces the convolutions of a network by attention that computes the same."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cvit.geometry import Grid, by_axis
from cvit.theorem.layer import (
    CONVOLUTIONS,
    Convolution,
    PatchAttention,
    convolution_as_attention,
    reason_not_convertible,
)

Sizes = set[Grid]
"""Pixels along each axis, for every size of image that a convolution has processed."""


@dataclass(frozen=True)
class Conversion:
    """A converted network.

    Attributes:
        network: the network with attention in place of convolutions.
        replaced: the number of heads for each convolution that was replaced, by qualified name.
        kept: the reason for each convolution that was kept, by qualified name. A convolution with two names appears
            under both, here and in `replaced`.
    """

    network: nn.Module
    replaced: Mapping[str, int]
    kept: Mapping[str, str]


def convert(network: nn.Module, example: Tensor, patch_size: int) -> Conversion:
    """A copy of a network in which attention over patches replaces every convolution that it can compute exactly.

    The original stays as it is; the copy has its training modes. Strided and unpadded convolutions are kept, and so are
    convolutions of images that the patch size does not divide.

    Args:
        example: an input of the size that the network will be used with; it goes through the copy once, in eval mode,
            to find the sizes of the images.
        patch_size: pixels along every axis.

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
    sizes = _image_sizes(network, {conv for conv in convolutions.values() if isinstance(conv, CONVOLUTIONS)}, example)
    replacements: dict[nn.Module, PatchAttention] = {}
    replaced: dict[str, int] = {}
    kept: dict[str, str] = {}
    for name, conv in convolutions.items():
        reason = reason_not_convertible(conv) or _reason_not_convertible_there(sizes[conv], patch_size)
        if reason is not None:
            kept[name] = reason
            continue
        assert isinstance(conv, CONVOLUTIONS)
        if conv not in replacements:  # done in eval mode, because a parametrised weight may change in training mode
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
def _image_sizes(network: nn.Module, convolutions: set[Convolution], example: Tensor) -> dict[nn.Module, Sizes]:
    """The sizes of each convolution's outputs; with padding "same" they are the sizes of its inputs."""
    sizes: dict[nn.Module, Sizes] = {conv: set() for conv in convolutions}

    def record(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, CONVOLUTIONS)
        sizes[conv].add(tuple(output.shape[-len(conv.kernel_size) :]))

    hooks = [conv.register_forward_hook(record) for conv in convolutions]
    network(example)
    for hook in hooks:
        hook.remove()
    return sizes


def _reason_not_convertible_there(sizes: Sizes, patch_size: int) -> str | None:
    if not sizes:
        return "not called on the example, so the size of its images is unknown"
    for size in sorted(sizes):
        if any(pixels % patch_size for pixels in size):
            return f"patch size {patch_size} does not divide its images of {by_axis(size)} pixels"
    return None
