"""The colours of init schemes: all distinct, for colour-blind readers too, and found without matplotlib."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from cvit.analysis.display.colours import colour_of
from cvit.init.schemes import SCHEMES

LINEAR_RGB_AS_SEEN = {
    "by most": np.eye(3),
    # Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009),
    # severity 1.
    "without red cones": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "without green cones": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
TO_CONES = np.array(  # Ottosson, A perceptual color space for image processing (2020)
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(colour: str, reader: str) -> np.ndarray:
    return TO_OKLAB @ np.cbrt(TO_CONES @ np.clip(LINEAR_RGB_AS_SEEN[reader] @ linear(colour), 0, 1))


@pytest.mark.parametrize("reader", LINEAR_RGB_AS_SEEN)
def test_colours_of_schemes_differ_for_colour_blind_readers_too(reader: str) -> None:
    colours = {scheme: oklab(colour_of(scheme), reader) for scheme in SCHEMES}
    distances = {(a, b): np.linalg.norm(colours[a] - colours[b]) for a, b in itertools.combinations(colours, 2)}
    assert {pair: distance for pair, distance in distances.items() if distance < 0.08} == {}


def test_colours_stand_out_on_white() -> None:
    luminance = {scheme: linear(colour_of(scheme)) @ (0.2126, 0.7152, 0.0722) for scheme in SCHEMES}
    assert {scheme: value for scheme, value in luminance.items() if 1.05 / (value + 0.05) < 2.2} == {}


def test_unknown_schemes_have_colours_of_their_own() -> None:
    names = [*SCHEMES, *(f"scheme_{number}" for number in range(50)), "name in ¥ or \udcff"]
    colours = [colour_of(name) for name in names]
    assert len(set(colours)) == len(names)
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours)


def test_variants_look_like_their_scheme_unless_a_figure_has_several() -> None:
    assert colour_of("two_phase, equal flops") == colour_of("two_phase")
    of_presets = ["factor 0.1", "schedule joint", "factor 0.1, schedule joint"]
    shown = ["random", "two_phase", *(f"two_phase, {variant}" for variant in of_presets)]
    assert len({colour_of(variant) for variant in shown}) == len(shown)


def test_colours_are_found_without_matplotlib() -> None:
    code = "import sys, cvit.analysis.display.colours; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "numpy", "pandas", "torch"} & set(loaded)
