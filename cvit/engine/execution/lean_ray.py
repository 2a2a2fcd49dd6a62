"""Ray on this machine with the processes that a sweep uses, and no others.

By itself, a Ray on one machine also starts an autoscaler, a dashboard without pages, a reader of logs and two agents
with open ports: five Python processes, which take 3.5 s of the processor before the first worker starts. A sweep asks
none of them anything. Ray has no options for this, so `lean_ray` reaches into modules that are not public, in the
versions for which it is tested; any other Ray starts as usual. `tests/engine/test_lean_ray.py` lists the processes of a
real one.
"""

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cvit.engine.execution import agent_stand_in
from cvit.engine.execution.workers import Workers

TESTED = ("2.60",)
"""The versions of Ray whose inner modules are known."""
KEPT_S = 3600
"""The seconds for which an unused worker process is kept. By itself, Ray ends it after one second once placement groups
have taken all CPUs, which is just before Tune's workers ask for it."""
_SPARED: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
_AGENTS = {
    "--dashboard_agent_command": agent_stand_in.OF_DASHBOARD,
    "--runtime_env_agent_command": agent_stand_in.OF_ENVIRONMENTS,
}
IMPORTED_BEFOREHAND = ("torch", "ray.tune")
"""The libraries that take a worker seconds to import. Its process imports them while this one measures packs."""


@contextlib.contextmanager
def lean_ray() -> Iterator[None]:
    """Within the context, `ray.init` starts no autoscaler, no dashboard, no reader of logs and no agents."""
    import ray
    from ray._private import node, parameter, services, utils

    if ray.__version__.rpartition(".")[0] not in TESTED:
        yield
        return
    lean = functools.partial(parameter.RayParams, **_SPARED)
    with (
        replaced(parameter, "RayParams", lean),
        replaced(node.Node, "start_api_server", _start_none),
        replaced(services, "start_ray_process", _without_agents(services.start_ray_process)),
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
        "idle_worker_killing_time_threshold_ms": KEPT_S * 1000,
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


def _without_agents(start: Callable[..., Any]) -> Callable[..., Any]:
    """The function that starts a process of Ray's; the raylet gets stand-ins in place of its agents."""

    @functools.wraps(start)
    def started(command: list[str], kind: str, *args: Any, **options: Any) -> Any:
        flags = {name: text for name, equals, text in (part.partition("=") for part in command) if equals}
        for agent, names in _AGENTS.items():
            if agent in flags:
                script = str(Path(agent_stand_in.__file__))
                stand_in = [sys.executable, "-I", "-S", script, flags["--session_dir"], flags["--node_id"], *names]
                command = [part for part in command if not part.startswith(f"{agent}=")]
                command.append(f"{agent}={subprocess.list2cmdline(stand_in)}")
        return start(command, kind, *args, **options)

    return started


def _is_not_installed() -> ImportError:
    """The answer to Ray's question for the dashboard's libraries, which it would import to find them."""
    return ImportError("no dashboard is asked for")
