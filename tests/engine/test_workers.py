"""The workers of a sweep: how many there are, what each gets, what is refused, and that Ray holds to it."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private import state

from cvit.data.datasets import load
from cvit.engine.environment import prepare
from cvit.engine.execution import execute
from cvit.engine.execution.queue import StagePack, StageQueue
from cvit.engine.execution.searcher import PlanSearcher
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.worker import PackTrainer
from cvit.engine.execution.workers import THIS_MACHINE, Machine, Workers, this_process, workers_on
from cvit.engine.planning.progress import Outcome
from cvit.engine.planning.request import Resources
from cvit.engine.recording.journal import Journal
from cvit.parameters import ConfigError
from cvit.storage import Storage
from tests.support.plans import SMALL, Order, digits, make_progress
from tests.support.scripts import call

ALONE = ("--data-fraction", "0.02", "--init-scheme", "random", *SMALL[8:], "--seeds")
GPUS = [Machine(16, 2)]
NODES = [Machine(3), Machine(3)]


@pytest.mark.parametrize(
    ("machines", "device", "asked", "count", "resources"),
    [
        ([Machine(8)], "auto", {}, 8, {"CPU": 1.0}),
        ([Machine(8)], "cpu", {"workers": 3}, 3, {"CPU": 1.0}),
        ([Machine(8)], "cpu", {"cpus_per_worker": 3}, 2, {"CPU": 3.0}),
        ([Machine(1)], "cpu", {"cpus_per_worker": 0.1}, 10, {"CPU": 0.1}),
        (NODES, "cpu", {"cpus_per_worker": 2}, 2, {"CPU": 2.0}),
        (GPUS, "cpu", {}, 16, {"CPU": 1.0}),
        (GPUS, "auto", {}, 4, {"CPU": 1.0, "GPU": 0.5}),
        (GPUS, "cuda", {"gpus_per_worker": 1}, 2, {"CPU": 1.0, "GPU": 1.0}),
        (GPUS, "cuda", {"gpus_per_worker": 0.2}, 10, {"CPU": 1.0, "GPU": 0.2}),
        (GPUS, "cuda", {"gpus_per_worker": 0.34}, 4, {"CPU": 1.0, "GPU": 0.34}),
        (GPUS, "cuda", {"gpus_per_worker": 0.2, "cpus_per_worker": 4}, 4, {"CPU": 4.0, "GPU": 0.2}),
        ([Machine(2, 4)], "cuda", {}, 2, {"CPU": 1.0, "GPU": 0.5}),
        ([Machine(8), Machine(1, 1)], "cuda", {}, 1, {"CPU": 1.0, "GPU": 0.5}),
    ],
)
def test_a_worker_lies_on_one_machine_and_on_one_gpu(
    machines: list[Machine], device: str, asked: dict[str, Any], count: int, resources: dict[str, float]
) -> None:
    workers = workers_on(machines, device, Resources(**asked), THIS_MACHINE, may_grow=False)
    assert (workers.count, workers.resources, workers.most) == (count, resources, asked.get("workers"))
    assert workers.is_here and workers.threads == max(1, int(resources["CPU"]))


@pytest.mark.parametrize(
    ("machines", "device", "asked", "line"),
    [
        ([Machine(2)], "cpu", {"workers": 3}, "workers 3 is not valid here: X has room for 2, at 1 CPU each"),
        (
            [Machine(2)],
            "cpu",
            {"workers": 5, "cpus_per_worker": 0.5},
            "workers 5 is not valid here: X has room for 4, at 0.5 CPUs each",
        ),
        (NODES, "cpu", {"cpus_per_worker": 4}, "cpus_per_worker 4 is not valid here: X has 3 CPUs at most"),
        (
            NODES,
            "cpu",
            {"workers": 3, "cpus_per_worker": 2},
            "workers 3 is not valid here: X has room for 2, at 2 CPUs each",
        ),
        (
            GPUS,
            "auto",
            {"workers": 5},
            "workers 5 is not valid here: X has room for 4, at 1 CPU and 0.5 of a GPU each",
        ),
        (
            GPUS,
            "cpu",
            {"gpus_per_worker": 0.5},
            "gpus_per_worker is not valid here: X has no GPU, or the device is cpu",
        ),
        (
            [Machine(2)],
            "auto",
            {"gpus_per_worker": 0.5},
            "gpus_per_worker is not valid here: X has no GPU, or the device is cpu",
        ),
        ([Machine(2)], "cuda", {}, "device 'cuda' is not valid here: X has no GPU; use cpu or auto"),
    ],
)
def test_what_the_machines_have_not_got_is_refused(
    machines: list[Machine], device: str, asked: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        workers_on(machines, device, Resources(**asked), "X", may_grow=False)
    assert str(refused.value) == line


def test_a_cluster_that_grows_is_limited_and_not_refused() -> None:
    workers = workers_on([], "cuda", Resources(workers=40, gpus_per_worker=1), "X", may_grow=True)
    assert (workers.count, workers.most, workers.per_device, workers.is_here) == (40, 40, 1, False)
    assert workers_on([], "cuda", Resources(), "X", may_grow=True).count == 16


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--workers", "0"), "workers 0 must be at least 1"),
        (("--cpus-per-worker", "0"), "cpus_per_worker 0 must be at least 0.01: CPUs, or a share of one"),
        (("--cpus-per-worker", "nan"), "cpus_per_worker nan must be at least 0.01: CPUs, or a share of one"),
        (("--gpus-per-worker", "2"), "gpus_per_worker 2 must lie from 0.01 to 1: a share of one GPU"),
        (("--workers", "9999"), "workers 9999 is not valid here: this machine has room for "),
        (
            ("--gpus-per-worker", "1", "--device", "cpu"),
            "gpus_per_worker is not valid here: this machine has no GPU, or the device is cpu",
        ),
        (("--cpus-per-worker", "9999"), "cpus_per_worker 9999 is not valid here: this machine has "),
        (
            ("--workers", "9999", "--address", "RAY"),
            "workers 9999 is not valid here: the cluster at Ray address 'RAY' has room for 2, at 1 CPU each",
        ),
        (
            ("--cpus-per-worker", "3", "--address", "RAY"),
            "cpus_per_worker 3 is not valid here: the cluster at Ray address 'RAY' has 2 CPUs at most",
        ),
        (
            ("--device", "cuda", "--address", "RAY"),
            "device 'cuda' is not valid here: the cluster at Ray address 'RAY' has no GPU; use cpu or auto",
        ),
    ],
)
def test_bad_wishes_end_in_a_line_before_anything_is_written(
    options: tuple[str, ...], line: str, tmp_path: Path, ray_address: str
) -> None:
    is_of_cluster = "RAY" in options  # it is looked at when the plan is printed
    options = tuple(ray_address if option == "RAY" else option for option in options)
    ended = call(tmp_path, "--preset", "smoke", *options)
    assert ended.exit_code == 2 and (ended.output == "" or is_of_cluster)
    assert ended.errors.startswith(f"low_data.py: error: {line.replace('RAY', ray_address)}")
    assert ended.errors.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_process_alone_has_the_threads_that_it_is_given(tmp_path: Path) -> None:
    assert this_process("cpu").threads == 1
    before = torch.get_num_threads()
    output = call(tmp_path, *ALONE, "1", "--cpus-per-worker", "1", "--workers", "1", "--tracking-uri", "none")
    assert output.exit_code == 0 and torch.get_num_threads() == before


def test_a_plan_counts_the_workers_that_are_asked_for(tmp_path: Path, ray_address: str) -> None:
    """Those of a cluster, which a dry run does not attach to."""
    options = (*ALONE, "1", "--max-pack", "1", "--dry-run", "--json", "--workers", "7", "--address", ray_address)
    ended = call(tmp_path, *options)
    assert ended.exit_code == 0, ended.errors
    assert json.loads(ended.output)["sweeps"][0]["cost"]["num_workers"] == 7


class NotingTrainer(PackTrainer):
    """Notes, after each call, how its process is named and with how many threads it trains."""

    def step(self) -> dict[str, Any]:
        result = super().step()
        title = Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()
        note = json.dumps([title, torch.get_num_threads(), repr(self), os.getpid()])
        with (Path(self.config["storage"]).parent / "notes").open("a") as notes:
            notes.write(note + "\n")
        return result


class Counting(Order):
    """A follower that counts the packs that train at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.running: set[str] = set()
        self.most = 0

    def started(self, name: str, pack: StagePack) -> None:
        super().started(name, pack)
        self.running.add(name)
        self.most = max(self.most, len(self.running))

    def ended(self, name: str, lines: object = ()) -> None:
        self.running.discard(name)


