"""This process as the one worker of a sweep (`--address local --workers 1`): it trains one pack after another.

It serves debugging with pdb, changes to the code in a notebook, tests, and benchmarks.
"""

import time
from collections.abc import Iterable

from cvit.engine.execution import without_ray
from cvit.engine.execution.faults import Fault, fault_of_exception
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.pruning import may_prune
from cvit.engine.execution.queue import StagePack
from cvit.engine.execution.site import Site
from cvit.engine.execution.steps import Bench, Step, Steps
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.journal import Journal
from cvit.training.probe import threads


def train_stages(progress: Progress, journal: Journal, follower: Follower, site: Site) -> dict[str, Outcome]:
    """Trains in this process; see `without_ray.train_stages`."""
    return without_ray.train_stages(progress, journal, follower, site, _ThisProcess(site, may_prune(progress)))


class _ThisProcess:
    """A crew of one, which trains while the driver waits for news of it."""

    def __init__(self, site: Site, may_be_stopped: bool) -> None:
        self._bench = Bench(site.dataset, site.storage, site.workers.device, may_be_stopped)
        self._threads, self._steps = site.workers.threads, Steps()
        self._name: str | None = None

    @property
    def has_room(self) -> bool:
        return self._name is None

    def give(self, name: str, pack: StagePack) -> None:
        self._name = name
        self._steps.take(self._bench.train(pack))

    def news(self, most_s: float) -> Iterable[tuple[str, Step | Fault]]:
        if self._name is None:
            time.sleep(most_s)
            self._steps.forget_pause()  # a rest after a fault is lost, not waited
            return
        name, step = self._name, self._next_step()
        if isinstance(step, Fault) or step.reports is None:
            self._name = None
        yield name, step

    def _next_step(self) -> Step | Fault:
        with threads(self._threads):  # like a worker on a CPU, so that results are the same to the last bit
            try:
                return self._steps.next()
            # Any exception of the training concerns this pack alone; the sweep continues with the others.
            except Exception as error:  # noqa: BLE001
                return fault_of_exception(error)

    def answer(self, name: str, goes_on: bool) -> None:
        if not goes_on:
            self._name = None
