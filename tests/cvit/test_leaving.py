"""A process ends without a last collection of garbage, and closes everything that it would close otherwise."""

import subprocess
import sys

import pytest

from tests.support.scripts import ROOT

PROGRAM = """
import atexit, gc, runpy, sys

atexit.register(lambda: print("frozen", gc.get_freeze_count() > 10_000, file=sys.__stdout__, flush=True))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["sweeps/low_data.py", "--version"], 0),
        (["sweeps/low_data.py", "--device", "tpu"], 2),
        (["analysis/make_tables.py", "--storage", "nowhere"], 2),
    ],
)
def test_nothing_is_searched_for_garbage_at_the_end(arguments: list[str], exit_code: int) -> None:
    path = str(ROOT / arguments[0])
    ended = subprocess.run([sys.executable, "-c", PROGRAM, path, *arguments[1:]], capture_output=True, text=True)
    assert ended.returncode == exit_code, ended.stderr
    assert ended.stdout.splitlines()[-1] == "frozen True"
