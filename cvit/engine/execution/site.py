"""The site of training: the arguments that training with Ray and training in process have in common."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from cvit.data.datasets import Dataset
from cvit.engine.execution.queue import ALONE, Claims
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers
from cvit.storage import Storage


@dataclass(frozen=True)
class Site:
    """The data, storage and workers that stages are trained with.

    Attributes:
        dataset: None for a task that needs none.
        limits: the largest number of stages in a pack, by shape; 1 for a shape that is not named.
        timing: counts the workers' time.
        claims: keeps other drivers from training the same stages.
    """

    dataset: Dataset | None
    storage: Storage
    workers: Workers
    limits: Mapping[Hashable, int]
    timing: Timing
    claims: Claims = ALONE
