"""The site where stages are trained: everything that the ways of training have in common."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from cvit.data.datasets import Dataset
from cvit.storage import Storage
from sweeps.engine.execution.timing import Timing
from sweeps.engine.execution.workers import Workers


@dataclass(frozen=True)
class Site:
    """Where and on what stages are trained.

    Attributes:
        dataset: None for a task that needs none.
        limits: stages in a pack at most, by shape; 1 where a shape is not named.
        timing: counts the workers' time.
    """

    dataset: Dataset | None
    storage: Storage
    workers: Workers
    limits: Mapping[Hashable, int]
    timing: Timing
