"""Libraries that take seconds to import are imported only where they are needed: torch by those who train."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import ROOT, WIDTH

HEAVY = [
    "torch",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "triton",
    "ray",
    "mlflow",
    "matplotlib",
    "pandas",
    "scipy",
]


@pytest.mark.parametrize(
    ("workers", "loaded"),
    [(("--workers", "1"), "loaded torch pandas scipy"), ((), "loaded pandas scipy")],
    ids=["in its own process", "forked workers"],
)
def test_a_sweep_on_cpus_imports_no_compiler_and_torch_only_where_it_trains(
    tmp_path: Path, workers: tuple[str, ...], loaded: str
) -> None:
    """torch imports its compiler, a second of the processor, as soon as integers are computed on the device `meta`."""
    program = (
        "import atexit, runpy, sys\n"
        f"watched = {HEAVY!r}\n"
        "say = lambda: print('loaded', *[name for name in watched if name in sys.modules], file=sys.__stdout__)\n"
        "atexit.register(say)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    options = ["--preset", "smoke", "--address", "local", "--tracking-uri", "none", "--data-fraction", "0.05"]
    command = [sys.executable, "-c", program, str(ROOT / "sweeps/low_data.py"), *options, *workers]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | WIDTH)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == loaded
