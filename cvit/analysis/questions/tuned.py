"""The sweep tuned: the search for each init scheme's settings, and the accuracy of its winner on fresh seeds.

The trials of the search have the seed SEARCH_SEED and are compared by their last validation accuracy; a trial that
diverged or failed counts as 0. The best of a scheme, its finalists, are trained again on seeds from FINALIST_SEED on,
and the first one with the highest mean validation accuracy on those seeds wins; without a final, the first of the best.
Test accuracies are those of the winner on seeds that neither search nor final has seen; winners of earlier, shorter
searches do not count.

What is searched over are the study's axes, so that searches over other parameters, such as those of earlier versions,
are shown too.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes, trained_with
from cvit.analysis.display.sentences import points_text
from cvit.analysis.display.settings import heading_lines, settings_lines
from cvit.analysis.display.tables import Tables
from cvit.analysis.display.text import (
    gain_text,
    latex,
    latex_estimate,
    latex_table,
    markdown_name,
    markdown_table,
    mean_text,
    percent,
)
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import plain_text, scheme_text
from cvit.analysis.questions import Question
from cvit.analysis.statistics.stats import Result, Summary, paired_difference, study_results, summarise
from cvit.analysis.statistics.studies import BASELINE, GAIN, TREATMENT, Study
from cvit.analysis.store.axes import FRACTION, SCHEME, axes_of
from cvit.config import as_text
from cvit.init.schemes import SCHEMES
from cvit.settings import OF_THE_DATA, SearchResult, Winner, settings_text
from cvit.tasks import parameters_of_task

_RULES = (
    "Each init scheme's own settings, found by searches of equal budget: the same number of trials for every scheme, "
    "the first of them at the settings that the sweep gives the scheme. A scheme varies the parameters that have an "
    "influence on it (a dash: none), so the same number of trials is fewer for a scheme with more of them. A trial "
    "counts with its accuracy on the validation images at its end; one that diverged or failed is the worst. The "
    "finalists, the best of each search, are trained again on other seeds, and the mean over those seeds decides "
    "(validation; without a final, the one trial of the search). The winner is trained again on seeds that neither "
    "search nor final has seen, and its test accuracy is that of those alone: mean with the 95 % t-interval; the gain "
    "is the difference on the same seeds. A diverged trial counts with its last measured accuracy, where there is one. "
    "Another dash: nothing to compute it from."
)
_HEAD = ("scheme", "tried", "diverged", "finalists", "validation, %", "test, %")
_NO_INFLUENCE = "-"


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
    """

    scheme: str
    tried: list[Result]
    finalists: list[Finalist]
    winner: Result | None
    validation: float
    fresh: list[Result]

    @property
    def accuracy(self) -> Summary | None:
        """The winner's test accuracy."""
        return next(iter(summarise(self.fresh, [SCHEME])), None)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The winner's values of the parameters that have an influence on the scheme."""
        place = self.winner.place if self.winner is not None else {}
        return {name: place[name] for name in _in_order(place) if name != SCHEME and has_influence(self.scheme, name)}


def has_influence(scheme: str, parameter: str) -> bool:
    """True if a search varies the parameter for a scheme; so it is for a scheme that this version does not know."""
    return scheme not in SCHEMES or parameter not in SCHEMES[scheme].ignores


def _in_order(searched: Iterable[str]) -> list[str]:
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
    return Tuned(scheme, tried, finalists, winner, validation, fresh)


def gain(outcomes: Sequence[Tuned]) -> Summary | None:
    """Two phases minus random initialisation, each at its best settings, on the same fresh seeds."""
    fresh = [result for tuned in outcomes for result in tuned.fresh]
    return next(iter(paired_difference(fresh, SCHEME, TREATMENT, BASELINE)), None)


def winners(studies: Sequence[Study]) -> str:
    """The winners of all studies as a file of settings; empty if there are none."""
    found = [_search_result(study) for study in studies]
    with_winner = [search for search in found if search.schemes]
    return settings_text(with_winner) if with_winner else ""


