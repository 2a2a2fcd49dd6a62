"""The sweep patch_size: accuracy, speed and the heads that convolutions need, by the size of the patches."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.display.accuracy_tables import Column, Layout
from cvit.analysis.questions import Question
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION, PATCH_SIZE, SCHEME
from cvit.theorem.counts import heads_needed

KERNEL_SIZES = (3, 5, 7)
HEADS_NEEDED = f"heads needed (K = {', '.join(map(str, KERNEL_SIZES))})"


def steps_per_second(study: Study, place: Mapping[str, Any]) -> float:
    """Optimiser steps per second, the median over the trials at a place; NaN without a measurement."""
    return statistics.median(all_steps_per_second(study, place) or [math.nan])


def all_steps_per_second(study: Study, place: Mapping[str, Any]) -> list[float]:
    """Optimiser steps per second of the trials at a place that have a measurement."""
    speeds = [trial[names.IMAGES_PER_SECOND] / trial["batch_size"] for trial in study.trials_at(place)]
    return [speed for speed in speeds if math.isfinite(speed)]


def heads_by_kernel(patch_size: int) -> tuple[int, ...]:
    """The theorem's number of heads for each of the KERNEL_SIZES."""
    return tuple(heads_needed(kernel_size, patch_size) for kernel_size in KERNEL_SIZES)


QUESTION = Question(
    order=50,
    axes=(FRACTION, PATCH_SIZE, SCHEME),
    layout=Layout(
        columns=(
            Column(
                "steps/s", ("steps_per_second",), lambda study, at: (steps_per_second(study, at),), is_measured=True
            ),
            Column(
                HEADS_NEEDED,
                tuple(f"heads_needed_k{kernel_size}" for kernel_size in KERNEL_SIZES),
                lambda _, place: heads_by_kernel(place[PATCH_SIZE]),
            ),
        ),
    ),
    caption="Left: test accuracy against the size of the patches, means over seeds with 95 % intervals. Right: "
    "optimiser steps per second, the median and the quartiles of all trials, and the heads that convolutions of 3, "
    "5 and 7 pixels need.",
)
