"""Ray on this machine with the processes that a sweep uses, and no others.

By itself, a Ray on one machine also starts an autoscaler, a dashboard without pages, a reader of logs and an agent with
a web server: four Python processes, which take 3 s of the processor before the first worker starts. A sweep asks none
of them. Ray has no options for this, so the function reaches into modules that are not public;
`tests/engine/test_lean_ray.py` runs it against a real Ray and lists its processes.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from cvit.engine.execution.workers import Workers

IDLE_S = 3600
"""The time that an unused worker process is kept. Ray ends it after a second as soon as placement groups have taken all
CPUs, which is just before the workers of Tune that could use it."""
IMPORTED_BEFOREHAND = ("torch", "ray.tune")
"""The libraries that take a worker seconds to import. Its process imports them while this one measures packs."""


@contextlib.contextmanager
def lean_ray() -> Iterator[None]:
    """Within the context, `ray.init` starts no autoscaler, no dashboard and no reader of logs, and the agent without
    which Ray does not start opens no server, as in an installation of Ray without the dashboard's libraries."""
    from ray._private import node, parameter, utils

    lean = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with (
        replaced(parameter, "RayParams", lean),
        replaced(node.Node, "start_api_server", _start_none),
        replaced(utils, "get_dashboard_dependency_error", _is_not_installed),
    ):
        yield


def system_config(likely: Workers) -> dict[str, Any]:
    """Ray's settings for a Ray on this machine. On CPUs every process that it starts becomes a worker, so all of them
    are kept and import the libraries at once; beside a GPU most of them would be in the way.

    Args:
        likely: the workers that the sweep is going to have.
    """
    if likely.device != "cpu":
        return {}
    return {
        "idle_worker_killing_time_threshold_ms": IDLE_S * 1000,
        "preload_python_modules": list(IMPORTED_BEFOREHAND),
    }


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context, a module or a class has another attribute."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _start_none(node: Any, **_: Any) -> None:
    node._webui_url = ""


def _is_not_installed() -> ImportError:
    return ImportError("the dashboard is not asked for")
