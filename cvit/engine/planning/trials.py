"""Studies and trials: a request becomes a study, and a place in its grid a trial with its stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cvit.data.datasets import DatasetInfo
from cvit.data.subsets import ImageCounts
from cvit.engine.declaration import Sweep
from cvit.engine.planning.grids import Cell, Grid
from cvit.engine.planning.request import Request
from cvit.engine.planning.scheme_settings import settings_of_schemes
from cvit.parameters import as_text, with_numbers
from cvit.stages import Stage, short_hash
from cvit.tasks import task_named
from cvit.vocabulary import FINALISTS


@dataclass(frozen=True)
class Trial:
    """One training result to obtain.

    Attributes:
        key: unique within the sweep.
        cell: its place in the grid.
        params: its flat parameters.
        images: the numbers of images that it uses; None for a task that takes no share of them.
    """

    key: str
    cell: Cell
    params: Mapping[str, Any]
    stages: tuple[Stage, ...]
    images: ImageCounts | None = None

    @property
    def steps(self) -> int:
        return self.stages[-1].last_step


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything about a sweep that its trials share. More seeds or fractions extend a study; another learning rate
    makes another study.

    Attributes:
        grid: the values of every axis in this request, seed included.
        axes: the parameters that vary from trial to trial; of a search, the parameters searched over too.
        settings: a value of every flat parameter, which holds where no axis and no init scheme sets another one.
        settings_of: the settings of single init schemes.
        info: the data set; None for a task that needs none.
        finalists: number of finalists per init scheme of a search that has a final; see `planning.search`.
        notes: lines about settings that fit the data, and about where settings of init schemes come from.
    """

    key: str
    sweep: str
    task: str
    question: str
    command: str
    grid: Grid
    axes: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)
    settings_of: Mapping[str, Mapping[str, Any]] = field(repr=False)
    info: DatasetInfo | None = field(repr=False)
    finalists: int | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The flat parameters that all trials share, and the number of finalists of a search."""
        varying = set(self.axes).union(*self.settings_of.values())
        of_search = {} if self.finalists is None else {FINALISTS: self.finalists}
        return {name: value for name, value in self.settings.items() if name not in varying} | of_search

    def trial_at(self, place: Mapping[str, Any]) -> Trial:
        """The trial at a place, which has a value of every axis.

        Raises:
            ConfigError: the combination is impossible.
        """
        task = task_named(self.task)
        cell = {axis: place[axis] for axis in self.axes}
        flat = {**self.settings, **self.settings_of.get(cell.get("init_scheme", ""), {}), **cell}
        config, stages = task.stages(flat, self.info)
        # Two cells may need the same stages, such as two rules for the width that agree at one number of heads.
        key = short_hash([self.key, stages[-1].key, with_numbers(cell, task.parameters)], digits=16)
        images = None
        if task.image_counts is not None and self.info is not None:
            images = task.image_counts(config, self.info)
        return Trial(key, cell, config.flat(), stages, images)


def fitted_request(sweep: Sweep, request: Request, info: DatasetInfo | None) -> Request:
    """The request with those axes of its preset that its user left as they are as the data set needs them."""
    if info is None:
        return request
    own = {axis: values for axis, values in request.grid.items() if axis not in request.typed_axes}
    return replace(request, grid={**request.grid, **task_named(sweep.task).fitted(own, info)})


def _fitted_settings(sweep: Sweep, request: Request, info: DatasetInfo | None) -> tuple[dict[str, Any], list[str]]:
    """The settings of a preset as the data set needs them, but for those that axes or the user replace, and a note
    about those that have changed."""
    settings = sweep.presets[request.preset].settings
    if info is None:
        return dict(settings), []
    own = {name: value for name, value in settings.items() if name not in request.given and name not in request.grid}
    fitted = task_named(sweep.task).fitted(own, info)
    changed = [f"{name} {as_text(fitted[name])}, not {as_text(own[name])}" for name in own if fitted[name] != own[name]]
    notes = [f"sequences: {', '.join(changed)} as in the preset"] if changed else []
    return {**settings, **fitted}, notes


def study_of(sweep: Sweep, request: Request, info: DatasetInfo | None) -> Study:
    """The study that a request asks for."""
    preset, task = sweep.presets[request.preset], task_named(sweep.task)
    defaults = {name: parameter.default for name, parameter in task.parameters.items()}
    of_data = task.defaults_of_data(info) if info is not None else {}
    of_preset, fit_notes = _fitted_settings(sweep, request, info)
    settings = {**defaults, **of_data, **of_preset, **request.given}
    settings_of, notes = settings_of_schemes(preset, request, settings, info)
    finalists = preset.search.finalists if preset.search and preset.search.num_finals else None
    axes = (*request.grid, *(preset.search.space if preset.search else ()), "seed")
    # The data set's name is not part of the identity: the same files under another name are the same study. Neutral
    # values are left out too, so that a study stays the same when the configuration gains a parameter.
    identity = {
        name: value
        for name, value in settings.items()
        if name not in axes and name != "dataset" and value != task.parameters[name].neutral
    }
    hashed = {
        "sweep": sweep.name,
        "shared": with_numbers(identity, task.parameters),
        "own": {scheme: with_numbers(special, task.parameters) for scheme, special in settings_of.items()},
        "axes": sorted(axes),
    } | ({} if preset.search is None or finalists is None else {FINALISTS: [finalists, preset.search.finalist_seeds]})
    return Study(
        key=short_hash(hashed, digits=16),
        sweep=sweep.name,
        task=sweep.task,
        question=sweep.question,
        command=request.command,
        grid={**request.grid, "seed": tuple(range(request.seeds))},
        axes=axes,
        settings=settings,
        settings_of=settings_of,
        info=info,
        finalists=finalists,
        notes=(*fit_notes, *notes),
    )
