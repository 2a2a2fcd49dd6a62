"""The tasks: kinds of trials. A task is a file in this folder and its name in `TASK_NAMES`.

The file holds `TASK`, which tells planning, execution, tracking and analysis everything they need to know about a task.
Importing the file must not import torch: the command line and the analysis read the parameters of every task.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from cvit.cost import UNKNOWN_STEP_S
from cvit.parameters import ConfigError, Parameter
from cvit.results import WEIGHTS
from cvit.stages import Stage

if TYPE_CHECKING:
    import torch

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.data.subsets import ImageCounts
    from cvit.results import Reports
    from cvit.storage import Storage

TASK_NAMES = ("training", "expressivity", "depth")
"""The modules of this package that hold a `TASK`."""

StageType = TypeVar("StageType", bound=Stage)


class Config(Protocol):
    """The configuration of a trial, whatever its task."""

    def flat(self) -> dict[str, Any]:
        """Every parameter of the trial, by name."""
        ...


def _no_defaults(info: "DatasetInfo") -> dict[str, Any]:
    return {}


def _as_they_are(settings: Mapping[str, Any], info: "DatasetInfo") -> dict[str, Any]:
    return dict(settings)


def _of_unknown_steps(stage: Stage, images: "ImageCounts | None", device: str) -> float:
    return UNKNOWN_STEP_S * stage.steps


def _weights(stage: Stage) -> tuple[str, ...]:
    return (WEIGHTS,)


def _no_seconds(seconds: float, device: str) -> float:
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Task(Generic[StageType]):
    """A kind of trial: its parameters, its stages, and how they are trained and timed.

    Attributes:
        name: the name of its module.
        parameters: every flat parameter, by name; each is an option of the command line.
        needs_data: True if its trials are trained on a data set.
        metric: the metric that answers the question; in 0..1 if it is an accuracy.
        selection_metric: the metric by which searches compare settings, the larger the better; None if the task has no
            searches.
        curves: the metrics that are shown as curves over the steps.
        compared_by: the parameter whose values are compared with each other.
        stages: (flat parameters, description of the data set or None) → the configuration and its stages, parents
            first. Raises ConfigError for invalid values.
        train: (stages of one shape, data set or None, storage, device, whether to checkpoint at every evaluation) →
            reports, as they come. The last report of a stage has its result, which the storage then has already.
        step_flops: stage → floating-point operations of one optimiser step.
        learning_rate_sum: stage → the sum of the learning rates of its steps; None for a task without such stages.
        expected_seconds: (stage, numbers of images or None, device) → seconds of one worker that the stage is expected
            to take, evaluation included, found without torch before anything is measured.
        compile_seconds: (seconds that a worker trains steps of one kind, device) → seconds for which it compiles them.
        step_seconds: (stage, sizes of packs, device) → seconds of an optimiser step of a pack of each size.
        starts_from: stage → the parts of its parent that it starts from: weights, or weights and moments.
        peak_bytes: (stage, size of a pack, CUDA device) → memory of the pack; None if stages are never packed.
        defaults_of_data: description of a data set → the parameters that it sets.
        fitted: (parameters or values of axes that a preset sets and the user did not, description of a data set) → the
            same as this data set needs them; presets are written for images.
        image_counts: (configuration, description of the data set) → the numbers of images that a trial uses; None for a
            task whose trials do not take a share of the images.
        trained_model: (stage, storage) → its trained model, and images as it takes them; None if the storage does not
            have it.
    """

    name: str
    parameters: Mapping[str, Parameter]
    needs_data: bool
    metric: str
    selection_metric: str | None
    curves: tuple[str, ...]
    compared_by: str
    stages: "Callable[[Mapping[str, Any], DatasetInfo | None], tuple[Config, tuple[StageType, ...]]]"
    train: "Callable[[Sequence[StageType], Dataset | None, Storage, torch.device, bool], Iterator[Reports]]"
    step_flops: Callable[[StageType], float]
    step_seconds: "Callable[[StageType, Sequence[int], torch.device], list[float]]"
    expected_seconds: "Callable[[StageType, ImageCounts | None, str], float]" = _of_unknown_steps
    compile_seconds: Callable[[float, str], float] = _no_seconds
    learning_rate_sum: Callable[[StageType], float] | None = None
    starts_from: Callable[[StageType], tuple[str, ...]] = _weights
    peak_bytes: "Callable[[StageType, int, torch.device], int] | None" = None
    defaults_of_data: "Callable[[DatasetInfo], dict[str, Any]]" = _no_defaults
    fitted: "Callable[[Mapping[str, Any], DatasetInfo], dict[str, Any]]" = _as_they_are
    image_counts: "Callable[[Any, DatasetInfo], ImageCounts] | None" = None
    trained_model: "Callable[[StageType, Storage], tuple[torch.nn.Module, torch.Tensor] | None] | None" = None


@cache
def task_named(name: str) -> Task[Any]:
    """The task of the given name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASK_NAMES:
        raise ConfigError(f"task {name!r} is not valid: one of {', '.join(TASK_NAMES)}")
    return importlib.import_module(f"cvit.tasks.{name}").TASK


def parameters_of_task(name: str) -> Mapping[str, Parameter]:
    """The parameters of a task, by name; empty for a task that this version does not know."""
    return task_named(name).parameters if name in TASK_NAMES else {}
