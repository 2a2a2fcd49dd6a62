"""`ray up cluster-onprem.yaml` on three hosts: over real SSH, with token authentication, a sweep across both workers,
a worker that vanishes in mid-sweep, and `ray down`."""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from subprocess import DEVNULL, PIPE, STDOUT

import pytest

from cvit import vocabulary as v
from cvit.results import load_result
from cvit.storage import Storage
from tests.cluster.lan import HEAD, HOSTS, WORKERS, Lan, lan, missing
from tests.support.scripts import TINY, mlflow_runs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CONFIG = "/mnt/home/cluster.yaml"
SUBMIT = ("ray", "submit", CONFIG, "sweeps/low_data.py", "--")
JOB = f"""
ray dashboard {CONFIG} > /dev/null 2>&1 & trap "kill $!" EXIT
until curl -s http://127.0.0.1:8265 > /dev/null; do sleep 0.5; done
ray job submit --address http://127.0.0.1:8265 -- bash -c 'cd ~/cvit && python sweeps/low_data.py "$@"' -- "$@"
"""
SWEEP = (
    *("--address", "auto", *TINY, "--min-steps", "2400", "--data-fraction", "0.1"),
    *("--seeds", "2", "--init-scheme", "random", "two_phase"),
)
STAGES = 6  # two seeds of random, and of two_phase in two phases


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Waits until the condition holds, and returns the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + timeout_s, "timed out"
        time.sleep(1)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    """The hosts with Ray up on all of them."""
    if reason := missing():
        pytest.skip(reason)
    with lan(tmp_path_factory.mktemp("lan")) as hosts:
        hosts.run("ray", "up", CONFIG, "-y")
        wait_until(lambda: f"{len(WORKERS)} worker" in hosts.ssh(HEAD, "ray status"), 240)
        yield hosts


def results(hosts: Lan, storage: str) -> dict[str, dict[tuple[str, int], float]]:
    """Every measurement of every finished stage that does not depend on the clock."""
    opened = Storage.open(str(hosts.folder / "shared" / storage))
    found = {}
    for key in opened.names(v.STAGES_FOLDER):
        result = load_result(opened, key)
        assert result is not None
        found[key] = {(name, step): value for name, step, value, _ in result.points if name != v.IMAGES_PER_SECOND}
    return found


def actors(hosts: Lan, host: str) -> int:
    """The number of processes of the trainable that Ray has started on a host so far."""
    logs = (hosts.folder / host / "tmp/ray").glob("session_2*/logs/worker-*.out")
    return sum(":actor_name:PackTrainer" in path.read_text() for path in logs)


def ray_processes(hosts: Lan, host: str) -> int:
    return int(hosts.ssh(host, "pgrep -c 'raylet|gcs_s' || true"))


def test_every_host_joins(cluster: Lan) -> None:
    nodes = "import ray; ray.init(address='auto'); print(*(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"
    output = cluster.ssh(HEAD, f"python -c {shlex.quote(nodes)}")
    assert sorted(output.splitlines()[-1].split()) == sorted(HOSTS.values())


def test_services_are_closed_to_others(cluster: Lan) -> None:
    """MLflow and the dashboard listen on the head's loopback alone, and Ray refuses a caller without the token."""
    for port in (5000, 8265):
        code = "curl -s -o /dev/null -w '%{http_code}'"
        assert cluster.ssh(HEAD, f"{code} http://127.0.0.1:{port}/").strip() == "200"
        assert cluster.ssh(WORKERS[0], f"{code} http://{HOSTS[HEAD]}:{port}/ || true").strip() == "000"
    status = f"ray status --address {HOSTS[HEAD]}:6379 2>&1 || true"
    assert "2 worker" in cluster.ssh(WORKERS[0], status)
    assert "Unauthenticated" in cluster.ssh(WORKERS[0], f"RAY_AUTH_MODE=disabled {status}")
    token = (cluster.folder / "laptop/home/.ray/auth_token").read_bytes()
    files = [path for host in HOSTS for path in (cluster.folder / host).rglob("*") if path.is_file()]
    assert {path.name for path in files if token in path.read_bytes()} == {"auth_token"}


def test_a_sweep_runs_across_the_workers(cluster: Lan) -> None:
    output = cluster.run(*SUBMIT, *SWEEP, "--storage", "/mnt/shared/undisturbed")
    assert "4 of 4 trials done" in output and "failed" not in output
    started = [actors(cluster, host) for host in WORKERS]
    assert min(started) > 0, "a worker had nothing to do"
    assert sum(started) <= STAGES, "a stage was trained more than once"
    assert len(results(cluster, "undisturbed")) == STAGES
    runs = mlflow_runs(cluster.folder / "head/home", v.ROLE_TRIAL)
    assert sorted((run.data.params["init_scheme"], run.data.params["seed"]) for run in runs) == [
        *(("random", "0"), ("random", "1")),
        *(("two_phase", "0"), ("two_phase", "1")),
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_sweep_outlives_a_worker(cluster: Lan) -> None:
    """A job goes on when one worker falls silent while it trains; its results are those of the undisturbed sweep."""
    trained_before = actors(cluster, WORKERS[1])
    job = cluster.on_laptop("bash", "-c", JOB, "job", *SWEEP, "--storage", "/mnt/shared/disturbed")
    with subprocess.Popen(job, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True) as sweep:
        checkpoints = cluster.folder / "shared/disturbed/stages"
        wait_until(lambda: actors(cluster, WORKERS[1]) > trained_before and any(checkpoints.glob("*/step-*.json")), 120)
        cluster.pull_cable(WORKERS[1])
        start = time.monotonic()
        output, _ = sweep.communicate(timeout=400)
    print(f"finished {time.monotonic() - start:.0f} s later")
    assert sweep.returncode == 0, output
    assert "4 of 4 trials done" in output
    assert results(cluster, "disturbed") == results(cluster, "undisturbed")


def test_ray_down_ends_ray_on_every_host(cluster: Lan) -> None:
    cluster.run("ray", "down", CONFIG, "-y")
    assert ray_processes(cluster, HEAD) == 0
    took_s = wait_until(lambda: ray_processes(cluster, WORKERS[0]) == 0, 180)
    print(f"the worker's Ray ended {took_s:.0f} s after the head's")
