"""The request: everything that a user asked a sweep for, whichever way it was asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

IN_PROCESS = "local"
"""The address at which a sweep trains in its own process, without Ray."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for: a preset, what was given explicitly, and where and how to run.

    Attributes:
        grid: the values of every axis but the seed.
        given: flat parameters given explicitly; they hold for every scheme.
        dataset: name or path; of no meaning for a sweep that trains on none.
        address: of a Ray cluster; `local`: train in this process; None: start Ray here.
        command: the command line as typed, to run it again.
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
