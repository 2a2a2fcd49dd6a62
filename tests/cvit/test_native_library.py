"""The library of the operators is compiled once, by whoever comes first, and where it cannot be, a line says why."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvit import native
from cvit.native import library as module
from cvit.native.library import SWITCH, Unavailable, is_compiled, library
from tests.support.scripts import ROOT, TINY, sweep

COMPILE = [sys.executable, "-c", "from cvit.native.library import library; print(library())"]
RUNS = """
import torch
from cvit import native
from cvit.config import ModelConfig
from cvit.models.vit import VisionTransformer
logits = VisionTransformer(ModelConfig(depth=1), "attention")(torch.zeros(2, 1, 8, 8))
print(tuple(logits.shape), native.problem())
"""
LINE = "Without the fused operators for CPUs"

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no operators here: {native.problem()}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for this test and its processes, with nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "cache/cvit/native"


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> Path:
    """Makes the C++ compiler a script that does some work in the shell, with $out the file to be made; returns the file
    in which it leaves a line per call. Questions about its version go to the real one."""
    script, log = folder / "compiler", folder / "calls"
    script.write_text(
        "#!/bin/bash\n"
        'while [ $# -gt 0 ] && [ "$1" != -o ]; do [[ "$1" == -*v* && "$1" != -*=* ]] && exec c++ "$@"; shift; done\n'
        f"out=$2\necho $out >> {log}\n{work}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    log.touch()
    monkeypatch.setenv("CXX", str(script))
    return log


def copies_the_library() -> str:
    """The work of a compiler that is as good as the real one, and quick: it gives the library that this user has."""
    return f'cp {library()} "$out"'


def test_processes_that_start_together_compile_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiler(tmp_path, monkeypatch, _work_here())
    with (
        subprocess.Popen(COMPILE, cwd=ROOT, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(COMPILE, cwd=ROOT, stdout=subprocess.PIPE, text=True) as two,
    ):
        printed = {one.communicate()[0], two.communicate()[0]}
    (place,) = cache.glob("*.so")
    assert printed == {f"{place}\n"}
    names = calls.read_text().split()
    assert len(names) == len(set(names)) == len(module.sources()) + 1, "an object per source, and the library"
    assert not list(cache.glob("compiling-*"))
    calls.unlink()
    assert library() == place and is_compiled() and not calls.exists(), "later ones find it"
