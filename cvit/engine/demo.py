"""The demo: the theorem's curve, a part of low_data on embedded data, the report of both, and what is still missing.

    python -m cvit.engine.demo

It runs the commands that it prints, in this one process: each by itself would import torch, pandas, MLflow and
matplotlib again.
"""

import os
import runpy
import shlex
import sys
from pathlib import Path

COMMANDS = (
    "sweeps/head_count.py --part expressivity --preset smoke --address local",
    "sweeps/low_data.py --seeds 3 --data-fraction 0.02 --budget-unit steps --address local",
    "analysis/make_tables.py --storage storage",
)
"""The commands below the working folder, as a person types them after `python`."""
REPORT = Path("results/report.html")


def main() -> None:
    """Runs the commands one after another; the process ends with the exit code of the first that does not succeed."""
    python = os.path.relpath(sys.executable)
    for command in COMMANDS:
        print(f"{python} {command}", flush=True)
        if exit_code := _run(command):
            sys.exit(exit_code)
    from cvit.engine.missing import missing_line

    print(f"\n{missing_line('low-data')}")
    print(f"Every run with its curves: {os.path.join(os.path.dirname(python), 'mlflow')} ui")
    print(f"Report: {REPORT.absolute()}")


def _run(command: str) -> int:
    """Runs a script as if it had been started by itself, and returns its exit code."""
    arguments, streams = sys.argv, (sys.stdout, sys.stderr)
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, (sys.stdout, sys.stderr) = arguments, streams
    return 0


if __name__ == "__main__":
    main()
