"""The sweep tuned: the search for each init scheme's settings, and the accuracy of its winner on fresh seeds.

The trials of the search have the seed SEARCH_SEED and are compared by their last validation accuracy; a trial that
diverged or failed counts as 0. The best of a scheme, its finalists, are trained again on seeds from FINALIST_SEED on,
and the first one with the highest mean validation accuracy on those seeds wins; without a final, the first of the best.
Test accuracies are those of the winner on seeds that neither search nor final has seen; winners of earlier, shorter
searches do not count.

What is searched over are the study's axes, so that searches over other parameters, such as those of earlier versions,
are shown too.
"""

from collections import Counter
from collections.abc import Callable, Sequence
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
from cvit.analysis.statistics.search_space import MIN_TRIALS, Interval, edges, importances, space_of
from cvit.analysis.statistics.searches import Tuned, gain, in_order, searches
from cvit.analysis.statistics.stats import Result, Summary, study_results
from cvit.analysis.statistics.studies import GAIN, Study
from cvit.analysis.store.axes import FRACTION, SCHEME, axes_of
from cvit.parameters import as_text
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
_FIRST_HEAD = ("scheme", "first trial, %", "winner, %", "winner - first, points", "the same in the final")
_ABOUT_FIRST = (
    "The first trial of each search has the settings that were known before. Both columns are validation accuracies of "
    "the search, on one seed, and a winner is chosen for being high there; the difference on the seeds of the final is "
    "a fairer one, where the first trial was a finalist too (mean, 95 % interval, number of seeds)."
)
_ABOUT_IMPORTANCES = (
    "Importance of each parameter for the validation accuracy of a scheme's trials, in % of the variance that is due "
    "to single parameters (functional ANOVA, by Optuna). It says what mattered among what was tried, failures "
    "included, not what to choose; with so few trials, small numbers are noise."
)
EDGE_WARNING = "At the edge of the search"
_UNKNOWN_SPACE = (
    "The store does not say which ranges were searched, since an earlier version wrote it: whether winners lie at the "
    "edge of their ranges is not known."
)


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
    on fresh seeds, `at_edge` the parameters at an edge of their ranges), `importance` (under each parameter its share
    of the variance, from `n` trials) or `paired_gain`.
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
                at_edge = " ".join(edges(space_of(study.search_space), tuned.settings))
                winner = {"kind": "winner", "at_edge": at_edge} | _estimate(tuned.accuracy)
                rows.append(at | _settings(study, tuned.winner) | validation | winner)
            if shares := _importances(study, tuned):
                rows.append(at | shares | {"kind": "importance", "n": len(_counted(tuned))})
        rows.append(common | {SCHEME: GAIN.replace(" ", ""), "kind": "paired_gain"} | _estimate(gain(outcomes)))
    searched = in_order({axis for study in studies for axis in study.axes})
    columns = ["sweep", "study", "dataset", "kind", SCHEME, "number", *searched, "tried", "validation_accuracy"]
    columns += ["mean", "ci_low", "ci_high", "n", "expected", "diverged", "at_edge"]
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
                notes=[*_edge_lines(study, outcomes), *_refusals(outcomes)],
            ),
        ]
        if rows := _importance_rows(study, outcomes):
            tables.append(
                latex_table(
                    f"{_ABOUT_IMPORTANCES} ({study.dataset}, study {study.label}; a dash: no influence)",
                    f"{study.sweep}-{study.label}-importances",
                    _importance_head(outcomes),
                    [list(map(latex, row)) for row in rows],
                )
            )
    return "\n".join(tables)


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: the winners, their settings, and their accuracy on fresh seeds."""
    outcomes = searches(study)
    lines = [*_tables(study, outcomes), ""]
    lines += ["Test accuracy of the winners: mean ± half of the 95 % interval (number of fresh seeds)."]
    lines += [*_gain_lines(outcomes), *_edge_lines(study, outcomes)]
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
    edge_lines = _edge_lines(study, outcomes) if study.search_space else [_UNKNOWN_SPACE]
    lines += [line for text in edge_lines for line in ("", markdown_name(text))]
    lines += ["", _ABOUT_FIRST, "", *markdown_table(_FIRST_HEAD, _first_rows(outcomes, _gain_in_final))]
    if rows := _importance_rows(study, outcomes):
        lines += ["", _ABOUT_IMPORTANCES, "", *markdown_table(_importance_head(outcomes), rows)]
    lines += [line for text in _refusals(outcomes) for line in ("", markdown_name(text))]
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
        for name in in_order(study.axes)
    ]


def _setting_text(study: Study, name: str, value: Any) -> str:
    parameter = parameters_of_task(study.task).get(name)
    is_unset = parameter is not None and parameter.unset is not None and value == parameter.unset
    return as_text(None) if is_unset else plain_text(value)


def _edge_lines(study: Study, outcomes: Sequence[Tuned]) -> list[str]:
    """A line per winner with settings at an edge of their ranges: a wider range may hold a better one."""
    space, lines = space_of(study.search_space), []
    for tuned in outcomes:
        settings = tuned.settings
        parts = []
        for name, edge in edges(space, settings).items():
            within = space[name]
            assert isinstance(within, Interval)
            bounds = f"{plain_text(within.low)} to {plain_text(within.high)}"
            parts.append(f"{name} {_setting_text(study, name, settings[name])} at the {edge} end of {bounds}")
        if parts:
            lines.append(f"{EDGE_WARNING}: {tuned.scheme}, {'; '.join(parts)}. A wider range may hold a better one.")
    return lines


def _first_rows(outcomes: Sequence[Tuned], gain_text_of: Callable[[Tuned], str]) -> list[list[str]]:
    """The rows below _FIRST_HEAD."""
    rows = []
    for tuned in outcomes:
        first, winner = tuned.first, tuned.winner
        row = [scheme_text(tuned.scheme), *(percent(r.value) if r is not None else "-" for r in (first, winner))]
        if first is None or winner is None:
            rows.append([*row, "-", "-"])
        elif winner is first:
            rows.append([*row, "the first won", "-"])
        else:
            rows.append([*row, f"{100 * (winner.value - first.value):+.1f}", gain_text_of(tuned)])
    return rows


def _gain_in_final(tuned: Tuned) -> str:
    return gain_text(tuned.gain_in_final) if tuned.gain_in_final is not None else "-"


def _counted(tuned: Tuned) -> list[Result]:
    """The trials of a search that importances are computed from: a trial that was stopped early has no result."""
    return [result for result in tuned.tried if result.state != names.STATUS_PRUNED]


def _importances(study: Study, tuned: Tuned) -> dict[str, float]:
    """The importances of the parameters that have an influence on the scheme; empty if the trials are too few."""
    searched = [name for name in in_order(study.axes) if name in tuned.settings]
    trials = [({name: result.place[name] for name in searched}, result.value) for result in _counted(tuned)]
    return importances(trials, space_of(study.search_space))


def _importance_head(outcomes: Sequence[Tuned]) -> list[str]:
    """The heading of the importances: every scheme with enough trials, with their number."""
    shown = [tuned for tuned in outcomes if len(_counted(tuned)) >= MIN_TRIALS]
    return ["importance, %", *(f"{tuned.scheme} ({len(_counted(tuned))} trials)" for tuned in shown)]


def _importance_rows(study: Study, outcomes: Sequence[Tuned]) -> list[list[str]]:
    """The rows below `_importance_head`, one per parameter; none if no scheme has enough trials."""
    shares = [_importances(study, tuned) for tuned in outcomes if len(_counted(tuned)) >= MIN_TRIALS]
    found = [name for name in in_order(study.axes) if any(name in of_scheme for of_scheme in shares)]
    return [
        [name, *(f"{100 * of_scheme[name]:.0f}" if name in of_scheme else _NO_INFLUENCE for of_scheme in shares)]
        for name in found
    ]


def _refusals(outcomes: Sequence[Tuned]) -> list[str]:
    """A line about the schemes whose trials are too few for importances; none if all have enough."""
    few = [f"{tuned.scheme} {len(_counted(tuned))}" for tuned in outcomes if len(_counted(tuned)) < MIN_TRIALS]
    return [f"Importances need at least {MIN_TRIALS} trials of a search: {', '.join(few)}."] if few else []


def _estimate(summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {"n": 0}
    return vars(summary.estimate) | {"expected": summary.expected, "diverged": summary.diverged}


QUESTION = Question(
    order=80,
    tables=Tables(markdown=markdown, csv=csv, latex=latex_tables, answer=answer),
    winners=winners,
    sentence=sentence,
    caption="Above, left: validation accuracy of the trials of each scheme's search, with a tick at the first one, "
    "whose settings were known; a trial that diverged is at 0; a cross is a finalist's mean on other seeds. Right: "
    "test accuracy of the winners on fresh seeds, with mean and 95 % interval. Below: the best trial so far.",
)
