"""The colours of init schemes, the same in figures and trackers. The module is light: it imports no matplotlib.

Black, the blue of `two_phase`, the orange of `random` and the green are Okabe and Ito's. The others were chosen so that
any two of the nine differ for colour-blind readers too, by at least 0.08 in OKLab; `tests/analysis/test_colours.py`
measures it.
"""

import colorsys
import itertools
import math
import zlib

COLOURS = {
    "random": "#D55E00",
    "two_phase": "#0072B2",
    "conv_structured": "#009E73",
    "joint": "#882255",
    "mimetic": "#9B5DE5",
    "impulse": "#D09A10",
    "local": "#33BBEE",
    "convolution": "#000000",
    "resnet": "#332288",
}
_OF_SEVERAL = ("factor", "schedule")
"""The first words of variants of which a figure has several; it has few schemes beside them."""
_OF_VARIANTS = ("#009E73", "#9B5DE5", "#D09A10", "#33BBEE", "#882255")
_LEAST_DISTANCE = 0.25
"""The distance in RGB, whose axes go to 1, that a colour made from a name keeps from those above."""


def colour_of(scheme: str) -> str:
    """The colour of an init scheme, such as `#0072B2`.

    A variant (`two_phase, equal flops`) has the colour of its scheme, or, if figures have several of its kind, one of
    its own. The colour of a scheme that this version does not know follows from its name alone.
    """
    base, _, variant = scheme.partition(", ")
    if variant.startswith(_OF_SEVERAL):
        return _OF_VARIANTS[zlib.crc32(scheme.encode()) // 4 % len(_OF_VARIANTS)]  # tells those of the presets apart
    return COLOURS.get(base) or _from_name(base)


def _from_name(name: str) -> str:
    """A colour, neither pale nor grey, that is unlike those of COLOURS."""
    colours = (_colour(zlib.crc32(f"{attempt}{name}".encode(errors="surrogatepass"))) for attempt in itertools.count())
    return next(c for c in colours if all(_distance(c, other) >= _LEAST_DISTANCE for other in COLOURS.values()))


def _colour(number: int) -> str:
    """A colour from a number of 32 bits."""
    parts = colorsys.hls_to_rgb(number / 2**32, 0.3 + 0.2 * (number % 997) / 997, 0.7)
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)


def _distance(colour: str, other: str) -> float:
    return math.dist(_parts(colour), _parts(other))


def _parts(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
