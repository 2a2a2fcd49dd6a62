"""The workers that train packs: where they are, how many, and what each of them gets. No Ray here."""

import os
from dataclasses import dataclass

WORKERS_PER_GPU = 2
"""A pack fills a GPU while it trains; a second one fills the gaps, when checkpoints are written and packs change."""


@dataclass(frozen=True)
class Workers:
    """How packs run.

    Attributes:
        device: cpu or cuda.
        count: workers at a time right now.
        is_here: they are on this machine, for this sweep alone.
    """

    device: str
    count: int
    is_here: bool

    @property
    def per_device(self) -> int:
        """Workers that share a GPU, or a core."""
        return WORKERS_PER_GPU if self.device == "cuda" else 1

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker, as Tune names them."""
        return {"cpu": 1.0} | ({"gpu": 1 / WORKERS_PER_GPU} if self.device == "cuda" else {})


def workers_here(device: str) -> Workers:
    """The workers that Ray would have on this machine, as far as can be told without starting it."""
    import torch  # by then it has been imported; Ray's start does not wait for it

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return Workers("cuda", WORKERS_PER_GPU * torch.cuda.device_count(), is_here=True)
    return Workers("cpu", os.cpu_count() or 1, is_here=True)


def this_process(device: str) -> Workers:
    """The one worker of a sweep that runs without Ray: this process."""
    return Workers(workers_here(device).device, 1, is_here=True)
