"""Measures what a driver can bear: thousands of trials on many simulated workers, through the real plan, searcher,
journal, tracker and display. The workers only wait, so what they do not wait for their stages they wait for the driver.

python benchmarks/scale.py --trials 10000 --workers 64
python benchmarks/scale.py --trials 10000 --workers 64 --stage-seconds 20
python benchmarks/scale.py --driver-only --trials 1000 10000 100000 --no-tracking
python benchmarks/scale.py --driver-only --trials 2000 --rate 50

With `--driver-only` there is neither Ray nor a worker: results come as fast as the driver takes them, or `--rate` of
them a second, so that only the processor time of the driver's process and of the tracker's is measured.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # workers import benchmarks.arms.scale_worker
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cyclopts import Parameter

from benchmarks import common
from cvit.engine import environment
from cvit.parameters import ConfigError

if TYPE_CHECKING:
    from benchmarks.arms.scale_without_ray import Driven

app = common.new_app()


@app.default
def scale(
    *,
    trials: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, help="Trials, in threes; several numbers with --driver-only.")
    ] = (10_000,),
    workers: Annotated[int, Parameter(help="Simulated workers.")] = 64,
    stage_seconds: Annotated[float, Parameter(help="How long a stage takes; it uses no processor.")] = 5.0,
    tracking: Annotated[bool, Parameter(help="Copy to MLflow, in an SQLite store.")] = True,
    driver_only: Annotated[bool, Parameter(help="Without Ray: the driver's own processor time.", negative="")] = False,
    rate: Annotated[float, Parameter(help="Stages a second with --driver-only; 0: as many as the driver takes.")] = 0.0,
    json: common.Json = None,
) -> None:
    """Runs the simulation and prints what it took."""
    common.check(json, trials=min(trials, default=0) // 3, workers=workers)
    if driver_only:
        return _drive_each(trials, workers, rate, tracking, json)
    if len(trials) != 1:
        raise ConfigError("trials: give one number, or --driver-only")
    before = common.machine()
    json = json.absolute() if json is not None else None
    environment.prepare()
    from benchmarks.arms.scale_driver import PART, simulate  # imports Ray, which reads its environment then

    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cvit-scale-") as folder:
        os.chdir(folder)
        measured = simulate(trials[0], workers, stage_seconds, tracking)
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


def _drive_each(trials: tuple[int, ...], workers: int, rate: float, tracking: bool, json: Path | None) -> None:
    """Measures the driver alone with each number of trials, each in a fresh process."""
    before = common.machine()
    driven = [_in_folder_of_its_own(count, workers, rate, tracking) for count in trials]
    rows = {
        "stages/s": [each.stages / each.seconds for each in driven],
        **{
            f"{part}, ms a trial": [1000 * each.cpu_s[part] / each.trials for each in driven]
            for part in driven[0].cpu_s
        },
        "while trials ran: first tenth, ms a stage": [each.parts_ms[0] for each in driven],
        "last tenth, ms a stage": [each.parts_ms[-1] for each in driven],
        "tracker's process, ms a stage": [1000 * each.tracker_cpu_s / each.stages for each in driven],
        "from the last result to a complete store, s": [each.drain_s for each in driven],
        "memory beside that of the imports, MB": [
            max(each.memory_mb.values()) - each.memory_mb["imports"] for each in driven
        ],
        "journal, MB": [each.journal_mb for each in driven],
        "MLflow store, MB": [each.store_mb for each in driven],
    }
    common.show(
        "The driver alone, processor time",
        ["", *(f"{each.trials:,} trials" for each in driven)],
        [[name, *(f"{value:,.2f}" for value in values)] for name, values in rows.items()],
    )
    common.write_json(json, "scale", before, {"n": 1, "rate": rate, "driven": [asdict(each) for each in driven]})


def _in_folder_of_its_own(count: int, workers: int, rate: float, tracking: bool) -> "Driven":
    with (
        tempfile.TemporaryDirectory(prefix="cvit-scale-") as folder,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.chdir, (folder,)) as pool,
    ):
        return pool.submit(_drive, count, workers, rate, tracking).result()


def _drive(count: int, workers: int, rate: float, tracking: bool) -> "Driven":
    environment.prepare()
    from benchmarks.arms.scale_without_ray import drive

    return drive(count, workers, rate, tracking)


if __name__ == "__main__":
    common.run_app(app)
