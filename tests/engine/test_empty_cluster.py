"""A cluster whose workers come with the work: while it is empty, nothing tells whether they have GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: Ray's handlers and environment variables outlive its shutdown.
ATTACH = """
import sys
from ray.cluster_utils import Cluster
from cvit.config import ConfigError
from sweeps.engine.execution.cluster import ray_session

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "object_store_memory": 10**8})
for device in ("auto", "cuda"):
    try:
        with ray_session(cluster.address, device) as workers:
            print(device, workers.device, workers.count)
    except ConfigError as error:
        print(device, error)
cluster.shutdown()
"""


@pytest.mark.xdist_group("ray")
def test_auto_is_no_device_of_an_empty_cluster(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ATTACH], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == [
        "auto device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu",
        "cuda cuda 16",
    ], done.stderr
