"""What every test shares: an environment of its own, the data beside the checkout, and the gpu marker."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # torch reads it at import; one thread, so that results don't depend on the machine
}
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_PROFILE")  # no test may reach the user's own services

settings.register_profile("cvit", deadline=None)  # a busy machine is no failure
settings.load_profile("cvit")


def pytest_configure(config: pytest.Config) -> None:
    """Sets the environment before any test module imports torch, Ray or MLflow."""
    # A suite started in the background inherits an ignored SIGINT, and would hand it on to the sweeps it interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(ENVIRONMENT)
    for name in FOREIGN:
        os.environ.pop(name, None)
    # Ray's sockets lie below this folder, and a socket's path may have 107 bytes: pytest's own folders are too deep.
    folder = tempfile.mkdtemp(prefix="cvit-", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked gpu where there is none."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder that holds cifar10/train.parquet and cifar10/test.parquet; skips the test where they are missing."""
    if not (SHARED_DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip(f"no CIFAR-10 in {SHARED_DATA}: cifar10/train.parquet is missing")
    return SHARED_DATA
