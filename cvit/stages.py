"""Stages: the phases of a trial, each trained, checkpointed, cached and reused on its own.

A stage's key is a hash of everything that determines its outcome, its parent's key included. Two trials whose
convolution phases have the same key share that stage. A key leaves out a parameter at its neutral value, so that stored
stages are found again when the configuration gains a parameter. The parameters of the first versions are always hashed,
as those versions did, so that no key has ever changed.

A stage belongs to a task (`cvit.tasks`). `Stage` is the protocol that the engine knows; `TrainingStage` is a phase of a
training.
"""

import bisect
import hashlib
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

from cvit.config import PARAMETERS, ConvolutionForm, ModelConfig, TrialConfig
from cvit.cost import step_flops
from cvit.init.schemes import SCHEMES
from cvit.parameters import ConfigError, Parameter
from cvit.vocabulary import ATTENTION, CONVOLUTION, EXPRESSIVITY, REFERENCE, TRAINING

SCIENCE_VERSION = 1
"""The version of the science, raised whenever the same configuration comes to train differently, so that old stages are
not reused."""

_KEY_DIGITS = 24
_ALWAYS_HASHED: Mapping[str, frozenset[str]] = {
    TRAINING: frozenset(
        {
            *("data_fingerprint", "data_fraction", "validation_fraction", "max_validation_images", "augmentation"),
            *("image_size", "in_channels", "num_classes", "patch_size", "embed_dim", "depth", "num_heads", "head_dim"),
            *("mlp_ratio", "position_encoding", "init_scheme", "attention_sharpness", "convolution_form"),
            *("batch_size", "learning_rate", "weight_decay", "warmup_fraction", "label_smoothing"),
            *("gradient_clip_norm", "precision", "seed"),
        }
    ),
    EXPRESSIVITY: frozenset(
        {
            *("kernel_size", "patch_size", "num_heads", "fit_image_size", "fit_channels", "fit_steps"),
            *("fit_learning_rate", "seed"),
        }
    ),
}
"""The parameters that the keys of a task's first stored stages contain, whatever their value. The table never grows:
every other parameter, and every parameter of another task, is left out at its neutral value."""

# The stage itself has the number of steps and its schedule, the width of each head includes the width of all heads, and
# the sharpness includes the leak. The name of a data set does not change its images.
_NEVER_DECISIVE = {
    "dataset",
    "inner_dim",
    "attention_leak",
    "epochs",
    "min_steps",
    "budget_unit",
    "convolution_fraction",
    "convolution_learning_rate",
    "convolution_warmup_fraction",
    "schedule",
    "evaluations",
}
_IGNORED_BY_CONVOLUTION_PHASE = {
    *("init_scheme", "attention_sharpness", "transferred_learning_rate_factor", "optimizer_state", "attention_blocks"),
    *("window_size", "window_shift"),
}


class Stage(Protocol):
    """A stage of any task, as planning and execution see it."""

    task: ClassVar[str]
    """Name of the task that trains it, a module of `cvit.tasks`."""

    @property
    def key(self) -> str:
        """24 hexadecimal digits: a hash of everything that determines the outcome."""
        ...

    @property
    def phase(self) -> str:
        """Name of the phase of its trial."""
        ...

    @property
    def parent(self) -> "Stage | None":
        """The stage whose weights this one starts from."""
        ...

    @property
    def steps(self) -> int:
        """Optimiser steps of this stage."""
        ...

    @property
    def last_step(self) -> int:
        """Optimiser steps of the trial up to this stage's end."""
        ...

    @property
    def report_interval(self) -> int:
        """The smallest number of steps from one report to the next."""
        ...

    @property
    def shape(self) -> Hashable:
        """A value that is equal for stages that one worker may train together, as a pack."""
        ...

    @property
    def cost_kind(self) -> Hashable:
        """A value that is equal for stages whose optimiser steps cost the same time and memory."""
        ...


