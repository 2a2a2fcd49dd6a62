"""Workers that die or hang for real, on orders that a test gives by files; the training itself is the real one."""

import os
import signal
from pathlib import Path
from typing import Any

import ray

from cvit.engine.execution.worker import PackTrainer

ORDERS = Path("orders")
"""This folder beside the storage holds the orders: files named die-<stage key>, hang-<stage key>, start (no worker can
start) or start-<node id>."""


class MisbehavingTrainer(PackTrainer):
    """Before each call, it looks for orders about the stages of its pack."""

    def setup(self, config: dict[str, Any], dataset: Any = None) -> None:
        self._orders = Path(config["storage"]).parent / ORDERS
        node = ray.get_runtime_context().get_node_id()
        if (self._orders / "start").exists() or (self._orders / f"start-{node}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        super().setup(config, dataset)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._pack = new_config["pack"]
        return super().reset_config(new_config)

    def step(self) -> dict[str, Any]:
        for stage in self._pack:
            if (self._orders / f"die-{stage.key}").exists():
                os.kill(os.getpid(), signal.SIGSEGV)
            hang = self._orders / f"hang-{stage.key}"
            if hang.exists():
                hang.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)
        return super().step()
