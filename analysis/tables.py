"""Tables of the answers: Markdown, CSV and LaTeX of a sweep, and the short table of one study for the terminal.

Only what is printed is rounded; the CSV holds fractions in full precision. See analysis/stats.py for the statistics
and for the rule on diverged trials.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from analysis.load import SEED, axes_of, rows_of
from analysis.stats import Estimate, Result, Summary, paired_difference, study_results, summarise
from cvit.config import PARAMETERS

LOW_DATA = "low_data"
FRACTION = "data_fraction"
SCHEME = "init_scheme"
TREATMENT = "two_phase"
BASELINE = "random"

CSV_COLUMNS = (
    "sweep",
    "study",
    "dataset",
    "kind",
    FRACTION,
    SCHEME,
    "mean",
    "ci_low",
    "ci_high",
    "n",
    "expected",
    "diverged",
)

_RULES = (
    "Accuracy on the test images at the end of training, mean over seeds with the 95 % t-interval; gains are "
    "differences on the same seeds. A diverged trial counts with its last measured accuracy, where there is one. "
    "A dash: nothing to compute it from."
)
_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "_%&#${}"},
}


class TableError(ValueError):
    """A study that the table cannot show; the message is one line."""


def low_data_csv(studies: pd.DataFrame, trials: pd.DataFrame) -> str:
    """All studies of the sweep as CSV with the columns CSV_COLUMNS, most recent study first.

    `kind` is `accuracy`, or `paired_gain` with the scheme `two_phase-random`; accuracies and gains are fractions.
    """
    rows = []
    for study in read_studies(studies, trials, LOW_DATA):
        common = {"sweep": LOW_DATA, "study": study.label, "dataset": study.dataset}
        for kind, summaries in (("accuracy", study.accuracy), ("paired_gain", study.gain)):
            for cell in summaries:
                counts = {"expected": cell.expected, "diverged": cell.diverged}
                arm = {SCHEME: f"{TREATMENT}-{BASELINE}"} if kind == "paired_gain" else {}
                rows.append(common | {"kind": kind} | dict(cell.axes) | arm | vars(cell.estimate) | counts)
    return pd.DataFrame(rows, columns=list(CSV_COLUMNS)).to_csv(index=False, lineterminator="\n")


def low_data_markdown(studies: pd.DataFrame, trials: pd.DataFrame) -> str:
    """All studies of the sweep, a section each, most recent first."""
    sections = [_markdown_section(study) for study in read_studies(studies, trials, LOW_DATA)]
    return "\n".join([f"# {LOW_DATA}\n\n{_RULES}\n", *sections])


def low_data_latex(studies: pd.DataFrame, trials: pd.DataFrame) -> str:
    """All studies of the sweep, a `table` each (package booktabs), most recent first."""
    return "\n".join(_latex_table(study) for study in read_studies(studies, trials, LOW_DATA))


def answer_text(studies: pd.DataFrame, trials: pd.DataFrame, study_key: str) -> str:
    """One study in a few lines for the terminal: a row per fraction, a column per scheme, the gain last.

    Raises:
        KeyError: there is no such study.
        TableError: the study has other axes.
    """
    for row in rows_of(studies):
        if row["study_key"] == study_key:
            study = _read_study(row, [trial for trial in rows_of(trials) if trial["study_key"] == study_key])
            break
    else:
        raise KeyError(study_key)
    lines = _markdown_table(*_overview(study, plus_minus=" ± "))
    lines += ["", "Test accuracy in %: mean ± half of the 95 % interval (number of seeds)."]
    if study.gain:
        lines += ["Last column: difference on the same seeds, points [95 % interval] (number of pairs)."]
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


@dataclass(frozen=True)
class StudyTable:
    """One study over data fraction and init scheme, ready to be shown; fractions ascend, schemes keep their order."""

    label: str
    sweep: str
    dataset: str
    question: str
    command: str
    start_time_ms: int
    params: Mapping[str, Any]
    fractions: list[float]
    schemes: list[str]
    trials: list[dict[str, Any]]
    results: list[Result]
    accuracy: list[Summary]
    gain: list[Summary]

    @property
    def missing(self) -> list[Result]:
        return [result for result in self.results if result.missing]


def read_studies(studies: pd.DataFrame, trials: pd.DataFrame, sweep: str) -> list[StudyTable]:
    """The studies of a sweep over data fraction and init scheme, most recent first.

    Raises:
        TableError: a study has other axes.
    """
    by_study: dict[str, list[dict[str, Any]]] = {}
    for trial in rows_of(trials):
        by_study.setdefault(trial["study_key"], []).append(trial)
    chosen = [study for study in rows_of(studies) if study["sweep"] == sweep]
    return [_read_study(study, by_study.get(study["study_key"], [])) for study in reversed(chosen)]


def _read_study(study: Mapping[str, Any], trials: list[dict[str, Any]]) -> StudyTable:
    dataset = study["params"].get("dataset") or next((trial["dataset"] for trial in trials), "unknown")
    label = f"{dataset}-{study['study_key'][:8]}"
    axes = axes_of(study["cells"])
    if set(axes) != {FRACTION, SCHEME}:
        raise TableError(f"study {label} varies {', '.join(axes)}; this table shows {FRACTION} and {SCHEME}")
    results = study_results(study["cells"], trials)
    schemes = list(dict.fromkeys(result.axes[SCHEME] for result in results))
    results.sort(key=lambda result: (result.axes[FRACTION], schemes.index(result.axes[SCHEME]), result.seed))
    return StudyTable(
        label=label,
        sweep=study["sweep"],
        dataset=dataset,
        question=study["question"],
        command=study["command"],
        start_time_ms=study["start_time_ms"],
        params=study["params"],
        fractions=list(dict.fromkeys(result.axes[FRACTION] for result in results)),
        schemes=schemes,
        trials=trials,
        results=results,
        accuracy=summarise(results, [FRACTION, SCHEME]),
        gain=paired_difference(results, SCHEME, TREATMENT, BASELINE),
    )


# Markdown


def _markdown_section(study: StudyTable) -> str:
    started = datetime.fromtimestamp(study.start_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"## {study.label}", "", f"{study.question} Started {started}.", ""]
    lines += _markdown_table(
        ["training data", "scheme", "test accuracy, %", "95 % interval", "n", "expected", "diverged", "missing"],
        [_markdown_cells(cell, cell.axes[SCHEME]) for cell in study.accuracy],
    )
    if study.gain:
        gain = f"{TREATMENT} - {BASELINE}"
        lines += [
            "",
            *_markdown_table(
                ["training data", "paired gain", "points", "95 % interval", "pairs", "expected", "diverged", "missing"],
                [_markdown_cells(cell, gain, sign="+") for cell in study.gain],
            ),
        ]
    unmeasured = [result for result in study.results if result.diverged and math.isnan(result.value)]
    lines += _listed("Missing", study.missing)
    lines += _listed("Diverged before the first test accuracy, so left out of the means", unmeasured)
    return "\n".join([*lines, *_settings(study), ""])


def _markdown_cells(cell: Summary, name: str, sign: str = "") -> list[str]:
    counts = (cell.estimate.n, cell.expected, cell.diverged, cell.missing)
    estimate = [_percent(cell.estimate.mean, sign), _interval(cell.estimate, sign)]
    return [fraction_text(cell.axes[FRACTION]), name, *estimate, *map(str, counts)]


def _listed(title: str, results: Sequence[Result]) -> list[str]:
    items = []
    for result in results:
        step = result.trial["diverged_step"] if result.trial and result.diverged else None
        where = f"{fraction_text(result.axes[FRACTION])}, {result.axes[SCHEME]}, seed {result.seed}"
        items.append(f"- {where}: {result.state}" + ("" if step is None else f" at step {step}"))
    return ["", f"{title}:", "", *items] if items else []


def _settings(study: StudyTable) -> list[str]:
    """The footer: what the schemes ran with, and the command."""
    shared, differing = split_settings(study)
    lines = []
    if differing:
        rows = [
            [f"`{name}`", *(by_scheme.get(scheme, "-") for scheme in study.schemes)]
            for name, by_scheme in differing.items()
        ]
        lines += ["", "Settings that differ:", "", *_markdown_table(["setting", *study.schemes], rows)]
    lines += ["", f"Data set: {study.dataset}.", ""]
    if shared:
        lines += ["Shared settings: " + ", ".join(f"`{name}={value}`" for name, value in shared.items()) + ".", ""]
    return [*lines, "Command:", "", *(f"    {line}" for line in study.command.splitlines() or ["unknown"])]


def split_settings(study: StudyTable) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The study's settings beside axes and seed: those shared by all trials, and those that differ, by scheme.

    A setting that varies within a scheme is spelled out by data fraction. Without trials, the study's own settings
    are the shared ones.
    """
    shared: dict[str, str] = {}
    differing: dict[str, dict[str, str]] = {}
    trials: Sequence[Mapping[str, Any]] = study.trials or [study.params]
    for name in PARAMETERS:
        if name in (FRACTION, SCHEME, SEED, "dataset"):
            continue
        values = _distinct(trials, name)
        if len(values) == 1 and values[0]:
            shared[name] = values[0]
        elif len(values) > 1:
            differing[name] = {
                scheme: _by_fraction([trial for trial in study.trials if trial[SCHEME] == scheme], name)
                for scheme in study.schemes
            }
    return shared, differing


