"""Measures what a driver can bear: thousands of trials on many simulated workers, through the real plan, searcher,
journal, tracker and display. The workers only wait, so what they do not wait for their stages they wait for the driver.

python benchmarks/scale.py --trials 10000 --workers 64
python benchmarks/scale.py --trials 10000 --workers 64 --stage-seconds 20
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # workers import benchmarks.arms.scale_worker
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cyclopts import Parameter

from benchmarks import common
from cvit.engine import environment

app = common.new_app()


@app.default
def scale(
    *,
    trials: Annotated[int, Parameter(help="Trials, about: a multiple of three schemes.")] = 10_000,
    workers: Annotated[int, Parameter(help="Simulated workers.")] = 64,
    stage_seconds: Annotated[float, Parameter(help="How long a stage takes; it uses no processor.")] = 5.0,
    tracking: Annotated[bool, Parameter(help="Copy to MLflow, in an SQLite store.")] = True,
    json: common.Json = None,
) -> None:
    """Runs the simulation and prints what it took."""
    common.check(json, trials=trials, workers=workers)
    before = common.machine()
    json = json.absolute() if json is not None else None
    environment.prepare()
    from benchmarks.arms.scale_driver import PART, simulate  # imports Ray, which reads its environment then

    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cvit-scale-") as folder:
        os.chdir(folder)
        measured = simulate(trials, workers, stage_seconds, tracking)
        os.chdir("/")
    for name, seconds, memory_mb in measured.laps:
        print(f"{name:<44} {seconds:8.1f} s   peak memory {memory_mb:6.0f} MB")
    sizes = f"journal {measured.journal_mb:.0f} MB, MLflow store {measured.store_mb:.0f} MB"
    print(f"in all {time.monotonic() - started_at:.0f} s; {sizes}")
    stages_per_second, could = measured.stages / measured.seconds, workers / stage_seconds
    print(f"while trials ran: {stages_per_second:.1f} stages/s; the workers alone could do {could:.1f}")
    print(f"stages/s, {PART} by {PART}: {' '.join(f'{rate:.1f}' for rate in measured.rates)}")
    timing, clock = measured.timing, measured.clock
    print(timing.line(measured.trials))
    ms_a_stage = 1000 * measured.cpu_seconds / measured.stages
    print(f"driver's CPU {measured.cpu_seconds:.0f} s, {ms_a_stage:.1f} ms a stage, of which")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:<26} {seconds:8.2f} s   {clock.calls[part]:8,} calls")
    figures = {
        "trials": measured.trials,
        "stages": measured.stages,
        "workers": workers,
        "stage_seconds": stage_seconds,
        "seconds": measured.seconds,
        "stages_per_second": stages_per_second,
        "stages_per_second_by_part": measured.rates,
        "share_of_workers_time_in_training": timing.busy_s / (timing.busy_s + timing.waited_s),
        "driver_cpu_seconds": measured.cpu_seconds,
        "driver_cpu_seconds_by_part": dict(clock.seconds),
        "driver_peak_memory_bytes": int(max(memory_mb for _, _, memory_mb in measured.laps) * 2**20),
    }
    common.write_json(json, "scale", before, {"n": 1, **figures})


if __name__ == "__main__":
    common.run_app(app)
