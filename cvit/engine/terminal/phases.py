"""The cost of each phase of a plan's trials, by init scheme: steps, sum of learning rates, operations, seconds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from cvit.engine.planning.progress import Progress
from cvit.results import StageResult
from cvit.stages import Stage
from cvit.tasks import task_named

_HEAD = ("scheme, phase", "steps", "S (sum of learning rates)", "FLOPs", "seconds")
_LEFT_OUT = (_HEAD[2:3], _HEAD[2:4])
"""The columns that narrow terminals do without."""
_UNKNOWN = "-"

Seconds = Callable[[Stage], float]
"""Stage → the seconds that training it is expected to take."""


def phase_lines(progress: Progress, expected: Seconds | None = None, width: int | None = None) -> list[str]:
    """A line per init scheme and phase, below a head; none for a task whose stages have no learning rates to sum.

    Seconds are those that stages took. A range is that of the places of the grid, with the mean over seeds at each.

    Args:
        expected: for phases of which no stage is done.
        width: of the terminal; one that is too narrow for all columns shows fewer.
    """
    task = task_named(progress.plan.study.task)
    if task.learning_rate_sum is None:
        return []
    stages: dict[tuple[str, str], dict[str, Stage]] = {}
    for trial in progress.plan.trials:
        for stage in trial.stages:
            scheme = trial.params.get(task.compared_by, _UNKNOWN)
            stages.setdefault((scheme, stage.phase), {})[stage.key] = stage
    rows: list[tuple[str, ...]] = [_HEAD]
    flops_of: dict[object, float] = {}
    for (scheme, phase), of_phase in stages.items():
        places: dict[tuple[float, float, float], list[Stage]] = {}
        for stage in of_phase.values():
            if stage.cost_kind not in flops_of:
                flops_of[stage.cost_kind] = task.step_flops(stage)
            numbers = (stage.steps, task.learning_rate_sum(stage), flops_of[stage.cost_kind] * stage.steps)
            places.setdefault(numbers, []).append(stage)
        steps, sums, flops = zip(*places, strict=True)
        rows.append(
            (
                f"{scheme}, {phase}",
                _range(steps, "{:,}"),
                _range(sums, "{:.3g}"),
                _range(flops, "{:.3g}"),
                _seconds(progress, list(places.values()), expected),
            )
        )
    lines = _aligned(rows, range(len(_HEAD)))
    for left_out in _LEFT_OUT:
        if width is not None and max(map(len, lines)) > width:
            lines = _aligned(rows, [number for number, name in enumerate(_HEAD) if name not in left_out])
    return lines


def _aligned(rows: Sequence[tuple[str, ...]], columns: Sequence[int]) -> list[str]:
    """The lines of a table with some of its columns."""
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    aligned = ["  ".join(row[column].ljust(widths[column]) for column in columns).rstrip() for row in rows]
    return [f"  {'phases' if number == 0 else '':<9} {line}" for number, line in enumerate(aligned)]


def _seconds(progress: Progress, places: Iterable[list[Stage]], expected: Seconds | None) -> str:
    """The mean seconds of the stages at each place, as a range; those that are expected if none is known."""
    of_places = list(places)
    measured = [_measured(progress.results, stages) for stages in of_places]
    if any(measured):
        return _range([fmean(seconds) for seconds in measured if seconds], "{:.3g}")
    if expected is None:
        return _UNKNOWN
    means = [fmean(map(expected, stages)) for stages in of_places]
    return _UNKNOWN if any(map(math.isnan, means)) else f"about {_range(means, '{:.2g}')}"


def _measured(results: Mapping[str, StageResult], stages: Iterable[Stage]) -> list[float]:
    return [results[stage.key].seconds for stage in stages if stage.key in results]


def _range(values: Iterable[float], form: str) -> str:
    """The smallest and the largest value; one of them if they look the same."""
    known = list(values)
    return " to ".join(dict.fromkeys(form.format(end) for end in (min(known), max(known))))
