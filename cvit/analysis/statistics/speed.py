"""The speed of one training relative to another: how many times as fast it reaches an accuracy.

Steps, or what they cost in another unit, are counted to one target for both trainings, and whatever is done to one is
done to the other, so exchanging them changes the sign and nothing else. Accuracies on validation images are first
smoothed by isotonic regression, which gives the non-decreasing curve closest to them: the first single measurement
above a target comes the earlier, the noisier measurements are. Between evaluations the curve is a monotone cubic, which
starts at guessing: straight lines lie below a curve that levels off, and most of all below that of the faster training,
which has fewer evaluations on its way. If a training reaches the target before its first evaluation, the estimate is
rough.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression, root_scalar

TARGET_SHARE = 0.9
"""The target lies at this share of the way from guessing to the lower of the two smoothed curves' ends."""
LEAST_SHARE = 0.5
"""The target lies no lower than at this share of the way to the higher end, so that a training that learns next to
nothing does not reach it."""
PENALTY = 2
"""A target that is never reached counts as reached after this many times the steps of the training."""

Curve = Mapping[int, float] | Mapping[float, float]
"""Accuracies by step, or by the cost up to it."""


def log_speed(one: Curve, other: Curve, guessing: float) -> float:
    """The logarithm of how many times as fast the first training reaches the target as the other one.

    Args:
        one: the first training's accuracies; empty if it diverged, which never reaches a target.
        other: those of the other training.
        guessing: the accuracy of guessing.

    Returns:
        log(steps of the other / steps of the first), or of what they cost; 0 if neither reaches the target.
    """
    curves = [_smoothed(curve, guessing) for curve in (one, other)]
    low, high = sorted(accuracies[-1] - guessing for _, accuracies in curves)
    target = guessing + max(TARGET_SHARE * low, LEAST_SHARE * high)
    never = PENALTY * max((*one, *other), default=1)
    of_one, of_other = (_steps_to(target, *curve) or never for curve in curves)
    return math.log(of_other / of_one)


def _smoothed(curve: Curve, guessing: float) -> tuple[np.ndarray, np.ndarray]:
    """The steps, from 0, and the smoothed accuracies, from that of guessing."""
    points = sorted((step, accuracy) for step, accuracy in curve.items() if step > 0)
    steps = [step for step, _ in points]
    smooth = isotonic_regression([accuracy for _, accuracy in points]).x if points else np.empty(0)
    return np.array([0, *steps], dtype=float), np.maximum(np.array([guessing, *smooth]), guessing)


def _steps_to(target: float, steps: np.ndarray, accuracies: np.ndarray) -> float | None:
    """The steps at which a smoothed curve first reaches the target; None if it never rises to it."""
    if not accuracies[0] < target <= accuracies[-1]:
        return None
    after = int(np.searchsorted(accuracies, target))
    above = PchipInterpolator(steps, accuracies - target)
    if above(steps[after]) <= 0:  # the target is the accuracy of an evaluation
        return float(steps[after])
    return float(root_scalar(above, bracket=(steps[after - 1], steps[after])).root)
