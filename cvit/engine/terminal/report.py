"""The text that a sweep prints before it starts and after it ends."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cvit.analysis.answers import answer_text
from cvit.analysis.files import file_stem, winners_file
from cvit.analysis.statistics.studies import read_studies
from cvit.analysis.store.frames import LoadError
from cvit.analysis.store.journal import load_journal
from cvit.config import as_text
from cvit.engine.declaration import Search
from cvit.engine.execution.cost import flops_of, step_seconds
from cvit.engine.execution.pack_size import Limits, pack_limits
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.grids import Cell, as_grids
from cvit.engine.planning.plan import FRACTION, Plan
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.engine.terminal.phases import phase_lines
from cvit.engine.wording import duration
from cvit.storage import Storage
from cvit.vocabulary import FINALIST_SEED, SEARCH_SEED

_MOST_PLACES_SHOWN = 3
_MOST_VALUES_SHOWN = 24
"""The most values of an axis that are printed."""
RESULTS_FOLDER = Path("results")
"""The folder that `analysis/make_tables.py` writes to by default."""
SMALL_S = 10.0
"""Below this, the time that sharing saves is printed in tenths of a second: in a tiny preset it is less than one."""


@dataclass(frozen=True)
class Closing:
    """The facts about the end of a session that are printed.

    Attributes:
        tracking_place: the name of the tracking store.
        how_to_look: lines that tell where the runs can be seen.
        tracking_error: why the tracking store is incomplete.
        storage_error: why the storage cannot be written any more.
        training_error: why the training could not go on.
    """

    is_interrupted: bool
    time_line: str
    tracking_place: str
    how_to_look: list[str]
    tracking_error: str | None = None
    storage_error: str | None = None
    training_error: str | None = None


def print_plan(console: Console, progress: Progress, request: Request) -> None:
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
        *_after("settings", plan.study.notes),
        f"  trials    {len(plan.trials)}, {progress.num_done} of them done",
        f"  stages    {len(plan.stages)}, {len(todo)} to train ({_saved(plan)})",
        f"  steps     {sum(stage.steps for stage in todo):,} optimiser steps to train",
        f"  storage   {request.storage}",
        f"  tracking  {request.tracking_uri}",
    ]
    if plan.search is not None:
        lines += _after("search", [_search_text(plan.search, len(plan.study.grid["seed"]))])
    if plan.dropped:
        lines += [f"  dropped   {len(plan.dropped)} impossible combinations:", *_dropped(plan)]
    if not (request.dry_run and todo):  # else the phases follow with the seconds that they are expected to take
        lines += phase_lines(progress)
    _print(console, lines)
    if not todo and plan.search is None:
        _print(console, ["Nothing to train: every trial is done."])


def print_cost(console: Console, progress: Progress, workers: Workers, max_pack: int | None) -> None:
    """Prints the cost of the stages to train, and of the stages that sharing saves, measured on a few steps.

    Args:
        workers: the workers of this machine.
        max_pack: the largest number of stages trained together; None measures it.
    """
    plan, todo = progress.plan, progress.todo
    if not todo:
        return
    device = torch.device(workers.device)
    limits = pack_limits(todo, workers, max_pack)
    costs = step_seconds(todo, limits, device)
    flops, seconds = flops_of(todo), costs.of(todo)
    lines = [
        *phase_lines(progress, lambda stage: costs.of([stage])),
        f"  packs     {_packs(progress, limits, workers.count)}",
    ]
    if math.isnan(seconds):
        too_large = f"a step is too large to be timed on this machine's {workers.device.upper()}"
        _print(console, [*lines, f"  cost      {flops:.2g} FLOPs in training steps; {too_large}"])
        return
    lines.append(
        f"  cost      {flops:.2g} FLOPs in training steps; about {duration(seconds)} of one worker "
        f"on this machine's {workers.device.upper()}, evaluation not counted"
    )
    if len(costs.by_kind) < costs.num_kinds:
        lines.append(f"            by {len(costs.by_kind)} of {costs.num_kinds} kinds of step, the rest as their mean")
    if plan.search is not None:
        per_scheme = len(plan.trials) / len(plan.study.grid["init_scheme"])
        share = (plan.search.trials + plan.search.num_finals + len(plan.study.grid["seed"])) / per_scheme
        lines.append(f"            for the first round; about {duration(share * seconds)} for all of them")
    if plan.shared:
        lines.append(_saved_time(costs.of(plan.shared)))
    _print(console, lines)


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
    _print(console, [f"search: {trials}, {len(progress.todo)} stages to train"])


def print_closing(
    console: Console, progress: Progress, request: Request, storage: Storage, closing: Closing
) -> str | None:
    """Prints the answer so far, and where to look next or how to continue.

    Returns:
        Why the storage does not give the answer; None if it does.
    """
    stopped = f"Stopped with {progress.num_done} of {len(progress.plan.trials)} trials done."
    study, storage_error, answer = progress.plan.study, closing.storage_error, ""
    winners: Mapping[str, bytes] = {}
    if storage_error is None:
        try:
            frames = load_journal(storage, study.sweep)
            answer = answer_text(frames, study.key, width=console.width if console.is_terminal else None)
            if progress.plan.search is not None:
                winners = winners_file(read_studies(frames, study.sweep), study.sweep, file_stem(study.sweep))
        except LoadError as error:
            storage_error = str(error)
    if storage_error is not None:
        reasons = [storage_error, f"{stopped} When the storage works again, continue with:"]
        _print(console, ["", *reasons, f"  {request.command}"])
        return storage_error
    source = f"--storage {shlex.quote(request.storage)}"
    lines = ["", answer, ""]
    lines += [f"Time:                {closing.time_line}"]
    if closing.tracking_error is not None:
        lines += [
            f"{closing.tracking_place} is incomplete ({closing.tracking_error}); "
            f"nothing is lost: the results are in the journal, and running the command again copies them, or:",
            f"  {request.started.tool('sync')} {source} --tracking-uri {shlex.quote(request.tracking_uri)}",
        ]
    if closing.training_error is not None:
        lines += [closing.training_error, *_failures(progress), f"{stopped} Continue with:", f"  {request.command}"]
    elif closing.is_interrupted:
        lines += [f"{stopped} Continue with:", f"  {request.command}"]
    else:
        lines += [*_failures(progress), f"Tables and figures:  {request.started.tool('tables')} {source}"]
        lines += _written(winners)
        lines += closing.how_to_look
    _print(console, lines)
    return None


def _written(winners: Mapping[str, bytes]) -> list[str]:
    """Writes the winners of a search where `analysis/make_tables.py` writes them too; returns lines that say so."""
    lines = []
    for name, content in winners.items():
        path = RESULTS_FOLDER / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            lines.append(f"{path} cannot be written: {error.strerror}; analysis/make_tables.py writes it too")
        else:
            lines.append(f"Winners' settings:   {path}; other sweeps take them by --settings-from {path}")
    return lines


def print_lost_head(console: Console, progress: Progress, request: Request, address: str) -> None:
    """Prints that the head of a cluster is lost, before Ray ends the driver."""
    num_done = f"{progress.num_done} of {len(progress.plan.trials)} trials"
    lines = [
        "",
        f"The cluster's head at {address} does not answer any more: Ray will end this process within a minute.",
        f"Stopped with {num_done} done. On a new cluster, continue with:",
        f"  {request.command}",
    ]
    _print(console, lines)


def _print(console: Console, lines: list[str]) -> None:
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
    lines = [f"  images    {train} of {pool} for training, {validation} for validation, {test} for testing"]
    for same in plan.merged:
        others = " ".join(map(as_text, same.left_out))
        reason = f"the same {same.num_images} images as {same.kept:g}, since every class gives at least one"
        lines.append(f"  left out  {FRACTION} {others}: {reason}")
    return lines


def _data_line(params: Mapping[str, Any]) -> str:
    size = params["image_size"]
    return f"  data      {params['dataset']}, {size}x{size}, {params['num_classes']} classes"


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


def _saved_time(seconds: float) -> str:
    saved = f"{seconds:.1f} s" if seconds < SMALL_S else duration(seconds)
    return f"  saved     about {saved} of one worker, by sharing stages"


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


def _packs(progress: Progress, limits: Limits, num_workers: int) -> str:
    """A phrase about the packs. Their number is the least one, reached if all stages of a shape are ready together."""
    todo = progress.todo
    counts = Counter(stage.shape for stage in todo)
    share = -(-len(todo) // num_workers)
    sizes = {shape: min(limits.get(shape, 1), share, count) for shape, count in counts.items()}
    num_packs = sum(-(-count // sizes[shape]) for shape, count in counts.items())
    return f"{num_packs} or a few more, of at most {max(sizes.values())} stages, on {num_workers} workers"


def _failures(progress: Progress) -> list[str]:
    """Lines about the trials that failed: their number, then one line per error with some of its trials."""
    num_trials, num_failed = len(progress.plan.trials), len(progress.plan.trials) - progress.num_done
    if not num_failed:
        return []
    by_error: dict[str, list[str]] = {}
    for trial in progress.plan.trials:
        if trial.key in progress.failed:
            place = " ".join(f"{axis}={as_text(value)}" for axis, value in trial.cell.items())
            by_error.setdefault(progress.failed[trial.key], []).append(place)
    return [
        f"{num_failed} of {num_trials} trials failed; running the command again retries them.",
        *(f"  {error}: {_some(places)}" for error, places in by_error.items()),
    ]


def _some(places: list[str]) -> str:
    more = len(places) - _MOST_PLACES_SHOWN
    return "; ".join(places[:_MOST_PLACES_SHOWN]) + (f" and {more} more" if more > 0 else "")
