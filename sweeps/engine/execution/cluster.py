"""The Ray cluster of a sweep: started here or attached to, once, when the first stage is to be trained."""

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property

from cvit.config import ConfigError
from cvit.errors import one_line
from sweeps.engine.execution.workers import WORKERS_PER_GPU, Workers

WORKERS_TO_COME = 16
"""Workers that an autoscaled cluster without any is taken to get: what is asked for is what makes it grow."""


class Cluster:
    """Ray for the duration of a script. It is started or attached to when `workers` are first asked for; from then on
    SIGTERM is KeyboardInterrupt."""

    def __init__(self, address: str | None, device: str) -> None:
        """
        Args:
            address: of a running cluster, else None.
            device: cpu, cuda, or auto: cuda where the cluster has GPUs.
        """
        self._address, self._device = address, device
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @cached_property
    def workers(self) -> Workers:
        """The workers that Ray gives to packs.

        Raises:
            ConfigError: the cluster cannot be reached, or what `auto` means cannot be told.
        """
        return self._cleanup.enter_context(_ray(self._address, self._device))

    @property
    def head_address(self) -> str | None:
        """host:port of the control store of a cluster that was attached to; a client knows its proxy only."""
        if self._address is None or self._address.startswith("ray://"):
            return None
        import ray

        return ray.get_runtime_context().gcs_address


@contextlib.contextmanager
def _ray(address: str | None, device: str) -> Iterator[Workers]:
    import ray  # seconds, which a script that trains nothing does without

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
        workers = _workers(ray.cluster_resources(), address, device)
        # A searcher-driven run otherwise starts its workers one at a time, and short trials then share the first.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(workers.count, WORKERS_TO_COME if address else 1))
        yield workers
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, sigterm_before)


def _workers(total: Mapping[str, float], address: str | None, device: str) -> Workers:
    """The workers that the cluster's resources make."""
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    if device == "auto":
        if "CPU" not in total:  # an autoscaled cluster whose head doesn't train
            raise ConfigError("device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu")
        device = "cuda" if gpus else "cpu"
    count = cpus if device == "cpu" else min(cpus, gpus * WORKERS_PER_GPU)
    return Workers(device, count or WORKERS_TO_COME, is_here=address is None)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for the files that Tune writes; nothing in it is needed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cvit-tune-", ignore_cleanup_errors=True) as folder:
        yield folder
