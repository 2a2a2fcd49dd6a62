"""Searches: for each init scheme the trials tried, the finalists, the winner, and its trials on fresh seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.statistics.stats import Result, Summary, paired_difference, study_results, summarise
from cvit.analysis.statistics.studies import BASELINE, TREATMENT, Study
from cvit.analysis.store.axes import SCHEME
from cvit.init.schemes import SCHEMES
from cvit.tasks import parameters_of_task

_SETTINGS, _FIRST, _WINNER = "settings", "first", "winner"


@dataclass(frozen=True)
class Finalist:
    """Settings that were trained on the seeds of the final.

    Attributes:
        tried: its trial in the search.
        results: its trials in the final; `value` is the validation accuracy.
    """

    tried: Result
    results: list[Result]

    @property
    def mean(self) -> float:
        """The mean validation accuracy in the final; NaN until all its trials have ended."""
        ended = all(result.trial is not None and result.trial["status"] for result in self.results)
        return statistics.fmean(result.value for result in self.results) if ended else math.nan


@dataclass(frozen=True)
class Tuned:
    """The outcome of one init scheme's search.

    Attributes:
        tried: the finished trials of the search, in its order; `value` is the validation accuracy.
        finalists: the best of them on other seeds, best of the search first; empty without a final.
        winner: the best so far, as tried in the search; None before the first trial has finished.
        validation: the validation accuracy by which it wins; NaN without a winner.
        fresh: the winner's trials on fresh seeds; `value` is the test accuracy, and the scheme is their only axis.
        first: the first trial, whose settings the scheme had already; None until it has finished.
    """

    scheme: str
    tried: list[Result]
    finalists: list[Finalist]
    winner: Result | None
    validation: float
    fresh: list[Result]
    first: Result | None

    @property
    def accuracy(self) -> Summary | None:
        """The winner's test accuracy."""
        return next(iter(summarise(self.fresh, [SCHEME])), None)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The winner's values of the parameters that have an influence on the scheme."""
        place = self.winner.place if self.winner is not None else {}
        return {name: place[name] for name in in_order(place) if name != SCHEME and has_influence(self.scheme, name)}

    @property
    def gain_in_final(self) -> Summary | None:
        """The winner minus the first trial, which has the settings that were known, on the seeds of the final.

        None if one of them was not in the final, or if they are the same.
        """
        if self.winner is self.first:
            return None
        of_both = {_FIRST: self.first, _WINNER: self.winner}
        results = [
            replace(result, place={_SETTINGS: name})
            for name, tried in of_both.items()
            for finalist in self.finalists
            if finalist.tried is tried
            for result in finalist.results
        ]
        return next(iter(paired_difference(results, _SETTINGS, _WINNER, _FIRST)), None)


def has_influence(scheme: str, parameter: str) -> bool:
    """True if a search varies the parameter for a scheme; so it is for a scheme that this version does not know."""
    return scheme not in SCHEMES or parameter not in SCHEMES[scheme].ignores


def in_order(searched: Iterable[str]) -> list[str]:
    """Parameters in the order of the configuration, in which related ones stand together."""
    order = list(parameters_of_task(names.TRAINING))
    return sorted(searched, key=lambda name: order.index(name) if name in order else len(order))


def searches(study: Study) -> list[Tuned]:
    """The outcomes of the searches, one per init scheme."""
    on_validation = [
        result if result.state == names.STATUS_OK else replace(result, value=0.0)
        for result in study_results(study.cells, study.trials, names.VAL_ACCURACY)  # in the order of the search
    ]
    return [_search(study, scheme, on_validation) for scheme in study.schemes]


def _search(study: Study, scheme: str, on_validation: Sequence[Result]) -> Tuned:
    own = [result for result in on_validation if result.place[SCHEME] == scheme]
    tried = [r for r in own if r.seed == names.SEARCH_SEED and r.trial and r.trial["status"]]
    in_final = [result for result in own if result.seed >= names.FINALIST_SEED]
    ended = [result for result in tried if result.state != names.STATUS_PRUNED] or tried
    ranked = sorted(ended, key=lambda result: result.value, reverse=True)
    best = ranked[: int(study.params.get(names.FINALISTS, 0))]
    finalists = [Finalist(result, [r for r in in_final if r.place == result.place]) for result in best]
    finalists = [finalist for finalist in finalists if finalist.results]
    decided = [finalist for finalist in finalists if not math.isnan(finalist.mean)]
    winner = ranked[0] if ranked else None
    validation = winner.value if winner is not None else math.nan
    if decided:
        first = max(decided, key=lambda finalist: finalist.mean)
        winner, validation = first.tried, first.mean
    fresh = [
        replace(result, place={SCHEME: scheme})
        for result in study.results
        if winner and result.place == winner.place and names.SEARCH_SEED < result.seed < names.FINALIST_SEED
    ]
    first = tried[0] if tried and tried[0] is own[0] else None
    return Tuned(scheme, tried, finalists, winner, validation, fresh, first)


def gain(outcomes: Sequence[Tuned]) -> Summary | None:
    """Two phases minus random initialisation, each at its best settings, on the same fresh seeds."""
    fresh = [result for tuned in outcomes for result in tuned.fresh]
    return next(iter(paired_difference(fresh, SCHEME, TREATMENT, BASELINE)), None)
