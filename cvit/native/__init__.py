"""Fused operators for CPUs: a residual branch of a block, forward and backward, as one operator of torch each.

The README of this folder says what each computes, its limits, and how it was checked. They are compiled at first use,
once per machine and user (`cvit.native.library`). Where that cannot be, `problem` says why, and torch's own operators
compute the same. Once loaded, they are `torch.ops.cvit.attention_block`, `shift_block` and `mlp_block`.
"""

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cvit.native.library import Unavailable, library_file

_lock = threading.Lock()
_outcome: list[str | None] = []
"""Why the operators cannot be used, or None; empty before the first question."""


def is_available() -> bool:
    """True if this process can use the operators; the first call loads them, and compiles them if nobody has."""
    return problem() is None


def problem() -> str | None:
    """Why this process cannot use the operators, as a phrase; None if it can."""
    if not _outcome:
        with _lock:
            if not _outcome:
                _outcome.append(_load())
    return _outcome[0]


def has_half_products() -> bool:
    """True if the operators can round the factors of products to bfloat16: if the processor multiplies these."""
    return is_available() and _has_half_products()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Within the context, torch computes everything in this process: for comparisons."""
    before = problem()
    _outcome[0] = "they are switched off"
    try:
        yield
    finally:
        _outcome[0] = before


@cache
def _has_half_products() -> bool:
    import torch

    return torch.ops.cvit.has_half_products()


def use(path: Path) -> None:
    """Makes this process use a library at a place of one's own.

    Raises:
        Unavailable: the file cannot be loaded.
    """
    from cvit.native.operators import load  # imports torch

    load(path)
    _outcome[:] = [None]


def _load() -> str | None:
    from cvit.native.operators import load

    try:
        load(library_file())
    except Unavailable as reason:
        return str(reason)
    return None
