"""What a sweep prints before it starts and after it ends."""

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from analysis.answers import answer_text
from analysis.store.load import load_journal
from cvit.storage import Storage
from sweeps.engine.execution.cluster import workers_here
from sweeps.engine.execution.cost import cost_of
from sweeps.engine.execution.pack_size import Limits, pack_limits
from sweeps.engine.planning.grids import Cell, as_grids
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.request import Request
from sweeps.engine.wording import duration

_MOST_PLACES_SHOWN = 3
SMALL_S = 10.0
"""Below it what sharing saves is told in tenths of a second: of a tiny preset it is less than one."""


def print_plan(console: Console, plan: Plan, request: Request) -> None:
    """The plan in a few lines; with --dry-run also what it will cost."""
    todo = plan.todo
    num_done = sum(plan.status(trial) is not None for trial in plan.trials)
    params = plan.study.params
    lines = [
        f"{plan.study.sweep}: {plan.study.question}",
        f"  preset    {request.preset}",
        *([_data_line(params)] if "dataset" in params else []),
        *(f"  {axis.removeprefix('data_'):<9} {' '.join(map(str, v))}" for axis, v in plan.study.cells.items()),
        f"  trials    {len(plan.trials)}, of which done {num_done}",
        f"  stages    {len(plan.stages)} ({_saved(plan)}, saved by sharing), of which to train {len(todo)}",
        f"  steps     {sum(stage.steps for stage in todo):,} optimiser steps to train",
        f"  storage   {request.storage}",
        f"  tracking  {request.tracking_uri}",
    ]
    if plan.search is not None:
        s, fresh = plan.search, len(plan.study.cells["seed"])
        lines += [
            f"  search    {s.trials} trials per scheme in rounds of {s.round_size}, then each winner on {fresh} seeds"
        ]
    if plan.dropped:
        lines += [f"  dropped   {len(plan.dropped)} combinations that cannot be:", *_dropped(plan)]
    if request.dry_run and todo:
        lines += _costs(plan, request)
    console.print("\n".join(lines), highlight=False, markup=False)
    if not todo and plan.search is None:
        console.print("Nothing to train: every trial is done.", highlight=False, markup=False)


def print_growth(console: Console, plan: Plan) -> None:
    """What the results so far have added to the plan of a search."""
    seeds = {trial.cell["seed"] for trial in plan.trials}
    what = f"{len(plan.trials)} trials so far" if len(seeds) == 1 else f"the winners on {len(seeds) - 1} fresh seeds"
    console.print(f"search: {what}, {len(plan.todo)} stages to train", highlight=False, markup=False)


def _data_line(params: Mapping[str, Any]) -> str:
    size = params["image_size"]
    return f"  data      {params['dataset']}, {size}x{size}, {params['num_classes']} classes"


def _saved(plan: Plan) -> str:
    saved, left = (sum(stage.steps for stage in stages) for stages in (plan.shared, plan.stages.values()))
    share = saved / max(1, saved + left)
    return f"{len(plan.shared)} with {saved:,} steps, {100 * share:.0f} % of all"


def _dropped(plan: Plan) -> list[str]:
    """A line per reason, with the values that are left out; axes on which all are go without saying."""
    by_reason: dict[str, list[Cell]] = {}
    for cell, reason in plan.dropped:
        by_reason.setdefault(reason, []).append(cell)
    lines = []
    for reason, cells in by_reason.items():
        for grid in as_grids(cells):
            partial = {axis: values for axis, values in grid.items() if set(values) != set(plan.study.cells[axis])}
            place = ", ".join(f"{axis} {' '.join(map(str, values))}" for axis, values in partial.items())
            lines.append(f"            {place or 'all'}: {reason}")
    return lines


def _costs(plan: Plan, request: Request) -> list[str]:
    workers = workers_here(request.device)
    device = torch.device(workers.device)
    limits = pack_limits(plan.todo, workers, request.max_pack)
    cost = cost_of(plan.todo, limits, device)
    lines = [
        f"  packs     {_packs(plan, limits, workers.count)}",
        f"  cost      {cost.flops:.2g} FLOPs in training steps; about {duration(cost.worker_seconds)} of one worker "
        f"on this machine's {workers.device.upper()}, evaluation not counted",
    ]
    if plan.search is not None:
        per_scheme = len(plan.trials) / len(plan.study.cells["init_scheme"])
        share = (plan.search.trials + len(plan.study.cells["seed"])) / per_scheme
        lines.append(f"            for the first round; about {duration(share * cost.worker_seconds)} for all of them")
    seconds = cost_of(plan.shared, limits, device).worker_seconds
    saved = f"{seconds:.1f} s" if seconds < SMALL_S else duration(seconds)
    return [*lines, f"  saved     about {saved} of one worker, by sharing stages"]


