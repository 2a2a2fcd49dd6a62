"""The space of a search: winners at its edges, and the importance of its parameters for the result."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

EDGE = 0.05
"""The share of a range, at each of its ends, that counts as its edge."""
MIN_TRIALS = 20
"""The least number of trials from which importances are computed: with fewer, they are those of chance."""


@dataclass(frozen=True)
class Interval:
    """The range of a numeric parameter in a search."""

    low: float
    high: float
    is_log: bool

    def place_of(self, value: float) -> float:
        """The place of a value in the range, from 0 to 1 inside of it; on a logarithmic scale if the search has one."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -math.inf

    def edge_at(self, value: float) -> str:
        """`lower` or `upper` if a value lies at this end of the range or beyond it; else empty.

        A lower end of zero is none, since a search cannot go below it.
        """
        place = self.place_of(value)
        if place <= EDGE and not (self.low == 0 and place >= 0):
            return "lower"
        return "upper" if place >= 1 - EDGE else ""


_Within = Interval | tuple[Any, ...] | None
Space = Mapping[str, Interval | tuple[Any, ...]]
"""The ranges and the choices of a search, by parameter."""


def space_of(text: str) -> Space:
    """The space in a journal's record; empty if it does not say, or says what this version cannot read."""
    try:
        return {name: _within(fields) for name, fields in json.loads(text or "{}").items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _within(fields: Mapping[str, Any]) -> Interval | tuple[Any, ...]:
    if "values" in fields:
        return tuple(fields["values"])
    low, high = float(fields["low"]), float(fields["high"])
    if not low < high or (fields["log"] and low <= 0):
        raise ValueError(f"no range: {low} to {high}")
    return Interval(low, high, bool(fields["log"]))


def edges(space: Space, settings: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a winner at an edge of their range, each with the end: `lower` or `upper`."""
    found = {}
    for name, value in settings.items():
        within = space.get(name)
        if isinstance(within, Interval) and isinstance(value, int | float) and (edge := within.edge_at(value)):
            found[name] = edge
    return found


def importances(trials: Sequence[tuple[Mapping[str, Any], float]], space: Space) -> dict[str, float]:
    """The importance of every parameter for the results, by functional ANOVA; they sum to 1, the largest first.

    It is the share of the variance of a random forest's predictions that is due to the parameter alone (Hutter, Hoos
    and Leyton-Brown 2014, as Optuna computes it), with a fixed seed. A parameter that did not vary is left out.

    Args:
        trials: settings, with a value of each parameter, and result.
        space: the ranges that say which parameters have a logarithmic scale; of others, their values say it.

    Returns:
        Nothing if there are fewer than MIN_TRIALS, or no parameter varied.
    """
    if len(trials) < MIN_TRIALS:
        return {}
    names = tuple(trials[0][0])
    rows = tuple((tuple(settings[name] for name in names), result) for settings, result in trials)
    return dict(_importances(names, rows, tuple(space.get(name) for name in names)))


@lru_cache(maxsize=64)  # the tables of a study ask for them in every format
def _importances(
    names: tuple[str, ...], rows: tuple[tuple[tuple[Any, ...], float], ...], ranges: tuple[_Within, ...]
) -> tuple[tuple[str, float], ...]:
    # Optuna is slow to import, and few sweeps are searches.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    columns = zip(*(values for values, _ in rows), strict=True)
    distributions = {
        name: _distribution(values, within)
        for name, values, within in zip(names, columns, ranges, strict=True)
        if len(set(values)) > 1
    }
    if not distributions or len({result for _, result in rows}) == 1:
        return ()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for values, result in rows:
        params = {name: value for name, value in zip(names, values, strict=True) if name in distributions}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=result))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return tuple(sorted(((name, float(share)) for name, share in found.items()), key=lambda item: -item[1]))


def _distribution(values: Sequence[Any], within: _Within) -> Any:
    """The distribution of a parameter for Optuna, wide enough for all its values: the first ones may lie outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all(isinstance(value, int | float) for value in values) or isinstance(within, tuple):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    if within is None:
        return FloatDistribution(low, high, log=low > 0 and high > _LOG_FROM * low)
    return FloatDistribution(min(low, within.low), max(high, within.high), log=within.is_log and low > 0)


_LOG_FROM = 10.0
"""The ratio of the largest to the smallest value from which a parameter of unknown range has a logarithmic scale."""
