"""A cluster whose workers come with the work: while it is empty, nothing tells whether they have GPUs.

Then a machine comes of which this job has two GPUs, numbers 5 and 7. Ray takes their number from us, so that this needs
none: it gives every worker the numbers of its own in CUDA_VISIBLE_DEVICES.
"""

import subprocess
import sys
from pathlib import Path

# A process of its own: Ray's handlers and environment variables outlive its shutdown.
ATTACH = """
import os
import ray
from collections import Counter
from ray import cluster_utils
from cvit.engine.planning.request import Resources
from cvit.parameters import ConfigError
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

os.environ["CUDA_VISIBLE_DEVICES"] = "5,7"
nodes.add_node(num_cpus=4, num_gpus=2)

@ray.remote
class Worker:
    def gpu(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

for asked in (Resources(), Resources(gpus_per_worker=1), Resources(workers=7)):
    with Cluster(nodes.address, "auto", asked) as cluster:
        workers = cluster.workers
        cpus, gpus = workers.resources["CPU"], workers.resources["GPU"]
        actors = [Worker.options(num_cpus=cpus, num_gpus=gpus).remote() for _ in range(min(workers.count, 4))]
        seen = Counter(ray.get([actor.gpu.remote() for actor in actors]))
        print(workers.device, workers.count, workers.most, sorted(seen.items()))
nodes.shutdown()
"""


def test_the_workers_of_a_cluster_that_grows(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ATTACH], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-5:] == [
        "auto device 'auto' is not valid here: the cluster has no worker yet; use cuda or cpu",
        "cuda cuda 16",
        "cuda 4 None [('5', 2), ('7', 2)]",
        "cuda 2 None [('5', 1), ('7', 1)]",
        "cuda 7 7 [('5', 2), ('7', 2)]",
    ], done.stderr
