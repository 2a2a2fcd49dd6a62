"""All tests share an environment of their own, the data beside the checkout, one running Ray, and the gpu marker."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # as in a sweep, whichever test reads a store first
    "RAY_USAGE_STATS_ENABLED": "0",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # torch reads it at import; one thread, so that results don't depend on the machine
}
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_PROFILE")  # no test may reach the user's own services
# Now, since the conftest of a folder that is named on the command line imports torch before pytest_configure.
os.environ.update(ENVIRONMENT)

settings.register_profile("cvit", deadline=None)  # a busy machine is no failure
settings.load_profile("cvit")


def pytest_configure(config: pytest.Config) -> None:
    """Sets what else tests need before any of their modules is imported."""
    # A suite started in the background inherits an ignored SIGINT, and would hand it on to the sweeps it interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in FOREIGN:
        os.environ.pop(name, None)
    # Compiled operators are found by tests with a home folder of their own too.
    os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    # Ray's sockets lie below this folder, and a socket's path may have 107 bytes: pytest's own folders are too deep.
    folder = tempfile.mkdtemp(prefix="cvit-", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, files without such a test are not imported: a machine lent for its GPU may lack Ray, MLflow and
    Optuna, and imports take seconds of the loan."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and config.getoption("markexpr") == "gpu" and "mark.gpu" not in collection_path.read_text():
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked gpu where there is none, and puts the files that take longest first, so that of several
    test processes (`make test`) none works alone at the end."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


RAY = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of one running Ray with two CPUs, for the tests that need one and do not ask how it starts.

    It lives in a process of its own, because Ray's signal handlers and environment variables outlive its shutdown.
    """
    with subprocess.Popen(
        [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
        process.communicate(timeout=60)  # the end of its input ends it


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder that holds cifar10/train.parquet and cifar10/test.parquet; skips the test where they are missing."""
    if not (SHARED_DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip(f"no CIFAR-10 in {SHARED_DATA}: cifar10/train.parquet is missing")
    return SHARED_DATA
