"""The library of the operators is compiled once, by whoever comes first; where it cannot be, one line says why."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvit import native
from cvit.native import library as module
from cvit.native.library import SWITCH, Unavailable, is_compiled, library_file
from tests.support.scripts import ROOT, TINY, sweep

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no operators here: {native.problem()}")

ASK = [sys.executable, "-c", "from cvit.native.library import library_file; print(library_file())"]
TRAIN = """
import torch
from cvit import native
from cvit.config import ModelConfig
from cvit.models.vit import VisionTransformer
print(tuple(VisionTransformer(ModelConfig(depth=1), "attention")(torch.zeros(2, 1, 8, 8)).shape), native.problem())
"""
LINE = "Without the fused operators for CPUs"


@pytest.fixture
def copying() -> str:
    """The work of a compiler that is as good as the real one, and quick: it gives the library that is there."""
    return f'cp {library_file()} "$out"'


@pytest.fixture
def cache(copying: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test and its processes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "cache/cvit/native"


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> Path:
    """Makes a script in the shell the C++ compiler, with $out the file that it has to make; returns the file in which
    it leaves the name of each. Questions about its version go to the real one."""
    script, calls = folder / "compiler", folder / "calls"
    script.write_text(
        "#!/bin/bash\n"
        'words=("$@")\nwhile [ $# -gt 0 ] && [ "$1" != -o ]; do shift; done\n'
        f'out=$2\n[ "$out" ] || exec c++ "${{words[@]}}"\nbasename "$out" >> {calls}\n{work}\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    calls.touch()
    monkeypatch.setenv("CXX", str(script))
    return calls


def test_processes_that_start_together_compile_once(
    copying: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiler(tmp_path, monkeypatch, copying)
    of_another_version = cache / "compiling-cvit_native-0123456789abcdef-x"
    of_another_version.mkdir(parents=True)
    processes = [subprocess.Popen(ASK, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in processes}
    (place,) = cache.glob("*.so")
    assert printed == {f"{place}\n"} and is_compiled() and library_file() == place
    made = sorted(calls.read_text().split())
    assert made == sorted([*(f"{path.stem}.o" for path in module.sources()), f"{module.NAME}.so"])
    assert list(cache.glob("compiling-*")) == [of_another_version] and not list(cache.glob("*.failed"))


def test_after_a_killed_compilation_the_next_process_compiles(
    copying: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiler(tmp_path, monkeypatch, "exec sleep 600")
    with subprocess.Popen(ASK, cwd=ROOT, start_new_session=True) as process:
        while not calls.read_text():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert list(cache.glob("compiling-*")), "it had begun"
    compiler(tmp_path, monkeypatch, copying)
    assert library_file() == next(cache.glob("*.so"))
    assert not list(cache.glob("compiling-*"))


def test_a_broken_compiler_is_asked_once_until_it_is_mended(
    copying: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = compiler(tmp_path, monkeypatch, 'echo "x.cpp:1: error: no such instruction" >&2; exit 1')
    with pytest.raises(Unavailable, match=r"^they cannot be compiled: x.cpp:1: error: no such .* \(see .*\.failed\)$"):
        library_file()
    asked = calls.read_text()
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(2, 10) they cannot be compiled: ") and done.stderr == "", "torch computes it"
    compiler(tmp_path, monkeypatch, copying)
    with pytest.raises(Unavailable):
        library_file()
    assert calls.read_text() == asked, "the failure is remembered"
    assert library_file(anew=True) == library_file()


@pytest.mark.parametrize("work", ['echo nonsense > "$out"', "kill -SEGV $$"], ids=["nonsense", "crash"])
def test_a_compiler_whose_work_is_of_no_use(
    work: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, work)
    with pytest.raises(Unavailable, match="they cannot be compiled: "):
        library_file()
    assert not list(cache.glob("*.so")) and not list(cache.glob("compiling-*"))


def test_a_compiler_that_hangs_is_ended(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, f"echo $$ >> {tmp_path}/pids; exec sleep 600")
    pids, patience = tmp_path / "pids", 4.0
    while not pids.exists():  # a busy machine takes longer to reach the compiler
        monkeypatch.setattr(module, "_TIMEOUT_S", patience)
        with pytest.raises(Unavailable, match="they cannot be compiled: it took longer than"):
            library_file(anew=True)
        patience *= 2
    while any(
        Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in pids.read_text().split()
    ):
        time.sleep(0.05)


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"there is no C\+\+ compiler 'no-such-compiler'"):
        library_file()
    assert not cache.exists()
    done = subprocess.run([sys.executable, "-m", "cvit.native"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{LINE}, training takes about twice as long: there is no C++ compiler 'no-such-compiler'.\n"


def test_a_home_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(Unavailable, match="/dev/null/cache/cvit/native cannot be written: Not a directory"):
        library_file()


def test_a_processor_without_the_instructions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor_flags", lambda: frozenset({"sse4_2", "fma"}))
    with pytest.raises(Unavailable, match="the processor has no AVX2"):
        library_file()
    assert is_compiled(), "nothing has to be waited for"


def test_a_file_that_is_no_library(cache: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(library_bytes := b"\x7fELF" + bytes(100))
    with pytest.raises(Unavailable, match=r"cannot be loaded .*; python -m cvit.native makes it anew"):
        native.use(damaged)
    assert damaged.read_bytes() == library_bytes


def test_a_sweep_says_once_that_torch_computes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--preset", "smoke", "--init-scheme", "random", *TINY, "--min-steps", "4", "--data-fraction", "0.2")
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = [line for line in sweep(tmp_path, *options).splitlines() if line.startswith(LINE)]
    assert said == [f"{LINE}, training takes about twice as long: there is no C++ compiler 'no-such-compiler'."]
    assert LINE not in sweep(tmp_path, *options), "nothing is trained"
    monkeypatch.setenv(SWITCH, "0")
    assert LINE not in sweep(tmp_path, *options, "--data-fraction", "0.5"), "the user has asked for it"


def test_the_variable_switches_the_operators_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(SWITCH, "0")
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 10) CVIT_NATIVE is 0\n"
