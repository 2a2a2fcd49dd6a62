"""The transfer from the convolution phase to the attention phase: attention that computes the trained convolution.

The relative bias of head δ puts its attention on the patch at offset δ (paper, theorem 1). Keys start at zero, so that
attention does not depend on the content yet, while random queries let the keys learn.

Attention in windows cannot compute what crosses them. A head whose target lies in another window attends to the zero
slot, as at the border of an image: the convolution less what crosses is the best that one layer can do
(`cvit.theorem.window_error`), and `lost_energies` says how much that leaves out.
"""

import torch
from torch import Tensor, nn

from cvit.geometry import Offset, occurs, relative_position
from cvit.init.pixel_transfer import release, release_convolution, token_maps
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FactorizedConvolution, FullConvolution
from cvit.models.pixel import PixelConvolution
from cvit.models.vit import Block, VisionTransformer
from cvit.theorem.kernel import shift_norms
from cvit.theorem.windows import window_pairs


@torch.no_grad()
def transfer(twin: VisionTransformer, model: VisionTransformer, sharpness: float) -> float:
    """Makes the attention model compute the same as its convolutional twin, up to softmax leakage.

    Args:
        twin: a model of the convolution phase.
        model: a model of the attention phase with the same configuration; changed in place. Its queries stay.
        sharpness: logit gap between a head's target patch and the zero slot; the other patches lie as far below the
            zero slot. So a head whose target lies outside the image, or its window, attends to the zero slot.

    Returns:
        The relative error of the mixing weights in Frobenius norm, the largest over the blocks: rounding level for the
        factorized twin; for the full twin the error of the rank-head_dim approximation and of dropped offsets; for the
        pixel twin that of too few heads.
    """
    if twin.is_pixel_twin:
        release(twin, model)
    else:
        mixing_prefixes = tuple(f"blocks.{i}.mixing." for i in range(model.config.depth))
        shared = {name: value for name, value in twin.state_dict().items() if not name.startswith(mixing_prefixes)}
        missing, unexpected = model.load_state_dict(shared, strict=False)
        assert not unexpected and all(name.startswith(mixing_prefixes) for name in missing)
    errors = [0.0]
    for source, target in zip(twin.blocks, model.blocks, strict=True):
        assert isinstance(source, Block) and isinstance(target, Block)
        if isinstance(target.mixing, RelativeAttention):
            errors.append(_transfer_mixing(source.mixing, target.mixing, sharpness))
        else:  # a block of a hybrid that stays a convolution
            target.mixing.load_state_dict(source.mixing.state_dict())
    return max(errors)


def _transfer_mixing(source: nn.Module, target: RelativeAttention, sharpness: float) -> float:
    if isinstance(source, FactorizedConvolution):
        target.value.weight.copy_(source.value.weight)
        target.output.weight.copy_(source.output.weight)
        target.output.bias.copy_(source.output.bias)
        offsets, error = source.offsets, 0.0
    elif isinstance(source, PixelConvolution):
        offsets, error = release_convolution(source, target)
    else:
        assert isinstance(source, FullConvolution)
        value, output, offsets, error = factorize(source.weight, source.offsets, target.num_heads, target.head_dim)
        target.value.weight.copy_(value.flatten(0, 1))
        target.output.weight.copy_(output.permute(1, 0, 2).flatten(1))
        target.output.bias.copy_(source.bias)
    target.key.weight.zero_()
    point_heads_at(target, offsets, sharpness)
    return error


@torch.no_grad()
def point_heads_at(attention: RelativeAttention, offsets: tuple[Offset, ...], sharpness: float) -> None:
    """Sets the relative bias so that head h attends to the patch at offsets[h]: +sharpness there, 0 on the zero slot,
    −sharpness on every other patch. With an offset larger than the grid, the head attends to the zero slot."""
    attention.relative_bias.fill_(-sharpness)
    attention.relative_bias[:, -1] = 0.0
    for head, offset in enumerate(offsets):
        if occurs(offset, attention.grid):
            attention.relative_bias[head, relative_position(offset, attention.grid)] = sharpness


