"""The request: everything that a user asks of a sweep, whether on the command line or from Python."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cvit.engine.invocation import SCRIPT, Invocation

LOCAL = "local"
"""The address at which a sweep trains on this machine without Ray."""
ANY_CLUSTER = "auto"
"""The address by which Ray finds a cluster that runs on this machine."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The user's wishes about the workers; None leaves them to the machine or the cluster.

    Attributes:
        workers: the number of workers that train at a time.
        cpus_per_worker: the CPUs of each, or a share of one.
        gpus_per_worker: the share of a GPU that each has.
    """

    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None


NO_WISHES = Resources()


@dataclass(frozen=True, kw_only=True)
class Request:
    """The user's request: a preset, the parameters given explicitly, and where and how to run.

    Attributes:
        grid: the values of every axis but the seed.
        typed_axes: the axes among them whose values the user gave; the others have those of the preset.
        given: the flat parameters given explicitly; they hold for every scheme.
        dataset: name or path; ignored by a task that needs no data.
        label_pattern, test_pattern: regular expressions for the paths of WAV recordings; see `cvit.data.datasets`.
        address: the address of a Ray cluster; `local` trains on this machine without Ray; None starts Ray there.
        command: the command line as typed, to be run again.
        settings_from: path of a file with settings of init schemes; ignored by a task that has none.
        log_models: the best model of a study goes to the tracking store; ignored by a task that has no models.
        resources: the number of workers, and what each of them gets.
        optuna_storage: the database or journal that gets a search's trials as Optuna studies.
        upgrade_store: a tracking store of an older version may be changed so that this one can use it.
        as_json: the plan is printed as JSON.
        started: the way the sweep was started, which other commands that it prints follow.
        notes: lines for the plan about values that this machine has chosen.
    """

    preset: str
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    search_trials: int | None
    asha: bool
    given: Mapping[str, Any]
    dataset: str
    data_dir: str
    download: bool
    image_size: int | None
    storage: str
    tracking_uri: str
    address: str | None
    device: Literal["auto", "cpu", "cuda"]
    max_pack: int | None
    dry_run: bool
    command: str
    upgrade_store: bool = False
    log_models: bool = False
    settings_from: str | None = None
    resources: Resources = NO_WISHES
    optuna_storage: str | None = None
    as_json: bool = False
    started: Invocation = SCRIPT
    typed_axes: Collection[str] = ()
    label_pattern: str | None = None
    test_pattern: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_in_process(self) -> bool:
        """True if the driver itself trains, without Ray and without other processes."""
        return self.address == LOCAL and self.resources.workers == 1


def named_address(address: str) -> str:
    """The address of a cluster as messages name it: with its origin, if the user did not type it."""
    origin = " (from RAY_ADDRESS)" if address == os.environ.get("RAY_ADDRESS") else ""
    return f"Ray address {address!r}{origin}"
