"""Starts Ray here or attaches to a cluster, and says what a worker gets."""

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from cvit.errors import one_line

# These must be set before Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Ctrl-C is handled by sweeps.engine.run, as one clean stop.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# The state of a sweep is in the storage; Tune's own snapshots are never read.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Workers inherit these: without them glibc gives the memory of every large tensor back and faults it in again, which
# took a sixth of the time of a training step on a CPU.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 * 2**30))

import ray

from cvit.config import ConfigError

WORKERS_PER_GPU = 2
"""A pack fills a GPU while it trains; a second one fills the gaps, when checkpoints are written and packs change."""


WORKERS_TO_COME = 16
"""Workers that an autoscaled cluster without any is taken to get: what is asked for is what makes it grow."""


@dataclass(frozen=True)
class Workers:
    """How packs run.

    Attributes:
        device: cpu or cuda.
        count: workers at a time right now.
        is_here: they are on this machine, which Ray was started on for this sweep.
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
        """Of one worker, as Tune names them."""
        return {"cpu": 1.0} | ({"gpu": 1 / WORKERS_PER_GPU} if self.device == "cuda" else {})


@contextlib.contextmanager
def ray_session(address: str | None, device: str) -> Iterator[Workers]:
    """Ray, started here or attached to, for the duration of a sweep. SIGTERM is KeyboardInterrupt meanwhile.

    Args:
        address: of a running cluster, else None.
        device: cpu, cuda, or auto: cuda where the cluster has GPUs.

    Raises:
        ConfigError: the cluster cannot be reached, or what auto means cannot be told.
    """
    sigterm_before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except SystemExit as error:  # SIGTERM, by a handler that Ray puts in place while it starts
        raise KeyboardInterrupt from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray address {address!r} cannot be used: {one_line(error)}") from error
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        workers = _workers(address, device)
        # A searcher-driven run otherwise starts its workers one at a time, and short trials then share the first.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(workers.count, WORKERS_TO_COME if address else 1))
        yield workers
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, sigterm_before)


def _workers(address: str | None, device: str) -> Workers:
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    if device == "auto":
        if "CPU" not in total:  # an autoscaled cluster whose head doesn't train
            raise ConfigError("device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu")
        device = "cuda" if gpus else "cpu"
    count = cpus if device == "cpu" else min(cpus, gpus * WORKERS_PER_GPU)
    return Workers(device, count or WORKERS_TO_COME, is_here=address is None)


def workers_here(device: str) -> Workers:
    """What `ray_session` would start on this machine, as far as can be told without starting Ray."""
    import torch  # by then it has been imported; Ray's start does not wait for it

    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return Workers("cuda", WORKERS_PER_GPU * torch.cuda.device_count(), is_here=True)
    return Workers("cpu", os.cpu_count() or 1, is_here=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for what Tune writes; nothing in it is needed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cvit-tune-", ignore_cleanup_errors=True) as folder:
        yield folder