@torch.no_grad()
def lost_energies(twin: VisionTransformer, model: VisionTransformer) -> dict[int, float]:
    """The share of each convolution's energy that crosses the windows of the attention in its place, by block:

        Σ_δ (n(δ) − n_in(δ)) ‖M_δ‖² / Σ_δ n(δ) ‖M_δ‖²

    with the twin's maps M_δ between tokens, the number n(δ) of pairs of patches that lie δ apart, and the number
    n_in(δ) of those that share a window. It is the energy of the operator, the square of its Frobenius norm, that the
    transfer loses whatever the heads. Blocks that stay convolutions are left out.
    """
    return {
        place: _crossing_share(source.mixing, target.mixing)
        for place, (source, target) in enumerate(zip(twin.blocks, model.blocks, strict=True))
        if isinstance(source, Block) and isinstance(target, Block) and isinstance(target.mixing, RelativeAttention)
    }


def _crossing_share(source: nn.Module, target: RelativeAttention) -> float:
    if target.window_size is None:
        return 0.0
    offsets, energies = _energies(source)
    pairs = shift_norms(offsets, target.grid).square().round()
    inside = window_pairs(offsets, target.grid, target.window_size, target.window_shift)
    whole = float(energies @ pairs)
    return float(energies @ (pairs - inside)) / whole if whole else 0.0


def _energies(convolution: nn.Module) -> tuple[tuple[Offset, ...], Tensor]:
    """The offsets of a convolution between tokens, and ‖M_δ‖² of its maps there, float64."""
    if isinstance(convolution, PixelConvolution):
        offsets, maps = token_maps(convolution)
    elif isinstance(convolution, FullConvolution):
        offsets, maps = convolution.offsets, convolution.weight.double()
    else:
        assert isinstance(convolution, FactorizedConvolution)
        offsets, width = convolution.offsets, convolution.head_dim
        value = convolution.value.weight.double().unflatten(0, (-1, width))
        maps = convolution.output.weight.double().unflatten(1, (-1, width)).transpose(0, 1) @ value
    return offsets, maps.square().sum(dim=(1, 2))


def factorize(
    weight: Tensor, offsets: tuple[Offset, ...], num_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, tuple[Offset, ...], float]:
    """The best approximation of one linear map per offset by `num_heads` heads of rank `head_dim`, one offset a head.

    If there are fewer heads than offsets, the offsets with most of the kernel's energy are kept.

    Args:
        weight: (number of offsets, D out, D in).

    Returns:
        value (num_heads, head_dim, D in), output (num_heads, D out, head_dim), the heads' offsets, and the relative
        error in Frobenius norm (Eckart–Young: from the singular values that are left out).
    """
    assert num_heads <= len(offsets)
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    rank = min(head_dim, singular.shape[1])
    energy = singular[:, :rank].square().sum(dim=1)
    kept = torch.argsort(energy, descending=True, stable=True)[:num_heads].sort().values
    root = singular[kept, :rank].sqrt()
    value = weight.new_zeros(num_heads, head_dim, weight.shape[2])
    output = weight.new_zeros(num_heads, weight.shape[1], head_dim)
    value[:, :rank] = root[:, :, None] * right[kept, :rank]
    output[:, :, :rank] = left[kept][:, :, :rank] * root[:, None, :]
    left_out = singular.square()
    total = left_out.sum()
    left_out[kept, :rank] = 0.0  # a sum, because the difference from the total would be mostly rounding
    error = float((left_out.sum() / total).sqrt()) if total > 0 else 0.0
    return value, output, tuple(offsets[int(i)] for i in kept), error


@torch.no_grad()
def logit_error(twin: nn.Module, model: nn.Module, images: Tensor) -> float:
    """‖model(images) − twin(images)‖ / ‖twin(images)‖ over all logits: the transfer's measured error.

    Args:
        images: (B, in_channels, *shape), normalised.
    """
    expected = twin(images)
    return float((model(images) - expected).norm() / expected.norm())