@dataclass(frozen=True)
class TrainingStage:
    """One phase of a trial.

    Attributes:
        phase: `convolution`, `attention` or `reference`.
        trial: the configuration of the trial, or of one of the trials, that the stage belongs to.
        steps: optimiser steps of this stage.
        first_step: optimiser steps of the trial before this stage.
        evaluation_interval: steps between evaluations, counted over the whole trial.
        parent: the stage whose weights this one starts from.
        schedule_steps: the steps of the schedule that this stage is a part of; None if it has one of its own.
    """

    task: ClassVar[str] = TRAINING

    phase: str
    trial: TrialConfig
    steps: int
    first_step: int
    evaluation_interval: int
    parent: "TrainingStage | None" = None
    schedule_steps: int | None = None

    @property
    def key(self) -> str:
        """The stage key, 24 hexadecimal digits."""
        return self._key

    @cached_property
    def _key(self) -> str:
        scheme, model = SCHEMES[self.trial.init.init_scheme], self.trial.model
        ignored = _IGNORED_BY_CONVOLUTION_PHASE if self.phase == CONVOLUTION else scheme.ignored(model.is_hybrid)
        flat = self.trial.flat() | {"attention_sharpness": self.trial.attention_sharpness}
        flat |= {} if model.is_hybrid else {"attention_blocks": None}
        flat["window_size"], flat["window_shift"] = model.windows
        if self.phase != ATTENTION and not model.has_position_embedding:
            ignored = ignored | {"position_learning_rate_factor"}
        if not self.decays_towards_start:
            ignored = ignored | {"decay_towards"}
        decisive = {name: value for name, value in flat.items() if name not in _NEVER_DECISIVE and name not in ignored}
        decisive |= {"learning_rate": self.learning_rate, "warmup_fraction": self.warmup_fraction}
        is_twin = self.phase == CONVOLUTION or scheme.is_twin
        if is_twin and self.trial.init.convolution_form == "full":
            # A full convolution has no heads, only a neighbourhood: trials with fewer heads than offsets share it.
            decisive["num_heads"] = max(3**self.trial.model.dimensions, decisive["num_heads"])
            del decisive["head_dim"]
        if is_twin and self.trial.init.convolution_form == "pixel":
            del decisive["num_heads"], decisive["head_dim"]
        schedule = {} if self.schedule_steps is None else {"schedule_steps": self.schedule_steps}
        return stage_key(
            TRAINING,
            decisive,
            PARAMETERS,
            phase=self.phase,
            steps=self.steps,
            first_step=self.first_step,
            evaluation_interval=self.evaluation_interval,
            parent=self.parent.key if self.parent else None,
            **schedule,
        )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of this stage."""
        rate = self.trial.init.convolution_learning_rate if self.phase == CONVOLUTION else None
        return self.trial.training.learning_rate if rate is None else rate

    @property
    def warmup_fraction(self) -> float:
        """Share of the schedule's steps with a linearly rising learning rate."""
        has_own = self.phase == CONVOLUTION and self.schedule_steps is None
        fraction = self.trial.init.convolution_warmup_fraction if has_own else None
        return self.trial.training.warmup_fraction if fraction is None else fraction

    @property
    def carries_moments(self) -> bool:
        """True if the optimiser goes on from its state at the end of the parent."""
        return self.parent is not None and self.trial.training.optimizer_state == "carried"

    @property
    def decays_towards_start(self) -> bool:
        """True if weight decay pulls towards the weights at the start of this stage, not towards zero."""
        training = self.trial.training
        return self.phase == ATTENTION and training.weight_decay > 0 and training.decay_towards == "start"

    @property
    def architecture(self) -> tuple[str, str, ModelConfig, str]:
        """The settings that determine the model without its weights."""
        init = self.trial.init
        kind = init.init_scheme if self.phase == REFERENCE or self.num_readings > 1 else ""
        is_hybrid = self.phase == ATTENTION and self.trial.model.is_hybrid
        form = self.convolution_form if is_hybrid or self.phase != ATTENTION else ""
        unset = {"inner_dim": None} if is_hybrid else {"inner_dim": None, "attention_blocks": None}
        size, shift = self.trial.model.windows if self.phase == ATTENTION else (None, None)
        return self.phase, kind, replace(self.trial.model, **unset, window_size=size, window_shift=shift), form

    @property
    def convolution_form(self) -> ConvolutionForm:
        """The form of the convolutions of this stage's model, if it has any: a second reading is always factorized."""
        return "factorized" if self.num_readings > 1 else self.trial.init.convolution_form

    @property
    def step_flops(self) -> int | None:
        """Floating-point operations of an optimiser step; None if they are not known."""
        return step_flops(self.architecture, self.trial.training.batch_size)

    @property
    def num_readings(self) -> int:
        """The number of models as which its steps compute the weights in turn: 1, the model itself, or 2 with its
        twin."""
        return 2 if self.phase == ATTENTION and SCHEMES[self.trial.init.init_scheme].has_two_readings else 1

    @property
    def report_interval(self) -> int:
        """Steps from one evaluation to the next."""
        return self.evaluation_interval

    @property
    def cost_kind(self) -> Hashable:
        """The architecture, the batch size and the precision."""
        return self.architecture, self.trial.training.batch_size, self.trial.training.precision

    @property
    def shape(self) -> Hashable:
        """The settings that must be equal for stages to be trained as one pack."""
        training = self.trial.training
        schedule = (self.steps, self.first_step, self.evaluation_interval)
        return self.architecture, training.batch_size, training.precision, schedule, self.trial.data.evaluation_images

    def next_evaluation(self, step: int) -> int:
        """The step of the first evaluation after `step`; both are counted within the stage."""
        interval = self.evaluation_interval
        return min(self.steps, step + interval - (self.first_step + step) % interval)

    @property
    def last_step(self) -> int:
        """Optimiser steps of the trial up to this stage's end."""
        return self.first_step + self.steps


