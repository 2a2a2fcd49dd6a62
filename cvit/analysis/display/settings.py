"""The text around the tables of a study: its start, its settings, and its missing trials."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cvit.analysis.display.notes import notes, trained_with_text
from cvit.analysis.display.text import markdown_code, markdown_name, markdown_table
from cvit.analysis.display.titles import study_title
from cvit.analysis.display.wording import label, labels, plain_text
from cvit.analysis.statistics.stats import Result
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME, SEED, SHOWN_AS, sort_key
from cvit.tasks import parameters_of_task


def heading_lines(study: Study) -> list[str]:
    """A section's heading in Markdown: title, question, start, and the label that files have for it."""
    started = datetime.fromtimestamp(study.start_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    named = f"Started {started}, study {markdown_code(study.label)}."
    return [f"## {markdown_name(study_title(study))}", "", f"{study.question} {named}", ""]


def listed(study: Study, title: str, results: Sequence[Result]) -> list[str]:
    """A list in Markdown of single trials with their states; no lines without trials."""
    items = []
    for result in results:
        step = result.trial["diverged_step"] if result.trial and result.diverged else None
        scheme = [result.place[SCHEME]] if has_schemes(study) else []
        where = ", ".join([*labels(study, result.place), *scheme, f"seed {result.seed}"])
        items.append(f"- {markdown_name(where)}: {result.state}" + ("" if step is None else f" at step {step}"))
    return ["", f"{title}:", "", *items] if items else []


def settings_lines(study: Study, in_tables: Collection[str] = ()) -> list[str]:
    """A section's footer in Markdown: the notes on its tables, the settings of the schemes, and the command.

    Args:
        in_tables: the parameters that the tables already show.
    """
    shared, differing = split_settings(study, in_tables)
    lines = [line for note in notes(study) for line in ("", note)]
    if differing:
        rows = [
            [f"`{name}`", *(by_scheme.get(scheme, "-") for scheme in study.schemes)]
            for name, by_scheme in differing.items()
        ]
        lines += ["", "Settings that differ:", "", *markdown_table(["setting", *study.schemes], rows)]
    lines += ["", *([f"Data set: {markdown_name(study.dataset)}{_num_images(study)}.", ""] if study.dataset else [])]
    if shared:
        settings = ", ".join(markdown_code(f"{name}={value}") for name, value in shared.items())
        lines += [f"Shared settings: {settings}.", ""]
    if trained_with := trained_with_text(study):
        lines += [f"Trained with: {markdown_name(trained_with)}.", ""]
    return [*lines, "Command:", "", *(f"    {line}" for line in study.command.splitlines() or ["unknown"])]


def split_settings(study: Study, in_tables: Collection[str] = ()) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The settings of a study without axes and seed: those that all trials share, then those that differ, by scheme.

    A setting that varies within a scheme is listed by the first axis that determines it, else by all axes. Without
    trials, the settings of the study itself are the shared ones.
    """
    shared: dict[str, str] = {}
    differing: dict[str, dict[str, str]] = {}
    trials: Sequence[Mapping[str, Any]] = study.trials or [study.params]
    for name, parameter in parameters_of_task(study.task).items():
        if name in (*study.axes, SCHEME, SEED, "dataset", *in_tables):
            continue
        if all(trial.get(name) in (None, parameter.unset, "") for trial in trials):
            continue  # not set: another setting, such as head_dim or learning_rate, applies
        values = _distinct(trials, name)
        if len(values) == 1:
            shared[name] = values[0]
        elif len(values) > 1:
            differing[name] = {
                scheme: _by_axis(study, [trial for trial in study.trials if _scheme_of(trial) == scheme], name)
                for scheme in study.schemes
            }
    return shared, differing


def has_schemes(study: Study) -> bool:
    """True if the trials of the study's task have an init scheme."""
    return SCHEME in parameters_of_task(study.task)


def _scheme_of(trial: Mapping[str, Any]) -> str:
    """The name of a trial's scheme in the tables."""
    return trial.get(SHOWN_AS, trial.get(SCHEME, "-"))


def _num_images(study: Study) -> str:
    """The number of training images, where all trials have the same; else the tables show it."""
    count = study.shares.count_at({})
    return "" if count is None else f", {count:,} training images"


def _by_axis(study: Study, trials: Sequence[Mapping[str, Any]], name: str) -> str:
    values = _distinct(trials, name)
    if len(values) <= 1 or not study.axes:
        return ", ".join(values) or "-"
    spelled_out: list[str] = []
    for axes in [*([axis] for axis in study.axes), study.axes]:
        by_place: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for trial in trials:
            by_place.setdefault(tuple(trial[axis] for axis in axes), []).append(trial)
        by_place = dict(sorted(by_place.items(), key=lambda item: [*map(sort_key, item[0])]))
        distinct = {place: _distinct(part, name) for place, part in by_place.items()}
        spelled_out = [
            ", ".join(label(axis, value, study.head_dim) for axis, value in zip(axes, place, strict=True))
            + f": {', '.join(values)}"
            for place, values in distinct.items()
        ]
        if all(len(values) == 1 for values in distinct.values()):
            break
    return "; ".join(spelled_out)


def _distinct(trials: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    return [plain_text(value) for value in dict.fromkeys(trial[name] for trial in trials if name in trial)]
