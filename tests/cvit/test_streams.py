"""Standard output and error: a program goes on without them, and loses no number in ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
import os, sys
from pathlib import Path
from cvit.streams import make_streams_last

make_streams_last()
place = Path(sys.argv[1])
with place.open("w") as file:  # would get the number of a closed standard stream
    for _ in range(3):
        print("\u22123.2 \u00b1 1.0 \u00d7 10 \u00fcnd \udcff", flush=True)
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
    file.write("all is done")
"""


def run(redirection: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -c "$1" "$2" {redirection}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, PROGRAM, str(folder / "file")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1", "2> /dev/full", "| true"]
)
def test_a_program_outlives_its_output(redirection: str, tmp_path: Path) -> None:
    done = run(redirection, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "all is done"
    assert "Error" not in done.stderr.replace("echo: write error", "")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["PYTHONIOENCODING", "LC_ALL"],
)
def test_in_ascii_numbers_keep_their_signs(environment: dict[str, str], tmp_path: Path) -> None:
    done = run("", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "-3.2 +/- 1.0 x 10 ?nd ?"


def test_elsewhere_text_stays_as_it_is(tmp_path: Path) -> None:
    done = run("", tmp_path, PYTHONIOENCODING="utf-8")
    assert done.stdout.splitlines()[0] == "−3.2 ± 1.0 × 10 ünd ?"