def _packs(plan: Plan, limits: Limits, num_workers: int) -> str:
    """How many packs there will be at least, were all stages of a shape ready together."""
    counts = Counter(stage.shape for stage in plan.todo)
    share = -(-len(plan.todo) // num_workers)
    sizes = {shape: min(limits.get(shape, 1), share, count) for shape, count in counts.items()}
    num_packs = sum(-(-count // sizes[shape]) for shape, count in counts.items())
    return f"{num_packs} or a few more, of at most {max(sizes.values())} stages, on {num_workers} workers"


def print_answer(
    console: Console,
    plan: Plan,
    storage: Storage,
    request: Request,
    time_line: str,
    tracking_error: str | None,
    how_to_look: list[str],
    is_interrupted: bool,
) -> None:
    """The answer so far, and where to look or how to go on.

    Args:
        time_line: where the time went.
        how_to_look: lines about where the runs are to be seen.
    """
    frames = load_journal(storage, plan.study.sweep)
    console.print("\n" + answer_text(frames, plan.study.key), highlight=False, markup=False)
    source = f"--storage {shlex.quote(request.storage)}"
    num_done = sum(plan.status(trial) is not None for trial in plan.trials)
    lines = [f"Time:                {time_line}"]
    if tracking_error is not None:
        lines += [
            f"MLflow at {request.tracking_uri} has not got everything yet ({tracking_error}); nothing is lost: it is "
            f"in the journal, and running the command again copies it, or:",
            f"  python -m sweeps.engine.sync {source} --tracking-uri {shlex.quote(request.tracking_uri)}",
        ]
    if is_interrupted:
        lines += [f"Stopped with {num_done} of {len(plan.trials)} trials done. To go on:", f"  {request.command}"]
    else:
        if num_done < len(plan.trials):
            num_failed = len(plan.trials) - num_done
            lines.append(f"{num_failed} of {len(plan.trials)} trials failed; running the command again retries them.")
            lines += _failures(plan)
        lines += [
            f"Tables and figures:  python analysis/make_tables.py {source}",
            *how_to_look,
        ]
    console.print("\n" + "\n".join(lines), highlight=False, markup=False)


def _failures(plan: Plan) -> list[str]:
    """A line per error, with some of the trials that it ended."""
    by_error: dict[str, list[str]] = {}
    for trial in plan.trials:
        if trial.key in plan.failed:
            place = " ".join(f"{axis}={value}" for axis, value in trial.cell.items())
            by_error.setdefault(plan.failed[trial.key], []).append(place)
    return [
        f"  {error}: {'; '.join(places[:_MOST_PLACES_SHOWN])}"
        + (f" and {len(places) - _MOST_PLACES_SHOWN} more" if len(places) > _MOST_PLACES_SHOWN else "")
        for error, places in by_error.items()
    ]


def print_storage_error(console: Console, plan: Plan, request: Request, error: str) -> None:
    """What is printed in place of an answer where the storage could not be written any more."""
    num_done = sum(plan.status(trial) is not None for trial in plan.trials)
    lines = [f"{error}", f"Stopped with {num_done} of {len(plan.trials)} trials done. Once it is mended, to go on:"]
    console.print("\n" + "\n".join([*lines, f"  {request.command}"]), highlight=False, markup=False)


def print_lost_head(console: Console, plan: Plan, request: Request, address: str) -> None:
    """What is printed when a cluster's head is lost, before Ray ends the driver."""
    num_done = sum(plan.status(trial) is not None for trial in plan.trials)
    lines = [
        f"The cluster's head at {address} does not answer any more: Ray will end this process within a minute.",
        f"Stopped with {num_done} of {len(plan.trials)} trials done. On a new cluster, to go on:",
        f"  {request.command}",
    ]
    console.print("\n" + "\n".join(lines), highlight=False, markup=False)
