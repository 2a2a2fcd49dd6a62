"""From a request to trials, from trials to stages, from stages to what is left to do."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from cvit.config import PARAMETERS_OF, ExpressivityConfig, TrialConfig
from cvit.data.datasets import DatasetInfo
from cvit.data.subsets import subset_size
from cvit.stages import AnyStage, FitStage, short_hash, stages_of
from cvit.storage import Storage, StorageError
from cvit.training.results import StageResult, load_result, read_weights
from sweeps.engine.cli import Request
from sweeps.engine.declaration import Sweep

Cells = Mapping[str, tuple[Any, ...]]
"""A grid: the values of every axis, the seed among them."""

TOKENS_PER_SIDE = 8
LEAST_PATCH_SIZE = 2
"""Where no patch size is given, images are cut into about 8 × 8 patches of at least 2 × 2 pixels."""


@dataclass(frozen=True)
class Study:
    """Everything about a sweep that its trials share. Adding seeds or fractions extends a study; another learning rate
    makes another one.

    Attributes:
        params: the flat parameters that do not vary.
        cells: the grid of this request.
    """

    key: str
    sweep: str
    task: str
    question: str
    command: str
    params: Mapping[str, Any]
    cells: Cells


@dataclass(frozen=True)
class Trial:
    """One result to be had: its key (unique within the sweep), place in the grid, configuration and stages."""

    key: str
    cell: Mapping[str, Any]
    config: TrialConfig | ExpressivityConfig
    stages: tuple[AnyStage, ...]

    @property
    def steps(self) -> int:
        return self.stages[-1].last_step


@dataclass(frozen=True)
class Plan:
    """The stages that a sweep needs, parents before children, and the results that there already are."""

    study: Study
    trials: tuple[Trial, ...]
    stages: Mapping[str, AnyStage]
    results: dict[str, StageResult] = field(default_factory=dict)

    @classmethod
    def make(cls, sweep: Sweep, request: Request, info: DatasetInfo | None, storage: Storage) -> Self:
        """
        Args:
            info: the data set, for a sweep that trains on one.

        Raises:
            ConfigError: a combination of values cannot be trained.
            StorageError: the storage cannot be read.
        """
        study, trials = _study_and_trials(sweep, request, info)
        stages = {stage.key: stage for trial in trials for stage in trial.stages}
        try:
            return cls(study, trials, stages, _usable_results(storage, stages))
        except OSError as error:
            raise StorageError(f"storage {storage.url!r} cannot be read: {' '.join(str(error).split())}") from error

    @property
    def todo(self) -> list[AnyStage]:
        """Stages to train: those that unfinished trials need. A child of a diverged stage is not trained."""
        needed = {
            stage.key: stage
            for trial in self.trials
            if self.status(trial) is None
            for stage in trial.stages
            if stage.key not in self.results
        }
        return list(needed.values())

    def status(self, trial: Trial) -> str | None:
        """The status of a finished trial: its last stage's, or that of a stage that diverged before; else None."""
        for stage in trial.stages:
            result = self.results.get(stage.key)
            if result is None:
                return None
            if result.diverged_step is not None:
                return result.status
        return self.results[trial.stages[-1].key].status

    @cached_property
    def trials_of(self) -> Mapping[str, list[Trial]]:
        """The trials that each stage belongs to."""
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            for stage in trial.stages:
                found.setdefault(stage.key, []).append(trial)
        return found

    @property
    def num_shared(self) -> int:
        """Stages saved because several trials share them."""
        return sum(len(trial.stages) for trial in self.trials) - len(self.stages)


def _usable_results(storage: Storage, stages: Mapping[str, AnyStage]) -> dict[str, StageResult]:
    """Results of finished stages. One whose trained weights are missing or altered does not count where a stage that
    is still to be trained starts from them."""
    found = {key: result for key in stages if (result := load_result(storage, key)) is not None}
    starting_points = {s.parent.key for s in stages.values() if s.parent is not None and s.key not in found}
    for key in starting_points & found.keys():
        if found[key].diverged_step is None and read_weights(storage, key) is None:
            del found[key]
    return found