def depends_on(init_scheme: str, parameter: str, settings: Mapping[str, Any] | None = None) -> bool:
    """True if a parameter has any influence on trials of a scheme.

    Args:
        settings: values of other parameters that all the trials share; those missing may have any value, but without
            `attention_blocks` the trials are no hybrids.
    """
    scheme, fixed = SCHEMES[init_scheme], settings or {}
    is_hybrid = (fixed.get("attention_blocks") or math.inf) < fixed.get("depth", math.inf)
    without_influence = {
        "attention_sharpness": fixed.get("attention_leak") is not None,
        "position_learning_rate_factor": scheme.is_twin and fixed.get("position_encoding") == "relative",
        "decay_towards": fixed.get("weight_decay") == 0,
        "window_shift": "window_size" in fixed and fixed["window_size"] is None,
    }
    return parameter not in scheme.ignored(is_hybrid) and not without_influence.get(parameter, False)


def stages_of(trial: TrialConfig, num_images: int) -> tuple[TrainingStage, ...]:
    """The stages of a trial on a subset of `num_images` images, in the order of training.

    Every scheme gets the same budget, a number of steps or of operations: a trial of two phases divides its steps
    between the phases.

    Raises:
        ConfigError: the budget is one of operations, and those of the model are not known.
    """
    total = trial.training.total_steps(num_images)
    if trial.training.budget_unit == "flops":
        total = _steps_of_equal_flops(trial, total)
    interval = max(1, round(total / trial.training.evaluations))
    phases = _phases(trial, total)
    joint = total if trial.training.schedule == "joint" and len(phases) > 1 else None
    stages: tuple[TrainingStage, ...] = ()
    for phase, steps in phases:
        parent = stages[-1] if stages else None
        stages += (TrainingStage(phase, trial, steps, parent.steps if parent else 0, interval, parent, joint),)
    return stages


def _phases(trial: TrialConfig, total: int) -> tuple[tuple[str, int], ...]:
    """The phases of a trial with their steps, given their sum."""
    scheme = SCHEMES[trial.init.init_scheme]
    if scheme.is_reference:
        return ((REFERENCE, total),)
    if not scheme.has_convolution_phase:
        return ((ATTENTION, total),)
    first = min(total - 1, max(1, round(total * trial.init.convolution_fraction)))
    return (CONVOLUTION, first), (ATTENTION, total - first)


def _steps_of_equal_flops(trial: TrialConfig, attention_steps: int) -> int:
    """The number of a trial's steps, at least 2, whose operations come closest to those of steps of attention alone."""
    flops = {phase: TrainingStage(phase, trial, 1, 0, 1).step_flops for phase, _ in _phases(trial, 2)}
    plain = replace(trial, init=replace(trial.init, init_scheme="random"))
    flops_of_attention = TrainingStage(ATTENTION, plain, 1, 0, 1).step_flops
    known = {phase: number for phase, number in flops.items() if number is not None}
    if flops_of_attention is None or len(known) < len(flops):
        raise ConfigError(
            f"budget_unit 'flops' is not valid with init_scheme {trial.init.init_scheme!r}, whose FLOPs are unknown"
        )
    budget = attention_steps * flops_of_attention

    def cost(total: int) -> int:
        return sum(steps * known[phase] for phase, steps in _phases(trial, total))

    candidates = range(2, 3 + budget // min(known.values()))
    enough = candidates[min(bisect.bisect_left(candidates, budget, key=cost), len(candidates) - 1)]
    return min(max(2, enough - 1), enough, key=lambda total: abs(cost(total) - budget))


def stage_key(task: str, config: Mapping[str, Any], parameters: Mapping[str, Parameter], **others: Any) -> str:
    """The key of a stage of any task: 24 hexadecimal digits.

    A parameter at its neutral value is left out, as in a study's key. So a new parameter with a neutral default changes
    no key.

    Args:
        config: the flat parameters that have an influence on the stage.
        parameters: the parameters of the task, by name.
        others: further values that determine the outcome.
    """
    always = _ALWAYS_HASHED.get(task, frozenset())
    decisive = {name: value for name, value in config.items() if name in always or value != parameters[name].neutral}
    of_task = {} if task == TRAINING else {"task": task}  # the keys of trainings are older than tasks
    return short_hash({"science_version": SCIENCE_VERSION, **of_task, **decisive, **others}, _KEY_DIGITS)


def short_hash(content: Any, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of a JSON value's canonical text."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
