"""The text of a plan, printed before anything starts: it imports neither torch nor pandas."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from cvit.engine.declaration import Search
from cvit.engine.execution.forecast import Forecast
from cvit.engine.planning.grids import Cell, as_grids
from cvit.engine.planning.plan import FRACTION, Plan
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.engine.terminal.phases import phase_lines
from cvit.engine.wording import duration
from cvit.errors import counted
from cvit.parameters import as_text
from cvit.vocabulary import FINALIST_SEED, SEARCH_SEED, noun_of

WORTH_SAYING = 1.5
"""From this factor on, the plan says that a busy machine takes longer."""
_MOST_VALUES_SHOWN = 24
"""The most values of an axis that are printed."""


def print_plan(console: Console, progress: Progress, request: Request, forecast: Forecast) -> None:
    """Prints the plan in a few lines."""
    plan, todo = progress.plan, progress.todo
    params = plan.study.params
    lines = [
        f"{plan.study.sweep}: {plan.study.question}",
        f"  preset    {request.preset}",
        *([_data_line(params)] if "dataset" in params else []),
        *(f"            {note}" for note in (plan.study.info.notes if plan.study.info is not None else ())),
        *(f"  {axis.removeprefix('data_'):<9} {_values(axis, v)}" for axis, v in _grid(plan).items()),
        *_image_lines(plan),
        *_after("settings", [*request.notes, *plan.study.notes]),
        f"  trials    {len(plan.trials)}, {progress.num_done} of them done",
        f"  stages    {len(plan.stages)}, {len(todo)} to train ({_saved(plan)})",
        f"  steps     {progress.num_steps_to_train:,} optimiser steps to train",
        *([f"  kept      {kept_text(progress)} are kept from before"] if todo and progress.num_steps_kept else []),
        *([_time_line(forecast)] if todo and not request.dry_run else []),
        f"  storage   {request.storage}",
        f"  tracking  {request.tracking_uri}",
    ]
    if plan.search is not None:
        lines += _after("search", [_search_text(plan.search, len(plan.study.grid["seed"]))])
    if plan.dropped:
        lines += [f"  dropped   {len(plan.dropped)} impossible combinations:", *_dropped(plan)]
    if not (request.dry_run and todo):  # else the phases follow with the seconds that they are expected to take
        lines += phase_lines(progress, width=console.width if console.is_terminal else None)
    print_lines(console, lines)
    if not todo and plan.search is None:
        print_lines(console, ["Nothing to train: every trial is done."])


def _time_line(forecast: Forecast) -> str:
    workers = forecast.workers
    number = f"{workers.count} worker{'s' if workers.count > 1 else ''}" if workers.is_here else "one worker"
    source = "as in earlier runs" if forecast.speed.is_remembered else "expected"
    busy = f"; busy machine × {forecast.busy:.1f}" if forecast.busy >= WORTH_SAYING else ""
    return f"  time      about {duration(forecast.left_s())} on {number} ({source}{busy})"


def print_growth(console: Console, progress: Progress) -> None:
    """Prints the trials that the results so far have added to the plan of a search."""
    plan = progress.plan
    seeds = {trial.cell["seed"] for trial in plan.trials} - {SEARCH_SEED}
    of_final = {seed for seed in seeds if seed >= FINALIST_SEED}
    trials = f"{len(plan.trials)} trials so far"
    if of_final:
        trials = f"the finalists on {len(of_final)} other seeds"
    if seeds - of_final:
        trials = f"the winners on {len(seeds - of_final)} fresh seeds"
    print_lines(console, [f"search: {trials}, {len(progress.todo)} stages to train"])


def kept_text(progress: Progress) -> str:
    """A phrase about what need not be trained again."""
    plan = progress.plan
    num_steps = sum(stage.steps for stage in plan.stages.values())
    stages = f"{progress.num_stages_kept:,} of {len(plan.stages):,} stages"
    return f"{stages}, {progress.num_steps_kept:,} of {num_steps:,} steps"


def stopped_text(progress: Progress) -> str:
    """The sentences about the progress at a stop: how much of it the next run finds, and how many trials have ended."""
    num_trials = len(progress.plan.trials)
    return f"{kept_text(progress)} are kept. Stopped with {progress.num_done} of {num_trials} trials done."


def print_stopped(console: Console, progress: Progress, request: Request) -> None:
    """Prints what a stop keeps, and the command that continues, for a stop before anything was trained."""
    print_lines(console, [f"{stopped_text(progress)} Continue with:", f"  {request.command}"])


def print_lines(console: Console, lines: list[str]) -> None:
    """Prints lines as they are."""
    console.print("\n".join(lines), highlight=False, markup=False)


def _after(title: str, texts: Sequence[str]) -> list[str]:
    """Lines of the plan below one title."""
    return [f"  {title if number == 0 else '':<9} {text}" for number, text in enumerate(texts)]


def _search_text(search: Search, num_fresh: int) -> str:
    text = f"{search.trials} trials per scheme in rounds of {search.round_size}"
    if search.num_finals:
        num_finalists = search.num_finals // search.finalist_seeds
        text += f", then the best {num_finalists} on {search.finalist_seeds} other seeds"
    return f"{text}, then each winner on {num_fresh} fresh seeds"


def _grid(plan: Plan) -> Mapping[str, Sequence[Any]]:
    """The values of every axis, without the shares of the images that are left out."""
    left_out = {share for same in plan.merged for share in same.left_out}
    shares = {trial.cell[FRACTION] for trial in plan.trials} if left_out else set()
    return {
        axis: [value for value in values if axis != FRACTION or value not in left_out or value in shares]
        for axis, values in plan.study.grid.items()
    }


def _image_lines(plan: Plan) -> list[str]:
    """Lines about the numbers of images, and about shares of the images that are the same images."""
    images = [trial.images for trial in plan.trials if trial.images is not None]
    if not images:
        return []

    def numbers(part: str) -> str:
        return " ".join(f"{count:,}" for count in dict.fromkeys(getattr(each, part) for each in images))

    train, pool, validation, test = map(numbers, ("train", "pool", "validation", "test"))
    noun = noun_of(plan.study.params.get("dimensions"))
    title = f"{noun}s"
    lines = [f"  {title:<9} {train} of {pool} for training, {validation} for validation, {test} for testing"]
    for same in plan.merged:
        others = " ".join(map(as_text, same.left_out))
        reason = f"the same {same.num_images} {noun}s as {same.kept:g}, since every class gives at least one"
        lines.append(f"  left out  {FRACTION} {others}: {reason}")
    return lines


def _data_line(params: Mapping[str, Any]) -> str:
    size, channels = params["image_size"], params["in_channels"]
    shape = f"{size:,} samples of {counted(channels, 'channel')}" if params["dimensions"] == 1 else f"{size}x{size}"
    return f"  data      {params['dataset']}, {shape}, {params['num_classes']} classes"


def _values(axis: str, values: Sequence[Any]) -> str:
    """The values of an axis. With many seeds, a sentence: who wanted one certain seed reads that it is a number."""
    if len(values) <= _MOST_VALUES_SHOWN:
        return " ".join(map(as_text, values))
    if axis == "seed":
        return f"{values[0]} to {values[-1]}: {len(values):,} seeds (seeds is their number, not a seed)"
    return f"{' '.join(map(as_text, values[:_MOST_VALUES_SHOWN]))} and {len(values) - _MOST_VALUES_SHOWN:,} more"


def _saved(plan: Plan) -> str:
    """A phrase about the stages that sharing saves."""
    if not plan.shared:
        return "sharing saves none"
    saved, rest = (sum(stage.steps for stage in stages) for stages in (plan.shared, plan.stages.values()))
    return f"sharing saves {len(plan.shared)}, {saved:,} steps, {100 * saved / (saved + rest):.0f} % of all"


def _dropped(plan: Plan) -> list[str]:
    """A line per reason, with the values that are left out; an axis whose values are all left out is not named."""
    by_reason: dict[str, list[Cell]] = {}
    for cell, reason in plan.dropped:
        by_reason.setdefault(reason, []).append(cell)
    lines = []
    for reason, cells in by_reason.items():
        for grid in as_grids(cells):
            partial = {axis: values for axis, values in grid.items() if set(values) != set(plan.study.grid[axis])}
            place = ", ".join(f"{axis} {' '.join(map(as_text, values))}" for axis, values in partial.items())
            lines.append(f"            {place or 'all'}: {reason}")
    return lines
