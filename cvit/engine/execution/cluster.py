"""The Ray cluster of a sweep: started on this machine or attached to, once, before the first stage is trained."""

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from cvit.cores import usable_cores
from cvit.engine.execution.attaching import check_cluster
from cvit.engine.execution.forecast import likely_workers_here
from cvit.engine.execution.lean_ray import lean_ray, system_config
from cvit.engine.execution.ray_here import provide_token, session_folder
from cvit.engine.execution.workers import (
    THIS_MACHINE,
    WORKERS_TO_COME,
    Machine,
    Workers,
    workers_on,
)
from cvit.engine.planning.request import NO_WISHES, Resources, named_address
from cvit.engine.signals import no_stop_lost, stop_on_sigterm, stopping_on_sigterm
from cvit.errors import one_line
from cvit.machine import num_gpus
from cvit.parameters import ConfigError

HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head among its nodes."""


class Cluster:
    """Ray for the duration of a script. It starts, or is attached to, at the first use of `workers`; from then on
    SIGTERM raises KeyboardInterrupt."""

    def __init__(self, address: str | None, device: str, resources: Resources = NO_WISHES) -> None:
        """
        Args:
            address: the address of a running cluster; None starts Ray on this machine.
            device: cpu, cuda, or auto: cuda if the cluster has GPUs.
            resources: the number of workers, and what each of them gets.
        """
        self._address, self._device, self._resources = address, device, resources
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends Ray, or leaves the cluster."""
        self._cleanup.close()

    def check(self) -> None:
        """Asks a running cluster whether it lets this machine in, or looks for a folder that a Ray on this machine can
        use; that takes no time, and nothing starts.

        Raises:
            ConfigError: the cluster cannot be reached, or Ray could not start here.
        """
        if self._address is None:
            session_folder()
        else:
            check_cluster(self._address)

    @cached_property
    def workers(self) -> Workers:
        """The workers that Ray gives to packs.

        Raises:
            ConfigError: the cluster cannot be reached, has no room for the workers that are asked for, or has no worker
                yet that would tell what `auto` means.
        """
        self._cleanup.enter_context(stopping_on_sigterm())
        return self._cleanup.enter_context(_ray(self._address, self._device, self._resources))

    @property
    def head_address(self) -> str | None:
        """host:port of the control store of an attached cluster; None for Ray on this machine."""
        if self._address is None:
            return None
        import ray

        return ray.get_runtime_context().gcs_address


@contextlib.contextmanager
def _ray(address: str | None, device: str, asked: Resources) -> Iterator[Workers]:
    place: dict[str, Any] = {"address": address}
    if address is None:
        provide_token()
        folder = session_folder()
        place = {"address": "local", "num_cpus": _cpus_here(asked), "include_dashboard": False, "_temp_dir": folder}
        place["_system_config"] = system_config(likely_workers_here(device, asked))
        place["num_gpus"] = 0 if device == "cpu" else num_gpus()
        logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # the log of a process that did not start
    import ray  # takes seconds, which a script that trains nothing saves

    if ray.is_initialized():  # by the program that calls cvit.run
        raise ConfigError("this process uses Ray already: call ray.shutdown() first, or train without Ray, at 'local'")
    try:
        with lean_ray() if address is None else contextlib.nullcontext(), no_stop_lost():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **place)
    except (SystemExit, KeyboardInterrupt) as error:  # SIGTERM, through a handler that Ray installs while it starts
        ray.shutdown()
        raise KeyboardInterrupt from error
    # Ray raises any kind of exception, bare ones too, when its processes do not start.
    except Exception as error:
        ray.shutdown()
        raise ConfigError(_start_error(address, error)) from error
    try:
        stop_on_sigterm()  # in place of Ray's handler
        workers = _workers_of([node["Resources"] for node in ray.nodes() if node["Alive"]], address, device, asked)
        # Otherwise a run with a searcher starts its workers one at a time, and short trials all share the first.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(workers.count, WORKERS_TO_COME if address else 1))
        yield workers
    finally:
        ray.shutdown()


def _start_error(address: str | None, error: Exception) -> str:
    """The line about a Ray that did not start, or a cluster that cannot be attached to."""
    if address is None:
        reason, logs = one_line(error).rstrip("."), f"{session_folder()}/session_latest/logs"
        return f"Ray cannot start on this machine: {reason}; see {logs}. --address local trains without Ray"
    return f"{named_address(address)} cannot be used: {one_line(error)}"


def _cpus_here(asked: Resources) -> int:
    """The CPUs of a Ray on this machine: those that this process may use, but no more than the workers need, since Ray
    starts a process for each."""
    if asked.workers is None:
        return usable_cores()
    return min(usable_cores(), math.ceil(asked.workers * (asked.cpus_per_worker or 1.0)))


def _workers_of(nodes: Sequence[Mapping[str, float]], address: str | None, device: str, asked: Resources) -> Workers:
    """The workers that the resources of a cluster's nodes allow.

    A cluster whose head has no CPU for workers, like that of `cluster.yaml`, has them on nodes that come and go: the
    number of workers that is asked for then is the largest number at a time.
    """
    may_grow = any(HEAD in node and not node.get("CPU") for node in nodes)
    machines = [Machine(node["CPU"], node.get("GPU", 0.0)) for node in nodes if node.get("CPU")]
    if not machines and device == "auto":
        raise ConfigError("device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu")
    place = THIS_MACHINE if address is None else f"the cluster at {named_address(address)}"
    return workers_on(machines, device, asked, place, may_grow)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for the files that Tune writes; nothing in it is needed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cvit-tune-", ignore_cleanup_errors=True) as folder:
        yield folder
