"""The vision transformer of both phases: the same patch embedding, norms, MLPs and head; only the mixing differs.

In the twin `pixel` the other layers differ too: they have the same weights for all pixels of a patch.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cvit.config import ConvolutionForm, ModelConfig
from cvit.models.attention import RelativeAttention
from cvit.models.branch import add_branch
from cvit.models.convolution import FactorizedConvolution, FullConvolution
from cvit.models.embedding import PatchEmbedding
from cvit.models.layers import LayerNorm, Linear
from cvit.models.pixel import PixelConvolution, PixelEmbedding, PixelLinear, PixelNorm
from cvit.models.stochastic_depth import BRANCHES_PER_BLOCK
from cvit.vocabulary import ATTENTION


class Block(nn.Module):
    """Pre-norm block: tokens + mixing(norm(tokens)), then + MLP(norm(tokens))."""

    def __init__(self, embed_dim: int, mixing: nn.Module, mlp_ratio: float, pixels: int | None = None) -> None:
        """
        Args:
            pixels: pixels of a patch that share their weights; None if the weights are those of whole tokens.
        """
        super().__init__()
        hidden_dim = round(embed_dim * mlp_ratio)
        norm = LayerNorm if pixels is None else partial(PixelNorm, pixels=pixels)
        linear = Linear if pixels is None else partial(PixelLinear, pixels=pixels)
        self.mixing_norm = norm(embed_dim)
        self.mixing = mixing
        self.mlp_norm = norm(embed_dim)
        self.mlp = nn.Sequential(linear(embed_dim, hidden_dim), nn.GELU(), linear(hidden_dim, embed_dim))


def run_block(block: Block, tokens: Tensor, scales: Tensor | None, outputs: list[Tensor] | None = None) -> Tensor:
    """(B, N, embed_dim) → (B, N, embed_dim); in a pack (M, ...).

    Args:
        scales: the factors of both branches, (2, B), in a pack (2, M, B); None stands for ones.
        outputs: if given, the outputs of both branches are appended to it.
    """
    of_mixing, of_mlp = (None, None) if scales is None else (scales[0], scales[1])
    tokens = add_branch(tokens, block.mixing_norm, block.mixing, of_mixing, outputs)
    return add_branch(tokens, block.mlp_norm, block.mlp, of_mlp, outputs)


class VisionTransformer(nn.Module):
    """A ViT on a grid of tokens with mean pooling. It mixes tokens by attention in the attention phase, in a hybrid in
    its last blocks only, and by its convolutional twin in the others.

    The weights are uninitialised: `cvit.init` sets them before training.

    Attributes:
        num_convolutions: the number of blocks, the first ones, that mix tokens by convolution.
        training_block: computes a block in training, as `run_block` does; on a GPU, a compiled `run_block` may take its
            place (`cvit.training.compiling`).
    """

    def __init__(self, config: ModelConfig, phase: str, convolution_form: ConvolutionForm = "factorized") -> None:
        super().__init__()
        self.config, self.phase, self.convolution_form = config, phase, convolution_form
        self.num_convolutions = config.depth - (config.num_attention_blocks if phase == ATTENTION else 0)
        self.is_pixel_twin = phase != ATTENTION and convolution_form == "pixel"
        # Of the pixel twin, a hybrid has the layers up to the last convolution.
        pixels = math.prod(config.patch) if convolution_form == "pixel" else None
        embedding = PatchEmbedding if pixels is None or not self.num_convolutions else PixelEmbedding
        self.patch_embedding = embedding(config.in_channels, config.embed_dim, config.patch)
        self.position_embedding = (
            nn.Parameter(torch.zeros(1, math.prod(config.grid), config.embed_dim))
            if config.has_position_embedding
            else None
        )
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, self._mixing(place), config.mlp_ratio, pixels if self._convolves(place) else None)
            for place in range(config.depth)
        )
        width, ends_in_attention = config.embed_dim, phase == ATTENTION
        self.norm = LayerNorm(width) if pixels is None or ends_in_attention else PixelNorm(width, pixels)
        self.head = Linear(config.embed_dim, config.num_classes)
        self.training_block: Callable[[Block, Tensor, Tensor | None], Tensor] = run_block

    def _convolves(self, place: int) -> bool:
        return place < self.num_convolutions

    def _mixing(self, place: int) -> nn.Module:
        """The mixing of the block at a place, from 0 on."""
        c = self.config
        if not self._convolves(place):
            windows = (c.window_size, c.window_shift_of(place))
            return RelativeAttention(c.embed_dim, c.num_heads, c.head_dim, c.grid, *windows)
        if self.convolution_form == "factorized":
            return FactorizedConvolution(c.embed_dim, c.num_heads, c.head_dim, c.grid)
        if self.convolution_form == "pixel":
            return PixelConvolution(c.embed_dim, c.grid, c.patch)
        return FullConvolution(c.embed_dim, c.num_heads, c.grid)

    def forward(
        self,
        images: Tensor,
        intermediates: dict[str, Tensor] | None = None,
        branch_scales: Tensor | None = None,
    ) -> Tensor:
        """Class logits.

        Args:
            images: (B, in_channels, *shape), normalised.
            intermediates: if given, it is filled with `embedding`, `block{i}/mixing`, `block{i}`, each
                (B, N, embed_dim), and `pooled` (B, embed_dim).
            branch_scales: factors of the residual branches, (2 · depth, B), in the order mixing, MLP of each block; see
                `cvit.models.stochastic_depth`. None leaves the branches as they are.

        Returns:
            (B, num_classes). In a pack, all of these have the members' dimension in front, the factors before B.
        """
        kept, outputs = ({}, None) if intermediates is None else (intermediates, [])
        # Under autocast the embedding is bfloat16. Left so, tokens would stay it, but not where a position embedding in
        # float32 is added: schemes would train at different precision.
        tokens = self.patch_embedding(images).to(images.dtype)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        kept["embedding"] = tokens
        scales = None if branch_scales is None else branch_scales.unflatten(0, (-1, BRANCHES_PER_BLOCK))
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            of_block = None if scales is None else scales[i]
            if self.training and outputs is None:
                tokens = self.training_block(block, tokens, of_block)
            else:
                tokens = run_block(block, tokens, of_block, outputs)
            if outputs is not None:
                kept |= {f"block{i}/mixing": outputs[-BRANCHES_PER_BLOCK], f"block{i}": tokens}
        pooled = self.norm(tokens).mean(dim=-2)
        kept["pooled"] = pooled
        return self.head(pooled)