def _by_fraction(trials: Sequence[Mapping[str, Any]], name: str) -> str:
    values = _distinct(trials, name)
    if len(values) <= 1:
        return "".join(values) or "-"
    return "; ".join(
        f"{fraction_text(fraction)}: "
        + ", ".join(_distinct([trial for trial in trials if trial[FRACTION] == fraction], name))
        for fraction in sorted({trial[FRACTION] for trial in trials})
    )


def _distinct(trials: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    values = dict.fromkeys(trial[name] for trial in trials if name in trial)
    return [f"{value:.10g}" if isinstance(value, float) else str(value) for value in values]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]


# LaTeX


def _latex_table(study: StudyTable) -> str:
    head, rows = _overview(study, plus_minus=r" \pm ")
    count = len(head) - 1
    body = [" & ".join([_latex(cells[0]), *map(_latex_cell, cells[1:])]) + r" \\" for cells in rows]
    caption = (
        f"Test accuracy in percent on {study.dataset} (study {study.label}) by share of the training images: mean, "
        "half of the 95 % t-interval, number of seeds."
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_latex(caption)}}}",
            f"  \\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', f'{study.sweep}-{study.label}')}}}",
            f"  \\begin{{tabular}}{{l{'r' * count}}}",
            r"    \toprule",
            "    " + " & ".join(map(_latex, head)) + r" \\",
            r"    \midrule",
            *(f"    {line}" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(text: str) -> str:
    """`63.2 \\pm 2.1 (5)`: the numbers in mathematics, the count in text."""
    numbers, _, count = text.partition(" (")
    shown = "--" if numbers == "-" else f"${numbers}$"
    return f"{shown} ({_latex(count)}" if count else shown


def _latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


# Shared by the formats


def _overview(study: StudyTable, plus_minus: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row per fraction, a column per scheme, the paired gain last."""
    accuracy = {(cell.axes[FRACTION], cell.axes[SCHEME]): cell for cell in study.accuracy}
    gain = {cell.axes[FRACTION]: cell for cell in study.gain}
    head = ["training data", *study.schemes, *([f"{TREATMENT} - {BASELINE}"] if gain else [])]
    rows = []
    for fraction in study.fractions:
        cells = [_mean_text(accuracy.get((fraction, scheme)), plus_minus) for scheme in study.schemes]
        rows.append([fraction_text(fraction), *cells, *([_gain_text(gain.get(fraction))] if gain else [])])
    return head, rows


def _mean_text(cell: Summary | None, plus_minus: str) -> str:
    if cell is None:  # this fraction was not asked for with this scheme
        return "-"
    half_width = cell.estimate.half_width
    mean = _percent(cell.estimate.mean) + ("" if math.isnan(half_width) else plus_minus + _percent(half_width))
    diverged = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{mean} ({cell.estimate.n}{diverged})"


def _gain_text(cell: Summary | None) -> str:
    if cell is None:
        return "-"
    interval = "" if math.isnan(cell.estimate.ci_low) else f" {_interval(cell.estimate, sign='+')}"
    return f"{_percent(cell.estimate.mean, sign='+')}{interval} ({cell.estimate.n})"


def fraction_text(fraction: float) -> str:
    """A share as a percentage, such as `0.5 %`."""
    return f"{100 * fraction:.10g} %"


def _percent(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "-"
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.ci_low):
        return "-"
    return f"[{_percent(estimate.ci_low, sign)}, {_percent(estimate.ci_high, sign)}]"
