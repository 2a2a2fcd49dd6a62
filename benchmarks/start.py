"""How long does a sweep take to start and to end?

python benchmarks/start.py
python benchmarks/start.py --repeats 5 --json start.json
python benchmarks/start.py --checkout ../before --repeats 5     # against another version

Each arm is `python sweeps/low_data.py --preset smoke` with an empty storage and an empty MLflow store:

ray     on a Ray of its own, as by default
local   without Ray (`--address local`)

With `--checkout`, the same two arms run in another checkout in turn (its `.venv` is not used), so that a busy machine
affects both alike. The prepared MLflow store is made before (`cvit/engine/tracking/prepared_store.py`), as `make` does.

The times are seconds after the command: the first line of the plan, the first training step (the closing line's
start-up), the exit; `end` is the time between the last result in the journal and the exit. Processor time is that of
the whole tree of processes.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
from cyclopts import Parameter

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common
from benchmarks.arms.grid import SCRIPT
from benchmarks.processes import QUIET
from cvit.engine.tracking.prepared_store import prepared_store
from cvit.parameters import ConfigError
from cvit.storage import decode_records
from cvit.vocabulary import JOURNAL_FOLDER

ARMS: Mapping[str, tuple[str, ...]] = {"ray": (), "local": ("--address", "local")}
GRID = ("--preset", "smoke")
LOOK_INTERVAL_S = 0.05

app = common.new_app()


@dataclass(frozen=True)
class Turn:
    """The figures of one sweep, in seconds."""

    plan: float
    first_step: float
    end: float
    total: float
    cpu: float


@app.default
def start(
    *,
    repeats: common.Repeats = 3,
    checkout: Annotated[Path | None, Parameter(help="Another checkout, whose sweeps take turns with these.")] = None,
    json: common.Json = None,
) -> None:
    """Seconds until the plan, the first step and the exit of a sweep, and those of the processor."""
    common.check(json, repeats=repeats)
    if checkout is not None and not (checkout / SCRIPT).is_file():
        raise ConfigError(f"checkout {str(checkout)!r}: there is no {SCRIPT}")
    before = common.machine()
    prepared_store()
    places = {"": common.ROOT} | ({"before: ": checkout.resolve()} if checkout is not None else {})
    arms = {
        f"{version}{arm}": partial(_turn, place, options)
        for arm, options in ARMS.items()
        for version, place in places.items()
    }
    turns = common.interleaved(arms, repeats)
    figures = {
        arm: {name: common.figure([asdict(turn)[name] for turn in of_arm]) for name in asdict(of_arm[0])}
        for arm, of_arm in turns.items()
    }
    rows = [[arm, *(common.with_spread(of_arm[name]) for name in of_arm)] for arm, of_arm in figures.items()]
    columns = ["", "plan", "first step", "end", "total", "CPU s"]
    common.show(f"Start and end of low_data --preset smoke, s; median of n = {repeats}", columns, rows)
    common.write_json(json, "start", before, {"n": repeats, "arms": figures})


def _turn(checkout: Path, options: tuple[str, ...]) -> Turn:
    """Runs a sweep in a working folder of its own."""
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = {**os.environ, **QUIET, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
        cpu_seconds: dict[tuple[int, float], float] = {}
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, str(checkout / SCRIPT), *GRID, *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process:
            watch = threading.Thread(target=_watch, args=(process, cpu_seconds))
            watch.start()
            assert process.stdout is not None
            plan_s = 0.0
            lines = []
            for line in process.stdout:
                plan_s = plan_s or time.monotonic() - started
                lines.append(line)
        total_s, ended_at = time.monotonic() - started, time.time()
        watch.join()
        if process.returncode != 0:
            raise RuntimeError(f"the sweep in {checkout} failed: {lines[-1] if lines else 'no output'}")
        start_up = re.search(r"start-up ([\d.]+) s", "".join(lines))
        if start_up is None:
            raise RuntimeError(f"the sweep in {checkout} has no start-up in its closing line")
        segments = (folder / "storage" / JOURNAL_FOLDER).rglob("*.jsonl")
        records = [record for path in segments for record in decode_records(path.read_bytes())]
        last_result_at = max(record["time_ms"] for record in records if "time_ms" in record) / 1000
        # The closing line counts from the moment that Python has started.
        first_step_s = float(start_up[1])
        return Turn(plan_s, first_step_s, ended_at - last_result_at, total_s, sum(cpu_seconds.values()))


def _watch(process: "subprocess.Popen[str]", cpu_seconds: dict[tuple[int, float], float]) -> None:
    """Notes the processor time of every process of a tree until its root ends."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for each in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = each.cpu_times()
                    cpu_seconds[each.pid, each.create_time()] = times.user + times.system
        time.sleep(LOOK_INTERVAL_S)


if __name__ == "__main__":
    common.run_app(app)