def _study_and_trials(sweep: Sweep, request: Request, info: DatasetInfo | None) -> tuple[Study, tuple[Trial, ...]]:
    preset = sweep.presets[request.preset]
    defaults = {name: p.default for name, p in PARAMETERS_OF[sweep.task].items()}
    shared = {**defaults, **(_chosen_by_the_data(info) if info is not None else {}), **preset.settings}
    own = {
        scheme: {name: value for name, value in settings.items() if name not in request.given}
        for scheme, settings in preset.scheme_settings.items()
    }
    shared |= request.given
    cells = {**request.grid, "seed": tuple(range(request.seeds))}
    # The data set's name is not part of its identity: the same files under another name are the same study. Nor are
    # defaults: a study stays the same when the configuration gains a parameter.
    identity = {
        name: value
        for name, value in shared.items()
        if name not in cells and name != "dataset" and value != defaults[name]
    }
    varying = set(cells).union(*own.values())
    constant = {name: value for name, value in shared.items() if name not in varying}
    study_key = short_hash({"sweep": sweep.name, "shared": identity, "own": own, "axes": sorted(cells)}, digits=16)
    study = Study(study_key, sweep.name, sweep.task, sweep.question, request.command, constant, cells)

    def trial(cell: Mapping[str, Any]) -> Trial:
        flat = {**shared, **own.get(cell.get("init_scheme", ""), {}), **cell}
        config, stages = _stages(flat, info)
        # Two cells may need the very same stages, such as two rules for the width that agree at one number of heads.
        return Trial(short_hash([study_key, stages[-1].key, cell], digits=16), cell, config, stages)

    seed_major = {"seed": cells["seed"], **request.grid}
    combinations = itertools.product(*seed_major.values())
    return study, tuple(trial(dict(zip(seed_major, values, strict=True))) for values in combinations)


def _chosen_by_the_data(info: DatasetInfo) -> dict[str, Any]:
    return {
        "dataset": info.name,
        "data_fingerprint": info.fingerprint,
        "image_size": info.image_size,
        "in_channels": info.in_channels,
        "num_classes": info.num_classes,
        "augmentation": info.augmentation,
        "patch_size": _default_patch_size(info.image_size),
    }


def _stages(
    flat: Mapping[str, Any], info: DatasetInfo | None
) -> tuple[TrialConfig | ExpressivityConfig, tuple[AnyStage, ...]]:
    if info is None:
        fit = ExpressivityConfig.from_flat(flat)
        return fit, (FitStage(fit),)
    config = TrialConfig.from_flat(flat)
    num_images = subset_size(info.train_labels, config.data.data_fraction, config.data.validation_fraction)
    return config, stages_of(config, num_images)


def _default_patch_size(image_size: int) -> int:
    divisors = [size for size in range(LEAST_PATCH_SIZE, image_size + 1) if image_size % size == 0]
    return min(divisors, key=lambda size: abs(image_size / size - TOKENS_PER_SIDE))


Pack = tuple[AnyStage, ...]
"""Stages that one worker trains together."""

MAX_PACK = 1
"""Stages in a pack at most. Members of a pack are trained one after another, so a larger one gains nothing yet."""


def pack(ready: list[AnyStage], max_pack: int, shape: Callable[[AnyStage], Any]) -> list[Pack]:
    """Groups stages of equal shape into packs of at most `max_pack`, in the order given."""
    by_shape: dict[Any, list[AnyStage]] = {}
    for stage in ready:
        by_shape.setdefault(shape(stage), []).append(stage)
    return [
        tuple(group[start : start + max_pack])
        for group in by_shape.values()
        for start in range(0, len(group), max_pack)
    ]
