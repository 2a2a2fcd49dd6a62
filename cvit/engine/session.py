"""The facts about one run of a sweep that do not change while it runs, and its ending."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from cvit.data.datasets import Dataset, DatasetInfo, load
from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers, workers_here
from cvit.engine.planning.request import Request
from cvit.engine.recording.lease import Lease
from cvit.storage import Storage

if TYPE_CHECKING:
    from cvit.engine.execution.cluster import Cluster
    from cvit.engine.execution.warm import WarmProcess
    from cvit.engine.tracking.tracker_process import Spare


@dataclass(frozen=True)
class Session:
    """Everything about one run of a sweep that does not change while it runs.

    Attributes:
        info: the description of the data set; None for a task that needs none.
        cluster: Ray, which starts at the first use of its workers; None trains without it.
        warm: the process from which workers on this machine are forked; None if there are none.
        timing: counts the time spent on training and around it.
        forecast: tells how much time is left.
        lease: None for a dry run, which writes nothing.
        spare: a tracker's process that is started already.
        is_last: no sweep after this one needs the workers.
    """

    request: Request
    info: DatasetInfo | None
    storage: Storage
    console: Console
    cluster: "Cluster | None"
    warm: "WarmProcess | None"
    timing: Timing
    forecast: Forecast
    lease: Lease | None = None
    spare: "Spare | None" = None
    is_last: bool = True

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The data set, decoded at the first use. Raises DataError if an image cannot be decoded."""
        return load(self.info) if self.info is not None else None

    def check(self) -> None:
        """Raises LeaseLost if this driver may not write any more."""
        if self.lease is not None:
            self.lease.check()

    def end_workers(self) -> None:
        """Ends Ray, if it runs and no other sweep needs it."""
        if self.cluster is not None and self.is_last:
            self.cluster.close()

    @property
    def workers(self) -> Workers:
        """The workers of the cluster, or those of this machine. Raises ConfigError if the cluster cannot be used."""
        if self.cluster is not None:
            return self.cluster.workers
        return workers_here(self.request.device, self.request.resources)


@dataclass(frozen=True)
class Ending:
    """The ending of a session.

    Attributes:
        status: its status in the tracking store.
        storage_error: why the storage could not be written any more.
        training_error: why the training could not go on.
    """

    status: str
    exit_code: int
    storage_error: str | None = None
    training_error: str | None = None
