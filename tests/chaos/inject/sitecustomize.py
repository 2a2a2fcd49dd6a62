"""Injects faults into a sweep under test and its workers: Python imports this file at its start, because PYTHONPATH
names its folder.

It reads its orders from the folder CVIT_INJECT again and again, so a test can change them while the sweep runs:

    clock         seconds by which the wall clock is wrong; the monotonic clock stays right
    code-<word>   the training raises an error in stages whose init scheme, phase or key is this word, once for each
                  line of the file
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("CVIT_INJECT", "/nonexistent"))

_real_time, _real_time_ns = time.time, time.time_ns


def _offset_s() -> int:
    try:
        return int((FOLDER / "clock").read_text() or "0")
    except OSError:
        return 0


def _raise_as_asked(stage: Any) -> None:
    for word in (stage.trial.init.init_scheme, stage.phase, stage.key):
        path = FOLDER / f"code-{word}"
        lines = path.read_text().splitlines() if path.exists() else []
        if lines:
            path.write_text("\n".join(lines[1:]))
            raise ValueError(f"injected into {word}")


def _patch(module: ModuleType) -> None:
    train_interval = module._train_interval  # type: ignore[attr-defined]

    def faulty(pack: Any, group: Any, data: Any) -> None:
        for member in group:
            _raise_as_asked(member.stage)
        train_interval(pack, group, data)

    module._train_interval = faulty  # type: ignore[attr-defined]


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "cvit.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = exec_module
        return spec


if FOLDER.is_dir():
    time.time = lambda: _real_time() + _offset_s()
    time.time_ns = lambda: _real_time_ns() + _offset_s() * 1_000_000_000
    sys.meta_path.insert(0, _AfterImport())
