"""Injects faults into a sweep under test and its workers: Python imports this file at its start, because PYTHONPATH
names its folder.

It reads its orders from the folder CVIT_INJECT again and again, so a test can change them while the sweep runs:

    clock         seconds by which the wall clock is wrong; the monotonic clock stays right
    code-<word>   the training raises an error in stages whose init scheme, phase or key is this word, once for each
                  line of the file
    kill-<word>   it kills its own process, likewise
    stop-<word>   it stops its own process, which then hangs, likewise
    memory-<word>  it takes more and more memory until it is killed, likewise
    constants.json  {module: {name: value}}: constants of the engine that are other ones here
"""

import functools
import importlib.abc
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("CVIT_INJECT", "/nonexistent"))
MOST_MEMORY_MIB = 6 * 1024
"""The most memory that a process takes when it is asked to exhaust it."""

if host := os.environ.get("CVIT_HOST"):
    socket.gethostname = lambda: host

_real_time, _real_time_ns = time.time, time.time_ns


def _offset_s() -> int:
    try:
        return int((FOLDER / "clock").read_text() or "0")
    except OSError:
        return 0


def _is_asked(order: str, stage: Any) -> bool:
    """True if there is such an order for the stage; it takes a line off the order's file."""
    for word in (stage.trial.init.init_scheme, stage.phase, stage.key):
        path = FOLDER / f"{order}-{word}"
        lines = path.read_text().splitlines() if path.exists() else []
        if lines:
            path.write_text("\n".join(lines[1:]))
            return True
    return False


def _suffer(stage: Any) -> None:
    if _is_asked("kill", stage):
        os.kill(os.getpid(), signal.SIGKILL)
    if _is_asked("stop", stage):
        os.kill(os.getpid(), signal.SIGSTOP)
    if _is_asked("memory", stage):
        taken = []
        while len(taken) < MOST_MEMORY_MIB // 64:
            taken.append(b"x" * 2**26)
            time.sleep(0.01)
        time.sleep(30)  # the memory monitor looks a few times a second
    if _is_asked("code", stage):
        raise ValueError(f"injected into {stage.trial.init.init_scheme}")


def _patch_training(module: ModuleType) -> None:
    train_interval = module._train_interval  # type: ignore[attr-defined]

    def faulty(pack: Any, group: Any, data: Any) -> None:
        for member in group:
            _suffer(member.stage)
        train_interval(pack, group, data)

    module._train_interval = faulty  # type: ignore[attr-defined]


def _patch_constants(constants: dict[str, float], module: ModuleType) -> None:
    vars(module).update(constants)


def _actions() -> dict[str, Callable[[ModuleType], None]]:
    """The changes to make to a module once it is imported, by the module's name."""
    path = FOLDER / "constants.json"
    constants = json.loads(path.read_text()) if path.exists() else {}
    actions = {module: functools.partial(_patch_constants, values) for module, values in constants.items()}
    return actions | {"cvit.training.loop": _patch_training}


class _AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self._actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self._actions.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module
        return spec


if FOLDER.is_dir():
    time.time = lambda: _real_time() + _offset_s()
    time.time_ns = lambda: _real_time_ns() + _offset_s() * 1_000_000_000
    sys.meta_path.insert(0, _AfterImport(_actions()))
