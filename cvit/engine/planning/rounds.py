"""The rounds of a sweep: a grid has one, a search several."""

from collections.abc import Iterator

from cvit.data.datasets import DatasetInfo
from cvit.engine.declaration import Sweep
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.storage import Storage


def first_round(sweep: Sweep, request: Request, info: DatasetInfo | None, storage: Storage) -> Progress:
    """The progress through the plan of a grid, or through the first round of a search.

    Raises:
        ConfigError: a combination of values cannot be trained.
        StorageError: the storage cannot be read.
    """
    progress = Progress.read(Plan.make(sweep, request, info), storage)
    if (plan := _next_plan(progress)) is not None:
        progress.grow(plan, storage)
    return progress


def rounds(progress: Progress, storage: Storage) -> Iterator[int]:
    """Counts the rounds, from 0 on; in each, the caller trains the stages that are left. Before each round but the
    first, the plan grows by the trials that follow from the results so far.

    Raises:
        StorageError: the storage cannot be read.
    """
    number = 0
    yield number
    while (plan := _next_plan(progress)) is not None:
        progress.grow(plan, storage)
        number += 1
        yield number


def _next_plan(progress: Progress) -> Plan | None:
    if progress.plan.search is None:
        return None
    from cvit.engine.planning.search import next_plan  # Optuna is not needed otherwise

    return next_plan(progress)