@pytest.fixture
def real_ray(ray_address: str) -> Iterator[None]:
    prepare()
    ray.init(ray_address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("real_ray")
def test_ray_holds_to_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker of two CPUs has all there is, and trains with two threads."""
    monkeypatch.setattr(execute, "PackTrainer", NotingTrainer)
    progress = make_progress(tmp_path / "storage", *ALONE, "3")
    storage, follower = Storage.open(str(tmp_path / "storage")), Counting()
    workers = Workers("cpu", 1, is_here=False, cpus=2.0)
    site = Site(load(digits()), storage, workers, {}, Timing(time.monotonic()))
    outcomes = execute.train_stages(progress, Journal(storage, "low_data"), follower, site)
    assert outcomes == dict.fromkeys(progress.plan.stages, Outcome("done"))
    assert follower.most == 1
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert {threads for _, threads, _, _ in notes} == {2}
    assert {name for _, _, name, _ in notes} == {"PackTrainer(low_data)"}
    assert {title for title, *_ in notes} == {
        f"ray::PackTrainer low_data: attention stage {key}" for key in progress.plan.stages
    }
    (pid,) = {pid for *_, pid in notes}  # one process takes all packs
    names = {actor["ActorClassName"] for actor in state.actors().values() if actor["Pid"] == pid}
    assert names == {"NotingTrainer"}


def test_no_more_packs_are_handed_out_than_there_are_workers(tmp_path: Path) -> None:
    queue = StageQueue(make_progress(tmp_path, *ALONE, "4"), {})
    searcher = PlanSearcher(queue, 2, lambda: {"sweep": "low_data"}, print)
    first, second, third = (searcher.suggest(name) for name in ("a", "b", "c"))
    assert isinstance(first, dict) and isinstance(second, dict) and third is None
    searcher.on_trial_complete("a")
    assert isinstance(searcher.suggest("d"), dict) and searcher.suggest("e") is None


PINNED = """
import os, sys
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
from cvit.engine.environment import prepare
prepare()
from cvit.engine.execution.cluster import Cluster
with Cluster(None, "auto") as cluster:
    workers = cluster.workers
    import ray
    seen = ray.get(ray.remote(lambda: os.sched_getaffinity(0)).remote())
    print(workers.device, workers.count, ray.cluster_resources()["CPU"], seen == {core})
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_ray_that_starts_here_keeps_to_the_cores_of_this_process(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-c", PINNED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["cpu 1 1.0 True"] or torch.cuda.is_available(), done.stderr


UNSEEN = """
from cvit.engine.environment import prepare
prepare()
from cvit.engine.execution import cluster, workers
cluster.num_gpus = workers.num_gpus = lambda: 2
with cluster.Cluster(None, "auto") as there:
    found = there.workers
    import ray
    print(found.device, found.gpus, ray.cluster_resources().get("GPU"))
print(workers.workers_here("auto").device)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray may see the GPUs of this machine")
def test_ray_has_the_gpus_that_torch_sees(tmp_path: Path) -> None:
    """Ray counts with a library that containers often lack: then cuda waited for ever, and auto took the CPU while the
    plan said cuda. A stand-in counts for torch."""
    done = subprocess.run([sys.executable, "-c", UNSEEN], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["cuda 0.5 2.0", "cuda"], done.stderr
