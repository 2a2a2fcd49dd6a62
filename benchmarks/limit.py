"""Measures how far training is from the limit: the operations of a sweep at this machine's matrix rate.

python benchmarks/limit.py                                                              # digits, CPU
python benchmarks/limit.py --preset photographs --dataset cifar10 --data-dir ../shared/data --json limit.json

The operations are those of matrix products and convolutions, forward and backward, as the plan counts them. The matrix
rate is that of one large product, on a CPU by all cores together. A step of every kind of a preset is timed in a pack,
as `--dry-run` does it, by one worker; the time of all steps is that times their number over the number of workers. It
is the time of training alone: without start, evaluation and end, which benchmarks/throughput.py has.

Options that are not listed below are those of sweeps/low_data.py and describe the grid.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclopts import Parameter

from benchmarks import common
from benchmarks.arms.grid import planned
from cvit.engine.execution.cost import flops_of, step_seconds
from cvit.engine.execution.pack_size import pack_limits
from cvit.engine.execution.workers import planned_workers
from cvit.engine.planning.request import Request
from cvit.stages import Stage

ALL = "all"

app = common.new_app()


@app.default
def limit(
    *grid: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    preset: Annotated[tuple[str, ...], Parameter(consume_multiple=True, help="Presets of sweeps/low_data.py.")] = (
        "smoke",
        "laptop",
    ),
    repeats: common.Repeats = 3,
    json: common.Json = None,
) -> None:
    """The time of a preset's steps, and how many times the limit it is: its operations at the matrix rate.

    Options that are not listed here are those of sweeps/low_data.py and describe the grid.
    """
    common.check(json, repeats=repeats)
    plans = {name: planned([*grid, "--preset", name]) for name in preset}
    before = common.machine()
    rates = common.matrix_rates(common.chosen_device(plans[preset[0]][2].device))
    figures = {
        name: _figures(list(progress.plan.stages.values()), request, rates, repeats)
        for name, (progress, _, request) in plans.items()
    }
    rows = [_row(name, phase, one) for name, of_preset in figures.items() for phase, one in of_preset.items()]
    columns = [
        "preset",
        "phase",
        "stages",
        "steps",
        "operations",
        "steps take, s",
        *(f"limits, {precision}" for precision in rates),
    ]
    title = f"Training without start, evaluation and end; median of n = {repeats}"
    notes = [f"{name}: {common.limit_line(one[ALL]['limit'])}" for name, one in figures.items()]
    common.show(title, columns, rows, notes)
    common.write_json(json, "limit", before, {"n": repeats, "presets": figures})


def _figures(stages: Sequence[Stage], request: Request, rates: Mapping[str, float], repeats: int) -> dict[str, Any]:
    """Returns the figures of each phase of a preset's stages, and those of all."""
    workers = planned_workers(request)
    packs = pack_limits(stages, workers, request.max_pack)
    measured = [step_seconds(stages, packs, workers) for _ in range(repeats)]
    parts = {phase: [stage for stage in stages if stage.phase == phase] for phase in {stage.phase for stage in stages}}
    phases = {}
    for phase, part in {**dict(sorted(parts.items())), ALL: stages}.items():
        seconds = common.figure([of_turn.of(part) / workers.count for of_turn in measured])
        limits = common.limits(flops_of(part), rates)
        phases[phase] = {
            "stages": len(part),
            "steps": sum(stage.steps for stage in part),
            "flops": flops_of(part),
            "seconds": seconds,
            "limit": limits,
            "times_limit": {precision: seconds["median"] / one["seconds"] for precision, one in limits.items()},
        }
    return phases


def _row(preset: str, phase: str, figures: dict[str, Any]) -> list[str]:
    return [
        preset,
        phase,
        f"{figures['stages']}",
        f"{figures['steps']:,}",
        f"{figures['flops']:.3g}",
        common.with_spread(figures["seconds"]),
        *(f"{times:.1f}" for times in figures["times_limit"].values()),
    ]


if __name__ == "__main__":
    common.run_app(app)
