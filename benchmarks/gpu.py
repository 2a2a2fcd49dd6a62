"""The first minutes on a GPU: is its path right, and how fast is it? Needs this checkout and torch alone.

python benchmarks/gpu.py all --budget-s 780 --json gpu.json      # every check, the most important first
python benchmarks/gpu.py steps compiled                          # single checks, in this process
python benchmarks/gpu.py all --data-dir ../shared/data           # with trainings on CIFAR-10 too

`all` gives each check a process and a time limit of its own, so that none can take the others down or their time, and
writes the file after each: what was measured is there even if the machine is taken back. The checks are the functions
of `benchmarks/gpu_checks.py`; docs/PERFORMANCE.md says what they should reach.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

LIMITS_S = {
    "ceilings": 40,
    "attention": 60,
    "steps": 100,
    "tests": 200,
    "compiled": 240,
    "plain": 60,
    "grid": 20,
    "real": 180,
    "start": 40,
    "memory": 60,
    "share": 60,
    "profile": 60,
}
"""The checks in the order of their importance, and the most seconds that each may take."""
TESTS = ("-q", "-m", "gpu", "-n", "6", "-W", "default", "-p", "no:cacheprovider", "--tb=short", "tests")
LEAST_S = 10.0
"""No check is begun with less time left."""


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code is 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Checks and measures the path of this project on a GPU.")
    parser.add_argument("checks", nargs="+", choices=["all", *LIMITS_S], metavar=f"all or {', '.join(LIMITS_S)}")
    parser.add_argument("--budget-s", type=float, default=780.0, help="seconds for all of them")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    parser.add_argument("--data-dir", default=None, help="folder with CIFAR-10, for the check `real`")
    options = parser.parse_args(arguments)
    if options.data_dir is not None:
        os.environ["CVIT_DATA_DIR"] = options.data_dir
    if options.checks == ["all"]:
        return _all_apart(options.budget_s, options.json)
    return _here(options.checks, options.json)


def _all_apart(budget_s: float, file: Path | None) -> int:
    """Every check in a process of its own, as long as there is time."""
    ends_at = time.monotonic() + budget_s
    figures: dict[str, Any] = {}
    for name, limit_s in LIMITS_S.items():
        if name == "real" and not os.environ.get("CVIT_DATA_DIR"):
            continue
        left_s = ends_at - time.monotonic()
        if left_s < LEAST_S:
            print(f"== {name}: no time is left", flush=True)
            figures[name] = {"skipped": "no time"}
        else:
            figures[name] = _apart(name, min(limit_s, left_s), file)
        _write(file, figures)
    failed = [name for name, found in figures.items() if "error" in found]
    print(f"failed: {', '.join(failed)}" if failed else "every check ended", flush=True)
    return int(bool(failed))


def _apart(name: str, limit_s: float, before: Path | None) -> dict[str, Any]:
    print(f"== {name} (at most {limit_s:.0f} s)", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cvit-gpu-") as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, __file__, name, "--json", str(file)]
        if name == "tests":
            command = [sys.executable, "-m", "pytest", *TESTS]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "CVIT_GPU_FIGURES": str(before or "")}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = "out of time"
        figures = json.loads(file.read_text())[name] if file.exists() else {}
    if code != 0:
        figures |= {"error": figures.get("error", code)}
    return figures | {"took_s": round(time.monotonic() - started, 1)}


def _here(names: Sequence[str], file: Path | None) -> int:
    """Checks in this process, one after the other."""
    from benchmarks import gpu_checks

    figures: dict[str, Any] = {}
    for name in names:
        if name == "tests":
            figures[name] = _apart(name, LIMITS_S[name], file)
            continue
        keep = figures.setdefault(name, {})
        try:
            # A check keeps its figures as it goes, so that those before its limit are not lost.
            for key, value in gpu_checks.CHECKS[name]():
                keep[key] = value
                _write(file, figures)
        # One check that fails must not hide the figures of the others.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc(limit=8)
            keep["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            _write(file, figures)
    return int(any("error" in found for found in figures.values()))


def _write(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(figures, indent=1, default=str))
        partial.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
