"""Studies and trials: a request becomes a study, and a place in its grid a trial with its stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cvit.config import with_numbers
from cvit.data.datasets import DatasetInfo
from cvit.stages import Stage, short_hash
from cvit.tasks import task_named
from sweeps.engine.declaration import Sweep
from sweeps.engine.planning.grids import Cell, Grid
from sweeps.engine.planning.request import Request


@dataclass(frozen=True)
class Study:
    """Everything about a sweep that its trials share. More seeds or fractions extend a study; another learning rate
    makes another study.

    Attributes:
        params: the flat parameters that all trials share.
        grid: the values of every axis in this request, seed included.
    """

    key: str
    sweep: str
    task: str
    question: str
    command: str
    params: Mapping[str, Any]
    grid: Grid


@dataclass(frozen=True)
class Trial:
    """One training result to obtain.

    Attributes:
        key: unique within the sweep.
        cell: its place in the grid.
        params: its flat parameters.
    """

    key: str
    cell: Cell
    params: Mapping[str, Any]
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        return self.stages[-1].last_step


def study_of(
    sweep: Sweep, request: Request, info: DatasetInfo | None
) -> tuple[Study, Callable[[Mapping[str, Any]], Trial]]:
    """The study that a request asks for, and the function that makes its trials. The function takes a value for every
    axis and raises ConfigError for an impossible combination."""
    preset = sweep.presets[request.preset]
    task = task_named(sweep.task)
    parameters = task.parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    shared = {**defaults, **(task.defaults_of_data(info) if info is not None else {}), **preset.settings}
    settings_of = {
        scheme: {name: value for name, value in settings.items() if name not in request.given}
        for scheme, settings in preset.scheme_settings.items()
    }
    shared |= request.given
    grid = {**request.grid, "seed": tuple(range(request.seeds))}
    axes = (*request.grid, *(preset.search.space if preset.search else ()), "seed")
    # The data set's name is not part of the identity: the same files under another name are the same study. Neutral
    # values are left out too, so that a study stays the same when the configuration gains a parameter.
    identity = {
        name: value
        for name, value in shared.items()
        if name not in axes and name != "dataset" and value != parameters[name].neutral
    }
    varying = set(axes).union(*settings_of.values())
    constant = {name: value for name, value in shared.items() if name not in varying}
    hashed = {
        "sweep": sweep.name,
        "shared": with_numbers(identity, parameters),
        "own": {scheme: with_numbers(settings, parameters) for scheme, settings in settings_of.items()},
        "axes": sorted(axes),
    }
    study_key = short_hash(hashed, digits=16)

    def make_trial(values: Mapping[str, Any]) -> Trial:
        cell = {axis: values[axis] for axis in axes}
        flat = {**shared, **settings_of.get(cell.get("init_scheme", ""), {}), **cell}
        config, stages = task.stages(flat, info)
        # Two cells may need the same stages, such as two rules for the width that agree at one number of heads.
        trial_key = short_hash([study_key, stages[-1].key, with_numbers(cell, parameters)], digits=16)
        return Trial(trial_key, cell, config.flat(), stages)

    study = Study(study_key, sweep.name, sweep.task, sweep.question, request.command, constant, grid)
    return study, make_trial
