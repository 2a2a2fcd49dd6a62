"""Short texts that several rooms print."""

import math


def duration(seconds: float) -> str:
    """A duration in words: 45 s, 12 min, 3.4 h."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
