"""The sharpness of attention at the start, and its leak: the share of attention off a head's target.

The target's logit lies at s, the sharpness, the zero slot at 0 and the other patches at −s. So with N patches

    leak = (1 + (N − 1) e⁻ˢ) / (eˢ + 1 + (N − 1) e⁻ˢ)

The same sharpness leaks more on a finer grid; the same leak makes patch sizes comparable.
"""

import math

_DECIMALS = 9
"""Digits of a sharpness that follows from a leak. It is part of stage keys, and the last digits of a logarithm differ
from one C library to another."""


def sharpness_of(leak: float, num_patches: int) -> float:
    """The sharpness with a leak in (0, 0.5), positive: x = eˢ is the positive root of
    leak · x² − (1 − leak) · x − (1 − leak) (N − 1) = 0."""
    kept = 1 - leak
    doubled = kept + math.sqrt(kept * (kept + 4 * leak * (num_patches - 1)))
    return round(math.log(doubled) - math.log(2 * leak), _DECIMALS)
