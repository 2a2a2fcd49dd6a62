"""A Ray cluster of several nodes on this machine, whose nodes can be lost."""

import gc
import os
import warnings
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.processes import MARK


class Nodes:
    """A head without CPUs and nodes with one each; every process carries the mark of `folder`."""

    def __init__(self, folder: Path, count: int) -> None:
        self._environment = {MARK: str(folder)}
        before = os.environ.get(MARK)
        os.environ[MARK] = str(folder)
        try:
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
            self._nodes: list[Any] = []
            for _ in range(count):
                self.add()
        finally:
            os.environ.pop(MARK)
            if before is not None:
                os.environ[MARK] = before

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        """Adds a node."""
        os.environ.update(self._environment)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def lose(self) -> None:
        """Kills the oldest node without notice."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def drain(self) -> None:
        """Drains the oldest node, as a spot instance that is taken back with notice."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=True)

    def lose_head(self) -> None:
        """Kills the control store and the head's raylet without notice."""
        assert self._cluster.head_node is not None
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def end(self) -> None:
        """Ends the whole cluster, also the sockets that Ray leaves to the garbage collector."""
        self._cluster.shutdown()
        self._nodes.clear()
        del self._cluster
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
