"""The workers that train packs: their device, number and resources. This module does not import Ray."""

from dataclasses import dataclass

from cvit.cores import usable_cores

WORKERS_PER_GPU = 2
"""Two, because a pack fills a GPU only while it trains: a second one fills the gaps, when the first writes a checkpoint
or ends."""


@dataclass(frozen=True)
class Workers:
    """The workers of a sweep.

    Attributes:
        device: cpu or cuda.
        count: number of workers at present.
        is_here: True if they are on this machine, for this sweep alone.
    """

    device: str
    count: int
    is_here: bool

    @property
    def per_device(self) -> int:
        """The number of workers that share a GPU, or a core."""
        return WORKERS_PER_GPU if self.device == "cuda" else 1

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker, as Ray names them."""
        return {"CPU": 1.0} | ({"GPU": 1 / WORKERS_PER_GPU} if self.device == "cuda" else {})


def workers_here(device: str) -> Workers:
    """The workers that Ray would have on this machine, found without starting it."""
    import torch  # imported elsewhere by then; importing it above would delay the start of Ray

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return Workers("cuda", min(usable_cores(), WORKERS_PER_GPU * torch.cuda.device_count()), is_here=True)
    return Workers("cpu", usable_cores(), is_here=True)


def this_process(device: str) -> Workers:
    """The one worker of a sweep that runs without Ray: this process."""
    return Workers(workers_here(device).device, 1, is_here=True)
