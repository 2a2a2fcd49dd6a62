"""Stochastic depth (Huang et al. 2016): in training, an image skips a residual branch with a probability that rises
over the depth of the network.

Each block has two branches, mixing and MLP, each drawn by itself for every image. A branch that is kept is multiplied
by 1 / (1 − probability), so that its expectation stays; at evaluation all branches are kept as they are.
"""

from torch import Tensor

BRANCHES_PER_BLOCK = 2


def drop_probabilities(depth: int, last: float) -> list[float]:
    """The probability of every branch, in the order of the forward pass: linear in the number of blocks before it, 0 in
    the first block and `last` in the last one; a single block is the last."""
    of_blocks = [last * block / (depth - 1) for block in range(depth)] if depth > 1 else [last]
    return [probability for probability in of_blocks for _ in range(BRANCHES_PER_BLOCK)]


def branch_scales(is_kept: Tensor, probabilities: Tensor) -> Tensor:
    """The factors of the branches, (branches, M, B).

    Args:
        is_kept: (M, branches, B) bool.
        probabilities: (M, branches), of dropping.
    """
    return (is_kept / (1 - probabilities[..., None])).transpose(0, 1)
