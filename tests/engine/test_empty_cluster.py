"""A cluster whose workers come with the work: while it is empty, nothing tells whether they have GPUs."""

import subprocess
import sys
from pathlib import Path

# A process of its own: Ray's handlers and environment variables outlive its shutdown.
ATTACH = """
from ray import cluster_utils
from cvit.config import ConfigError
from cvit.engine.execution.cluster import Cluster

nodes = cluster_utils.Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
)
for device in ("auto", "cuda"):
    try:
        with Cluster(nodes.address, device) as cluster:
            print(device, cluster.workers.device, cluster.workers.count)
    except ConfigError as error:
        print(device, error)
nodes.shutdown()
"""


def test_auto_is_no_device_of_an_empty_cluster(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ATTACH], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == [
        "auto device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu",
        "cuda cuda 16",
    ], done.stderr
