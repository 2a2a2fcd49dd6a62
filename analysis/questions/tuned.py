"""The sweep tuned: the search for each init scheme's settings, and the accuracy of its winner on fresh seeds.

The trials of the search have the seed SEARCH_SEED and are compared by their last validation accuracy; a trial that
diverged or failed counts as 0. The winner is the first trial with the highest accuracy. Test accuracies are those of
the winner on seeds that the search has not seen; winners of earlier, shorter searches do not count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.display.csv_text import csv_text
from analysis.display.notes import notes
from analysis.display.settings import heading_lines, listed, settings_lines
from analysis.display.tables import Tables
from analysis.display.text import (
    gain_text,
    latex,
    latex_estimate,
    latex_table,
    markdown_name,
    markdown_table,
    mean_text,
    percent,
)
from analysis.display.wording import heading, plain_text, scheme_text
from analysis.questions import Question
from analysis.statistics.stats import Result, Summary, paired_difference, study_results, summarise
from analysis.statistics.studies import BASELINE, GAIN, TREATMENT, Study
from analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP
from cvit import vocabulary as names

SETTINGS = (LEARNING_RATE, "weight_decay", WARMUP, "attention_sharpness")
AXES = (*SETTINGS, SCHEME)

_RULES = (
    "Each init scheme's own settings, found by a search of equal budget: the trial with the highest accuracy on the "
    "validation images at its end wins; one that diverged or failed is the worst. The winner is trained again on seeds "
    "that the search has not seen, and its test accuracy is that of those alone: mean with the 95 % t-interval; the "
    "gain is the difference on the same seeds. A diverged trial counts with its last measured accuracy, where there is "
    "one. A dash: nothing to compute it from."
)
_HEAD = ("scheme", "tried", "diverged", *map(heading, SETTINGS), "validation, %", "test, %")


@dataclass(frozen=True)
class Tuned:
    """The outcome of one init scheme's search.

    Attributes:
        tried: the finished trials of the search, in its order; `value` is the validation accuracy.
        winner: the best of them so far; None before the first has finished.
        fresh: the winner's trials on fresh seeds; `value` is the test accuracy, and the scheme is their only axis.
    """

    scheme: str
    tried: list[Result]
    winner: Result | None
    fresh: list[Result]

    @property
    def accuracy(self) -> Summary | None:
        """The winner's test accuracy."""
        return next(iter(summarise(self.fresh, [SCHEME])), None)


def searches(study: Study) -> list[Tuned]:
    """The outcomes of the searches, one per init scheme."""
    on_validation = study_results(study.cells, study.trials, names.VAL_ACCURACY)  # in the order of the search
    outcomes = []
    for scheme in study.schemes:
        tried = [
            result if result.state == names.STATUS_OK else replace(result, value=0.0)
            for result in on_validation
            if result.place[SCHEME] == scheme
            and result.seed == names.SEARCH_SEED
            and result.trial
            and result.trial["status"]
        ]
        winner = max(tried, key=lambda result: result.value, default=None)
        fresh = [
            replace(result, place={SCHEME: scheme})
            for result in study.results
            if winner and result.place == winner.place and result.seed != names.SEARCH_SEED
        ]
        outcomes.append(Tuned(scheme, tried, winner, fresh))
    return outcomes


def gain(outcomes: Sequence[Tuned]) -> Summary | None:
    """Two phases minus random initialisation, each at its best settings, on the same fresh seeds."""
    fresh = [result for tuned in outcomes for result in tuned.fresh]
    return next(iter(paired_difference(fresh, SCHEME, TREATMENT, BASELINE)), None)


def csv(studies: Sequence[Study]) -> str:
    """All studies as CSV; accuracies and differences are fractions.

    `kind` is `search` (a row per trial, `number` its place in the search, `mean` its validation accuracy), `winner`
    (`mean` the test accuracy on fresh seeds) or `paired_gain`.
    """
    rows: list[dict[str, Any]] = []
    for study in studies:
        common = {"sweep": study.sweep, "study": study.label, "dataset": study.dataset}
        outcomes = searches(study)
        for tuned in outcomes:
            at = common | {SCHEME: tuned.scheme}
            for number, result in enumerate(tuned.tried, 1):
                settings = {name: result.place[name] for name in SETTINGS}
                value = {"mean": result.value, "n": 1, "expected": 1, "diverged": int(result.diverged)}
                rows.append(at | settings | value | {"kind": "search", "number": number})
            if tuned.winner is not None:
                settings = {name: tuned.winner.place[name] for name in SETTINGS}
                validation = {"validation_accuracy": tuned.winner.value, "tried": len(tuned.tried)}
                rows.append(at | settings | validation | _estimate(tuned.accuracy) | {"kind": "winner"})
        rows.append(common | {SCHEME: GAIN.replace(" ", ""), "kind": "paired_gain"} | _estimate(gain(outcomes)))
    columns = ["sweep", "study", "dataset", "kind", SCHEME, "number", *SETTINGS, "tried", "validation_accuracy"]
    columns += ["mean", "ci_low", "ci_high", "n", "expected", "diverged"]
    return csv_text(rows, columns)


def markdown(studies: Sequence[Study]) -> str:
    """All studies as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, a `table` each (package booktabs)."""
    return "\n".join(
        latex_table(
            f"Init schemes at their own best settings on {study.dataset} (study {study.label}), found by searches of "
            "equal budget: trials of the search, the winner's settings and validation accuracy, and its test accuracy "
            "in percent on fresh seeds (mean, half of the 95 % t-interval, number of seeds).",
            f"{study.sweep}-{study.label}",
            _HEAD,
            [[*map(latex, row[:-1]), latex_estimate(row[-1])] for row in _rows(searches(study), r" \pm ")],
            notes=notes(study),
        )
        for study in studies
    )


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: the winners and their accuracy on fresh seeds."""
    outcomes = searches(study)
    lines = markdown_table(_HEAD, _rows(outcomes, " ± "))
    lines += ["", "Test accuracy of the winners: mean ± half of the 95 % interval (number of fresh seeds)."]
    lines += _gain_lines(outcomes)
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def _markdown_section(study: Study) -> str:
    outcomes = searches(study)
    lines = [*heading_lines(study), *markdown_table(_HEAD, _rows(outcomes, " ± ")), "", *_gain_lines(outcomes)]
    lines += listed(study, "Missing", study.missing)
    return "\n".join([*lines, *settings_lines(study), ""])


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
        settings: Mapping[str, Any] = tuned.winner.place if tuned.winner else {}
        row += [plain_text(settings.get(name, "-")) for name in SETTINGS]
        row += [percent(tuned.winner.value if tuned.winner else math.nan), mean_text(tuned.accuracy, plus_minus)]
        rows.append(row)
    return rows


def _estimate(summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {"n": 0}
    return vars(summary.estimate) | {"expected": summary.expected, "diverged": summary.diverged}


QUESTION = Question(
    order=80,
    axes=AXES,
    tables=Tables(markdown=markdown, csv=csv, latex=latex_tables, answer=answer),
    caption="Left: validation accuracy of the trials of each scheme's search, the best so far as a line; a trial that "
    "diverged is at 0. Right: test accuracy of the winners on fresh seeds, with mean and 95 % interval.",
)