def _search_result(study: Study) -> SearchResult:
    parameters = parameters_of_task(study.task)

    def of_part(part: str) -> dict[str, Any]:
        names_of_part = [n for n, p in parameters.items() if p.part == part and n not in OF_THE_DATA]
        return {name: value_of(name, study.params[name]) for name in names_of_part if name in study.params}

    def value_of(name: str, value: Any) -> Any:
        return parameters[name].parse(as_text(value)) if name in parameters else value

    won = {
        tuned.scheme: Winner(
            settings={name: value_of(name, value) for name, value in tuned.settings.items()},
            validation_accuracy=tuned.validation,
            seeds=len(tuned.finalists[0].results) if tuned.finalists else 1,
            trials=len(tuned.tried),
        )
        for tuned in searches(study)
        if tuned.validation > 0  # all its trials diverged, or none has ended
    }
    return SearchResult(
        dataset=study.dataset,
        data_fingerprint=study.params.get("data_fingerprint", ""),
        data_fraction=study.params.get(FRACTION),
        model=of_part("model"),
        training=of_part("training"),
        command=study.command,
        code_version=", ".join(trained_with(study)["code_version"]),
        schemes=won,
    )


def csv(studies: Sequence[Study]) -> str:
    """All studies as CSV; accuracies and differences are fractions.

    `kind` is `search` (a row per trial, `number` its place in the search, `mean` its validation accuracy), `finalist`
    (`number` as in the search, `mean` its validation accuracy over `n` other seeds), `winner` (`mean` the test accuracy
    on fresh seeds) or `paired_gain`.
    """
    rows: list[dict[str, Any]] = []
    for study in studies:
        common = {"sweep": study.sweep, "study": study.label, "dataset": study.dataset}
        outcomes = searches(study)
        for tuned in outcomes:
            at = common | {SCHEME: tuned.scheme}
            for number, result in enumerate(tuned.tried, 1):
                value = {"mean": result.value, "n": 1, "expected": 1, "diverged": int(result.diverged)}
                rows.append(at | _settings(study, result) | value | {"kind": "search", "number": number})
            for finalist in tuned.finalists:
                count = len(finalist.results)
                value = {"mean": finalist.mean, "n": count, "expected": count}
                value |= {"diverged": sum(result.diverged for result in finalist.results)}
                number = tuned.tried.index(finalist.tried) + 1
                rows.append(at | _settings(study, finalist.tried) | value | {"kind": "finalist", "number": number})
            if tuned.winner is not None:
                validation = {"validation_accuracy": tuned.validation, "tried": len(tuned.tried)}
                estimate = _estimate(tuned.accuracy)
                rows.append(at | _settings(study, tuned.winner) | validation | estimate | {"kind": "winner"})
        rows.append(common | {SCHEME: GAIN.replace(" ", ""), "kind": "paired_gain"} | _estimate(gain(outcomes)))
    searched = _in_order({axis for study in studies for axis in study.axes})
    columns = ["sweep", "study", "dataset", "kind", SCHEME, "number", *searched, "tried", "validation_accuracy"]
    columns += ["mean", "ci_low", "ci_high", "n", "expected", "diverged"]
    return csv_text(rows, columns)


def _settings(study: Study, result: Result) -> dict[str, Any]:
    return {name: result.place[name] for name in study.axes}


def markdown(studies: Sequence[Study]) -> str:
    """All studies as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, two `table`s each (package booktabs): accuracies, and the winners' settings."""
    tables = []
    for study in studies:
        outcomes = searches(study)
        tables += [
            latex_table(
                f"Init schemes at their own best settings, on {named_title(study)}, found by "
                "searches of equal budget: trials of the search, finalists, the winner's validation accuracy, and its "
                "test accuracy in percent on fresh seeds (mean, half of the 95 % t-interval, number of seeds).",
                f"{study.sweep}-{study.label}",
                _HEAD,
                [[*map(latex, row[:-1]), latex_estimate(row[-1])] for row in _rows(outcomes, r" \pm ")],
                notes=notes(study),
            ),
            latex_table(
                f"The settings of the winners on {named_title(study)}; a dash: no influence.",
                f"{study.sweep}-{study.label}-settings",
                _settings_head(outcomes),
                [list(map(latex, row)) for row in _settings_rows(study, outcomes)],
            ),
        ]
    return "\n".join(tables)


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: the winners, their settings, and their accuracy on fresh seeds."""
    outcomes = searches(study)
    lines = [*_tables(study, outcomes), ""]
    lines += ["Test accuracy of the winners: mean ± half of the 95 % interval (number of fresh seeds)."]
    lines += _gain_lines(outcomes)
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def sentence(study: Study) -> str:
    """The gain of two phases, each scheme at its winner's settings; empty until both have fresh seeds."""
    difference = gain(searches(study))
    if difference is None or not difference.estimate.n:
        return ""
    points = points_text(difference.estimate)
    return f"{GAIN} on the same fresh seeds, each at the settings that its search found: {points}."


