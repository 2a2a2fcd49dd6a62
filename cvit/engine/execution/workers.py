"""The workers that train packs: their device, number and resources. This module does not import Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cvit.cores import usable_cores
from cvit.engine.planning.request import LOCAL, NO_WISHES, Request, Resources
from cvit.machine import num_gpus
from cvit.parameters import ConfigError

WORKERS_PER_GPU = 2
"""Two, because a pack fills a GPU only while it trains: a second one fills the gaps, when the first writes a checkpoint
or ends."""
WORKERS_TO_COME = 16
"""The number of workers assumed for an autoscaled cluster that has none yet: it grows with the demand."""
THIS_MACHINE = "this machine"
_TOLERANCE = 1e-6
"""Shares such as 1/3 are typed with a few digits, and Ray itself counts in ten-thousandths."""


@dataclass(frozen=True)
class Machine:
    """The CPUs and GPUs that a machine, or a node of a cluster, has for workers."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Workers:
    """The workers of a sweep.

    Attributes:
        device: cpu or cuda.
        count: number of workers at present.
        is_here: True if they are on this machine, for this sweep alone.
        cpus: CPUs of each.
        gpus: share of a GPU of each, if the device is cuda.
        most: the largest number of workers at a time, where the user set one; None: as many as there is room for.
    """

    device: str
    count: int
    is_here: bool
    cpus: float = 1.0
    gpus: float = 1 / WORKERS_PER_GPU
    most: int | None = None

    @property
    def per_device(self) -> int:
        """The number of workers that share a GPU; 1 on a CPU."""
        return _times(1.0, self.gpus) if self.device == "cuda" else 1

    @property
    def threads(self) -> int:
        """The number of torch's threads in each."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.device == "cuda" else {})


def workers_on(machines: Sequence[Machine], device: str, asked: Resources, place: str, may_grow: bool) -> Workers:
    """The workers for which some machines have room.

    Args:
        device: cpu, cuda, or auto: cuda if there is a GPU.
        place: the machines in words; THIS_MACHINE for workers of this sweep alone.
        may_grow: machines come with the demand, so that what is missing may still come.

    Raises:
        ConfigError: there is no room for what is asked for.
    """
    has_gpus = any(int(machine.gpus) for machine in machines)
    if device == "auto":
        device = "cuda" if has_gpus else "cpu"
    if device == "cpu" and asked.gpus_per_worker is not None:
        raise ConfigError(f"gpus_per_worker is not valid here: {place} has no GPU, or the device is cpu")
    if device == "cuda" and not has_gpus and not may_grow:
        raise ConfigError(f"device 'cuda' is not valid here: {place} has no GPU; use cpu or auto")
    cpus, gpus = asked.cpus_per_worker or 1.0, asked.gpus_per_worker or 1 / WORKERS_PER_GPU
    room = sum(_room(machine, device, cpus, gpus) for machine in machines)
    if not may_grow:
        largest = max((machine.cpus for machine in machines), default=0.0)
        if largest + _TOLERANCE < cpus:
            raise ConfigError(f"cpus_per_worker {cpus:g} is not valid here: {place} has {largest:g} CPUs at most")
        if asked.workers is not None and asked.workers > room:
            each = f"{cpus:g} CPU{'' if cpus == 1 else 's'}" + (f" and {gpus:.3g} of a GPU" if device == "cuda" else "")
            raise ConfigError(f"workers {asked.workers} is not valid here: {place} has room for {room}, at {each} each")
        if not room:
            raise ConfigError(f"{place} has no CPU for a worker")
    count = room or WORKERS_TO_COME
    if asked.workers is not None:
        count = asked.workers if may_grow else min(count, asked.workers)
    return Workers(device, count, place == THIS_MACHINE, cpus, gpus, most=asked.workers)


def _room(machine: Machine, device: str, cpus: float, gpus: float) -> int:
    """The number of workers for which a machine has room: a worker lies on one machine, and on one GPU."""
    by_cpus = _times(machine.cpus, cpus)
    return by_cpus if device == "cpu" else min(by_cpus, int(machine.gpus) * _times(1.0, gpus))


def _times(whole: float, part: float) -> int:
    """The number of times that a part fits into a whole."""
    return int(whole / part + _TOLERANCE)


def workers_here(device: str, asked: Resources = NO_WISHES) -> Workers:
    """The workers on this machine, whether Ray starts them or not; found without starting any.

    Raises:
        ConfigError: this machine has no room for what is asked for.
    """
    gpus = 0 if device == "cpu" else num_gpus()
    return workers_on([Machine(usable_cores(), gpus)], device, asked, THIS_MACHINE, may_grow=False)


def this_process(device: str) -> Workers:
    """The one worker of a sweep that trains in its own process."""
    return workers_here(device, Resources(workers=1))


def planned_workers(request: Request) -> Workers:
    """The workers of a request, found without starting Ray or reaching a cluster: those of a cluster count as this
    machine's, unless their number is given.

    Raises:
        ConfigError: this machine is to have them, and has no room.
    """
    if request.address in (None, LOCAL):
        return workers_here(request.device, request.resources)
    here = workers_here(request.device)
    return replace(here, count=request.resources.workers or here.count)
