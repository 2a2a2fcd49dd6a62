"""The transfer of the pixel twin: its blocks of tied weights become the ordinary, free matrices of a transformer.

Between tokens, a convolution of pixels is one map M_δ per offset. A head applies a map of rank head_dim, so several
heads share an offset, each with the next head_dim singular triplets of M_δ. The transfer is exact with
Σ_δ ⌈rank(M_δ) / head_dim⌉ heads. The rank is that of the pixels that touch: on images with P × P pixels of C channels
P²C for the token itself, PC for a neighbour at a side and C for one at a corner, as the convolution has 3 × 3 taps.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.geometry import Offset, nearest_offsets, num_relative_positions, occurs
from cvit.models.attention import RelativeAttention
from cvit.models.pixel import KERNEL_SIZE, PixelConvolution, PixelEmbedding, PixelLinear, PixelNorm
from cvit.models.vit import VisionTransformer
from cvit.theorem.kernel import offsets, patch_maps


@torch.no_grad()
def release(twin: VisionTransformer, model: VisionTransformer) -> None:
    """Makes everything but the mixing of a transformer compute the same as that of its pixel twin.

    Hidden units of the MLP that the twin lacks keep their weights, but nothing reads them yet. In a hybrid, the blocks
    that stay convolutions and the embedding before them keep the twin's tied weights.
    """
    for name, source in twin.named_modules():
        if isinstance(source, PixelEmbedding | PixelNorm | PixelLinear):
            target = model.get_submodule(name)
            if isinstance(target, type(source)):
                target.load_state_dict(source.state_dict())
                continue
            weight, bias = source.dense()
            own = target.get_parameter("weight")
            own[: len(weight)] = 0.0
            own[tuple(slice(size) for size in weight.shape)] = weight
            target.get_parameter("bias")[: len(bias)] = bias
    model.head.load_state_dict(twin.head.state_dict())
    if model.position_embedding is not None:
        assert twin.position_embedding is not None
        model.position_embedding.copy_(twin.position_embedding)


@torch.no_grad()
def release_convolution(source: PixelConvolution, target: RelativeAttention) -> tuple[tuple[Offset, ...], float]:
    """Sets the value and output weights of attention so that its heads apply the convolution's maps between tokens.

    Heads and parts of heads that the convolution leaves over keep their value weights, but nothing reads them yet; such
    a head attends to the nearest offset that no other head attends to.

    Returns:
        The offset of each head, and the relative error of the maps in Frobenius norm: that of the singular values left
        out (Eckart–Young), 0.0 if the heads are enough.
    """
    found, maps = token_maps(source)
    left, singular, right = torch.linalg.svd(maps)
    singular = torch.where(singular > maps.shape[1] * torch.finfo(maps.dtype).eps * singular.max(), singular, 0.0)
    chosen = allocated(singular, target.num_heads, target.head_dim)
    width, left_out = target.head_dim, singular.square()
    target.output.weight.zero_()
    target.output.bias.copy_(source.bias.repeat(target.output.out_features // len(source.bias)))
    for head, (offset, chunk) in enumerate(chosen):
        triplets = slice(chunk * width, (chunk + 1) * width)
        triplets = slice(triplets.start, triplets.start + int(singular[offset, triplets].count_nonzero()))
        root = singular[offset, triplets].sqrt()
        rows = slice(head * width, head * width + len(root))
        signs = _signs(right[offset, triplets], target.value.weight[rows])
        target.value.weight[rows] = ((signs * root)[:, None] * right[offset, triplets]).to(target.value.weight)
        target.output.weight[:, rows] = (left[offset][:, triplets] * signs * root).to(target.output.weight)
        left_out[offset, triplets] = 0.0
    pointed = [found[offset] for offset, _ in chosen]
    every = nearest_offsets(num_relative_positions(target.grid), target.grid)
    spare = [offset for offset in every if offset not in pointed][: target.num_heads - len(pointed)]
    total = singular.square().sum()
    error = float((left_out.sum() / total).sqrt()) if total > 0 else 0.0
    return (*pointed, *spare), error


def _signs(vectors: Tensor, drawn: Tensor) -> Tensor:
    """+1 or −1 for each row, so that it lies on the side of the row drawn for its place.

    Singular vectors are unique up to a sign only, and rounding would choose it: a trial would train differently in
    another pack.
    """
    return torch.where((vectors * drawn).sum(dim=1) < 0, -1.0, 1.0).to(vectors)


def token_maps(convolution: PixelConvolution) -> tuple[tuple[Offset, ...], Tensor]:
    """The offsets between tokens that occur on the grid, and the maps (offsets, d out, d in) that the convolution
    applies there, in double precision."""
    patch = convolution.patch
    spanned = offsets((KERNEL_SIZE,) * len(patch), patch)
    here = [place for place, offset in enumerate(spanned) if occurs(offset, convolution.grid)]
    maps = patch_maps(convolution.weight.double(), patch)[here]  # channel first: (offsets, C · pixels in, out)
    channels = len(convolution.bias)
    maps = maps.unflatten(2, (channels, -1)).unflatten(1, (channels, -1)).permute(0, 4, 3, 2, 1)
    return tuple(spanned[place] for place in here), maps.flatten(3).flatten(1, 2)


def allocated(singular: Tensor, num_heads: int, head_dim: int) -> list[tuple[int, int]]:
    """The chunk that each head takes, as (offset, number of the chunk), in that order.

    The singular values of each offset are cut into chunks of `head_dim`. The heads take the chunks of most energy. That
    leaves the least error: n heads at an offset keep its first n chunks at best (Eckart–Young), and since the chunks of
    an offset decrease, the `num_heads` largest of all are such first chunks.

    Args:
        singular: (offsets, D), descending along each row.

    Returns:
        At most `num_heads` chunks, none of them zero.
    """
    energy = F.pad(singular.square(), (0, -singular.shape[1] % head_dim)).unflatten(1, (-1, head_dim)).sum(dim=2)
    largest = energy.flatten().argsort(descending=True, stable=True)[:num_heads].tolist()
    chunks = energy.shape[1]
    return sorted(divmod(place, chunks) for place in largest if energy.flatten()[place] > 0)
