"""The text that a sweep prints after it ends, and the cost that `--dry-run` measures."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cvit.engine.execution.cost import flops_of, step_seconds
from cvit.engine.execution.pack_size import Limits, pack_limits
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.engine.terminal.phases import phase_lines
from cvit.engine.terminal.plan_text import print_lines, stopped_text
from cvit.engine.wording import duration
from cvit.parameters import as_text
from cvit.storage import Storage

_MOST_PLACES_SHOWN = 3
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


def print_cost(console: Console, progress: Progress, workers: Workers, max_pack: int | None) -> None:
    """Prints the cost of the stages to train, and of the stages that sharing saves, measured on a few steps.

    Args:
        workers: the workers of this machine.
        max_pack: the largest number of stages trained together; None measures it.
    """
    plan, todo = progress.plan, progress.todo
    if not todo:
        return
    limits = pack_limits(todo, workers, max_pack)
    costs = step_seconds(todo, limits, workers)
    flops, seconds = flops_of(todo), costs.of(todo)
    lines = [
        *phase_lines(progress, lambda stage: costs.of([stage]), console.width if console.is_terminal else None),
        f"  packs     {_packs(progress, limits, workers.count)}",
    ]
    if math.isnan(seconds):
        too_large = f"a step is too large to be timed on this machine's {workers.device.upper()}"
        print_lines(console, [*lines, f"  cost      {flops:.2g} FLOPs in training steps; {too_large}"])
        return
    lines.append(
        f"  cost      {flops:.2g} FLOPs in training steps; about {duration(seconds)} of one worker "
        f"on this machine's {workers.device.upper()}, evaluation not counted"
    )
    if len(costs.by_kind) < costs.num_kinds:
        lines.append(f"            by {len(costs.by_kind)} of {costs.num_kinds} kinds of step, the rest as their mean")
    if plan.search is not None:
        share = 1 + plan.num_trials_to_come / len(plan.trials)
        lines.append(f"            for the first round; about {duration(share * seconds)} for all of them")
    if plan.shared:
        lines.append(_saved_time(costs.of(plan.shared)))
    print_lines(console, lines)


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep so far.

    Attributes:
        winners: the file with the winners of searches, by name.
        error: why the storage does not give it.
    """

    text: str = ""
    winners: Mapping[str, bytes] = field(default_factory=dict)
    error: str | None = None


def read_answer(progress: Progress, storage: Storage, width: int | None) -> Answer:
    """Reads the answer from the journal, for so many columns, or any number."""
    # With pandas, which nothing needs before.
    from cvit.analysis.answers import answer_text
    from cvit.analysis.files import file_stem, winners_file
    from cvit.analysis.statistics.studies import read_studies
    from cvit.analysis.store.frames import LoadError
    from cvit.analysis.store.journal import load_journal

    study = progress.plan.study
    try:
        frames = load_journal(storage, study.sweep)
        text = answer_text(frames, study.key, width=width)
        if progress.plan.search is None:
            return Answer(text)
        return Answer(text, winners_file(read_studies(frames, study.sweep), study.sweep, file_stem(study.sweep)))
    except LoadError as error:
        return Answer(error=str(error))


def print_closing(
    console: Console, progress: Progress, request: Request, answer: Answer, closing: Closing
) -> str | None:
    """Prints the answer so far, and where to look next or how to continue.

    Returns:
        Why the storage does not give the answer; None if it does.
    """
    stopped = stopped_text(progress)
    storage_error = closing.storage_error or answer.error
    if storage_error is not None:
        reasons = [storage_error, f"{stopped} When the storage works again, continue with:"]
        print_lines(console, ["", *reasons, f"  {request.command}"])
        return storage_error
    source = f"--storage {shlex.quote(request.storage)}"
    lines = ["", answer.text, ""]
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
        lines += _written(answer.winners)
        lines += closing.how_to_look
    print_lines(console, lines)
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
    lines = [
        "",
        f"The cluster's head at {address} does not answer any more: Ray will end this process within a minute.",
        f"{stopped_text(progress)} On a new cluster, continue with:",
        f"  {request.command}",
    ]
    print_lines(console, lines)


def _saved_time(seconds: float) -> str:
    saved = f"{seconds:.1f} s" if seconds < SMALL_S else duration(seconds)
    return f"  saved     about {saved} of one worker, by sharing stages"


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
