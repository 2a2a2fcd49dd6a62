"""The first second of a sweep: its plan is printed before anything is started that takes time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import ROOT, WIDTH

WITHOUT = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise SystemExit("importing " + name)

sys.meta_path.insert(0, Refusing())
import runpy

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["low_data", "head_count", "tuned"])
def test_the_plan_is_printed_before_ray_torch_or_pandas_are_imported(tmp_path: Path, script: str) -> None:
    heavy = ["ray", "torch", "pandas", "mlflow", "matplotlib"]
    path = str(ROOT / f"sweeps/{script}.py")
    code = [sys.executable, "-c", WITHOUT.format(heavy=set(heavy)), path, "--preset", "smoke"]
    ended = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, env=os.environ | WIDTH)
    # Ray is the first of them.
    assert ended.stderr.strip().splitlines()[-1].startswith("importing ray"), ended.stderr
    lines = ended.stdout.splitlines()
    name = "expressivity" if script == "head_count" else script
    assert lines[0].startswith(f"{name}: ")
    assert any(line.startswith("  time      about ") for line in lines)
    assert "left: starting Ray" in lines[-1]
