"""Studies in memory, without journal or store, for claims that are judged thousands of times."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cvit import vocabulary as names
from cvit.analysis.statistics.stats import Result
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME

Cell = dict[str, Any]


def study_in_memory(
    sweep: str,
    grid: Mapping[str, list[Any]],
    outcome: Callable[[Cell], tuple[float, Mapping[int, float], Mapping[str, Any]]],
) -> Study:
    """A study whose trials have all ended ok.

    Args:
        grid: the values of the axes, init scheme and seed among them.
        outcome: a cell of the grid → the value of the metric, the validation accuracies by step, further columns.
    """
    results, curves = [], {}
    for values in itertools.product(*grid.values()):
        cell = dict(zip(grid, values, strict=True))
        key = str(values)
        value, curve, columns = outcome(cell)
        if curve:
            curves[key, names.VAL_ACCURACY] = curve
        trial = {"trial_key": key, "num_classes": 10, **cell, **columns}
        place = {axis: value for axis, value in cell.items() if axis != "seed"}
        results.append(Result(place, cell["seed"], names.STATUS_OK, value, trial))
    return Study(
        label="digits",
        sweep=sweep,
        task=names.TRAINING,
        metric=names.TEST_ACCURACY,
        dataset="digits",
        question="",
        command="",
        start_time_ms=0,
        params={},
        axes=[axis for axis in grid if axis not in (SCHEME, "seed")],
        schemes=grid.get(SCHEME, ["-"]),
        trials=[dict(result.trial) for result in results if result.trial],
        results=results,
        cells=[dict(grid)],
        curves=curves,
    )


def measured_curve(
    rng: np.random.Generator,
    shape: Callable[[np.ndarray], np.ndarray] = lambda time: 1 - np.exp(-5 * time),
    *,
    speed: float,
    end: float,
    noise: float,
    evaluations: int = 20,
) -> dict[int, float]:
    """Validation accuracies by step of a training of 400 steps on ten classes.

    Args:
        shape: the share of the way to the end, by the share of the steps.
        speed: the training is as far after a step as one of speed 1 is after `speed` steps.
        end: the accuracy that the training would come to.
        noise: the standard deviation of an evaluation.
    """
    steps = np.arange(1, evaluations + 1) * 400 // evaluations
    accuracies = 0.1 + (end - 0.1) * shape(speed * steps / 400) + noise * rng.normal(size=evaluations)
    return dict(zip(steps.tolist(), accuracies.tolist(), strict=True))
