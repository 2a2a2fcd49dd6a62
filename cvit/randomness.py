"""Randomness by address: every draw comes from a generator seeded by (seed, purpose, index), and no state is kept.

So a resumed run equals an uninterrupted one, and no draw depends on the worker or the machine. Importing this module
does not import torch.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """The seed at an address: the first 64 bits of SHA-256 of (seed, purpose, index), in [0, 2**64)."""
    digest = hashlib.sha256(f"{seed}|{index}|{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def generator(seed: int, purpose: str, index: int = 0) -> "torch.Generator":
    """A fresh CPU generator for one purpose ("init", "batch order", ...) and one step or epoch of a seed.

    torch's CPU generator uses only the low 32 bits of its seed, so two addresses share a stream with a probability of
    one in four billion.
    """
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, purpose, index))