def _markdown_section(study: Study) -> str:
    outcomes = searches(study)
    lines = [*heading_lines(study), *_tables(study, outcomes), "", *_gain_lines(outcomes)]
    lines += _missing_lines(study)
    return "\n".join([*lines, *settings_lines(study), ""])


def _missing_lines(study: Study) -> list[str]:
    """A list in Markdown of the missing trials. Settings are named by the number of their trial in the search: they are
    too many to be spelled out."""
    numbers: dict[tuple[Any, ...], int] = {}
    counts: Counter[str] = Counter()
    for result in study_results(study.cells, study.trials):
        if result.seed == names.SEARCH_SEED:
            scheme = result.place[SCHEME]
            counts[scheme] += 1
            numbers[tuple(result.place.items())] = counts[scheme]
    seeds: dict[tuple[str, Any, str], list[int]] = {}
    for result in study.missing:
        place = tuple((name, result.place[name]) for name in axes_of(study.cells))
        seeds.setdefault((result.place[SCHEME], numbers.get(place, "?"), result.state), []).append(result.seed)
    items = [
        f"- {markdown_name(scheme)}, settings of trial {number}, seed {' '.join(map(str, of_item))}: {state}"
        for (scheme, number, state), of_item in seeds.items()
    ]
    return ["", "Missing:", "", *items] if items else []


def _tables(study: Study, outcomes: Sequence[Tuned]) -> list[str]:
    """The table of accuracies and, below it, that of the winners' settings."""
    lines = markdown_table(_HEAD, _rows(outcomes, " ± "))
    return [*lines, "", *markdown_table(_settings_head(outcomes), _settings_rows(study, outcomes))]


def _gain_lines(outcomes: Sequence[Tuned]) -> list[str]:
    difference = gain(outcomes)
    if difference is None:
        return []
    return [
        f"{GAIN}, each at its winner's settings, on the same fresh seeds: {gain_text(difference)} points [95 % "
        "interval] (number of pairs)."
    ]


def _rows(outcomes: Sequence[Tuned], plus_minus: str) -> list[list[str]]:
    """The rows below _HEAD."""
    rows = []
    for tuned in outcomes:
        row = [scheme_text(tuned.scheme), str(len(tuned.tried)), str(sum(r.diverged for r in tuned.tried))]
        seeds = f" on {len(tuned.finalists[0].results)} seeds" if tuned.finalists else ""
        row += [f"{len(tuned.finalists) or '-'}{seeds}", percent(tuned.validation)]
        rows.append([*row, mean_text(tuned.accuracy, plus_minus)])
    return rows


def _settings_head(outcomes: Sequence[Tuned]) -> list[str]:
    return ["setting of the winner", *(tuned.scheme for tuned in outcomes)]


def _settings_rows(study: Study, outcomes: Sequence[Tuned]) -> list[list[str]]:
    """The rows below `_settings_head`, one per parameter: with many of them, columns would not fit a page."""
    return [
        [name, *(_setting_text(study, name, tuned.settings.get(name, _NO_INFLUENCE)) for tuned in outcomes)]
        for name in _in_order(study.axes)
    ]


def _setting_text(study: Study, name: str, value: Any) -> str:
    parameter = parameters_of_task(study.task).get(name)
    is_unset = parameter is not None and parameter.unset is not None and value == parameter.unset
    return as_text(None) if is_unset else plain_text(value)


def _estimate(summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {"n": 0}
    return vars(summary.estimate) | {"expected": summary.expected, "diverged": summary.diverged}


QUESTION = Question(
    order=80,
    tables=Tables(markdown=markdown, csv=csv, latex=latex_tables, answer=answer),
    winners=winners,
    sentence=sentence,
    caption="Left: validation accuracy of the trials of each scheme's search, the best so far as a line; a trial that "
    "diverged is at 0; a cross is a finalist's mean on other seeds. Right: test accuracy of the winners on fresh "
    "seeds, with mean and 95 % interval.",
)
