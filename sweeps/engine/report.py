"""What a sweep prints before it starts and after it ends."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from analysis.answers import answer_text
from analysis.load import load_journal
from cvit.storage import Storage
from sweeps.engine.cli import DEFAULT_TRACKING_URI, Request
from sweeps.engine.display import duration
from sweeps.engine.estimate import estimate
from sweeps.engine.grids import Cell, as_grids
from sweeps.engine.plan import MAX_PACK, Plan

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
        f"  packs     {math.ceil(len(todo) / MAX_PACK)} of at most {MAX_PACK} stage",
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
    use_gpu = request.device == "cuda" or (request.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if use_gpu else "cpu")
    cost = estimate(plan.todo, device)
    lines = [
        f"  cost      {cost.flops:.2g} FLOPs in training steps; about {duration(cost.worker_seconds)} of one worker "
        f"on this machine's {'GPU' if use_gpu else 'CPU'}, evaluation not counted"
    ]
    if plan.search is not None:
        per_scheme = len(plan.trials) / len(plan.study.cells["init_scheme"])
        share = (plan.search.trials + len(plan.study.cells["seed"])) / per_scheme
        lines.append(f"            for the first round; about {duration(share * cost.worker_seconds)} for all of them")
    seconds = estimate(plan.shared, device).worker_seconds
    saved = f"{seconds:.1f} s" if seconds < SMALL_S else duration(seconds)
    return [*lines, f"  saved     about {saved} of one worker, by sharing stages"]


def print_answer(
    console: Console,
    plan: Plan,
    storage: Storage,
    request: Request,
    tracking_error: str | None,
    page: str,
    is_interrupted: bool,
) -> None:
    """The answer so far, and where to look or how to go on.

    Args:
        page: of MLflow's UI, below the address of its server.
    """
    frames = load_journal(storage, plan.study.sweep)
    console.print("\n" + answer_text(frames, plan.study.key), highlight=False, markup=False)
    source = f"--storage {shlex.quote(request.storage)}"
    num_done = sum(plan.status(trial) is not None for trial in plan.trials)
    lines = []
    if tracking_error is not None:
        lines.append(
            f"MLflow at {request.tracking_uri} has not got everything yet ({tracking_error}); nothing is lost: it is "
            f"in the journal, and running the command again copies it."
        )
    if is_interrupted:
        lines += [f"Stopped with {num_done} of {len(plan.trials)} trials done. To go on:", f"  {request.command}"]
    else:
        if num_done < len(plan.trials):
            num_failed = len(plan.trials) - num_done
            lines.append(f"{num_failed} of {len(plan.trials)} trials failed; running the command again retries them.")
        lines += [
            f"Tables and figures:  python analysis/make_tables.py {source}",
            *_how_to_look(request.tracking_uri, page),
        ]
    console.print("\n" + "\n".join(lines), highlight=False, markup=False)


def _how_to_look(tracking_uri: str, page: str) -> list[str]:
    heading, address = "Runs in MLflow:      ", tracking_uri.rstrip("/")
    commands = []
    if not tracking_uri.startswith(("http://", "https://")):
        store = "" if tracking_uri == DEFAULT_TRACKING_URI else f" --backend-store-uri {shlex.quote(tracking_uri)}"
        commands, address = [f"{heading}mlflow ui{store}"], "http://127.0.0.1:5000"
        heading = f"{'... and then:':<{len(heading)}}"
    return [*commands, f"{heading}{address}{page}"]
