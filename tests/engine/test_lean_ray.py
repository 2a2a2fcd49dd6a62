"""A Ray on this machine starts the processes that a sweep uses, and no others; its workers are ready when Tune asks."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cvit.engine.execution import agent_stand_in
from cvit.engine.execution.lean_ray import TESTED, lean_ray, system_config
from cvit.engine.execution.workers import Workers

PROGRAM = """
import json, os, sys, time

import psutil
from cvit.engine.environment import prepare
from cvit.engine.execution.cluster import Cluster

prepare()
with Cluster(None, "cpu") as cluster:
    workers = cluster.workers
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def tree():
        return {each.pid: " ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)}

    class Worker:
        def facts(self):
            return os.getpid(), "torch" in sys.modules, "ray.tune" in sys.modules

    while sum("ray::IDLE" in line for line in tree().values()) < workers.count:
        time.sleep(0.2)
    before = tree()
    groups = [placement_group([{"CPU": 1.0}]) for _ in range(workers.count)]
    actors = []
    for group in groups:
        assert group.wait(60)
        strategy = PlacementGroupSchedulingStrategy(group, 0)
        actors.append(ray.remote(Worker).options(num_cpus=1, scheduling_strategy=strategy).remote())
    facts = ray.get([actor.facts.remote() for actor in actors])
    print(json.dumps({"before": before, "facts": facts, "count": workers.count}), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """The findings of a program with a Ray of its own, as a sweep starts it."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    assert process.returncode == 0


def test_the_processes_of_a_sweep(found: dict[str, Any]) -> None:
    kinds = []
    for line in found["before"].values():
        names = ("gcs_server", "raylet/raylet", "agent_stand_in.py", "ray::IDLE")
        kinds.append(next((name for name in names if name in line), line))
    expected = [*["agent_stand_in.py"] * 2, "gcs_server", *["ray::IDLE"] * found["count"], "raylet/raylet"]
    # The command of the raylet names those of its agents.
    assert sorted(kinds) == sorted(expected), found["before"]


def test_workers_are_processes_that_have_imported_torch_already(found: dict[str, Any]) -> None:
    for pid, has_torch, has_tune in found["facts"]:
        assert str(pid) in found["before"], "Ray ends its idle processes when placement groups take all CPUs"
        assert has_torch and has_tune


@pytest.mark.parametrize("names", [agent_stand_in.OF_DASHBOARD, agent_stand_in.OF_ENVIRONMENTS])
def test_a_stand_in_answers_at_once_and_ends_with_its_raylet(names: tuple[str, ...], tmp_path: Path) -> None:
    """The ports that it names are none, or one at which whoever asks is refused, instead of waiting."""
    command = [sys.executable, "-I", "-S", agent_stand_in.__file__, str(tmp_path), "node", *names]
    start = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", start, *command], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        stand_in = psutil.Process(int(parent.stdout.readline()))
        while len(list(tmp_path.glob("*_node"))) < len(names):
            time.sleep(0.01)
        assert {path.name for path in tmp_path.iterdir()} == {f"{name}_node" for name in names}
        for path in tmp_path.iterdir():
            port = int(path.read_text())
            if names == agent_stand_in.OF_DASHBOARD:
                assert port == -1
            else:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port), timeout=30)
        parent.kill()
    stand_in.wait(60)


def test_the_installed_ray_is_one_whose_inner_modules_are_known() -> None:
    """Any other starts as usual: no process is spared, and nothing is reached into."""
    assert ray.__version__.rpartition(".")[0] in TESTED


def test_another_ray_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import node, parameter, services, utils

    inner = (
        (parameter, "RayParams"),
        (node.Node, "start_api_server"),
        (services, "start_ray_process"),
        (utils, "get_dashboard_dependency_error"),
    )
    before = [getattr(owner, name) for owner, name in inner]
    with lean_ray():
        assert all(getattr(owner, name) is not value for (owner, name), value in zip(inner, before, strict=True))
    monkeypatch.setattr(ray, "__version__", "2.99.0")
    with lean_ray():
        assert [getattr(owner, name) for owner, name in inner] == before
    assert [getattr(owner, name) for owner, name in inner] == before


def test_beside_a_gpu_idle_processes_import_nothing() -> None:
    assert system_config(Workers("cuda", 2, True)) == {}
    assert system_config(Workers("cpu", 2, True))["preload_python_modules"] == ["torch", "ray.tune"]
