"""The configuration of one trial: frozen dataclasses that validate themselves, and their flat form.

Its fields are parameters, as `cvit.parameters` explains. This is the configuration of the task `training`; other tasks
have their own.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cvit.geometry import by_axis, num_relative_positions
from cvit.init.schemes import SCHEMES
from cvit.init.sharpness import sharpness_of
from cvit.parameters import (
    AUTO,
    CombinationError,
    Parameter,
    choices,
    is_indivisible,
    multiples_near,
    option,
    parameters_of,
    require,
    require_at_least_1_or_auto,
    require_choice,
    require_divisor,
    require_known,
)

PositionEncoding = Literal["relative", "relative+absolute"]
if TYPE_CHECKING:  # type checkers cannot read a Literal that is computed
    InitSchemeName = str
else:
    InitSchemeName = Literal[tuple(SCHEMES)]
ConvolutionForm = Literal["factorized", "full", "pixel"]
Augmentation = Literal["none", "shift", "crop_flip"]
AugmentationPolicy = Literal["none", "trivial_augment", "rand_augment"]
Precision = Literal["float32", "bfloat16"]
BudgetUnit = Literal["steps", "flops"]
OptimizerState = Literal["reset", "carried"]
Schedule = Literal["per_phase", "joint"]
DecayTowards = Literal["zero", "start"]


LARGEST_LEARNING_RATE = 1e30
"""The largest valid learning rate: beyond it float32 overflows inside the optimiser, before the loss could diverge."""
LARGEST_RATE_FACTOR = 1000.0
"""The largest factor of a learning rate: two of them at the largest learning rate stay within float32."""

POLICY_CHANNELS = (1, 3)
"""The numbers of channels for which the operations of an augmentation policy are defined."""
OFFSETS_OF_3X3 = 9
"""The number of offsets of a 3×3 neighbourhood, the fewest that a convolutional twin of full rank has on images."""
FLIPS_FOR = 2
"""The number of axes of the images that `crop_flip` flips."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a trial. `data_fingerprint` identifies their content, wherever they are stored."""

    dataset: str = "digits"
    data_fingerprint: str = ""
    data_fraction: float = option("Share of the training images used, in (0, 1]; stratified and nested.", 1.0)
    validation_fraction: float = option("Share of the training images held out for validation.", 0.1)
    max_validation_images: int = option("Validation images looked at, at most; a stratified share of them.", 2000)
    max_test_images: int | None = option(
        "Test images looked at, at most, a stratified share of them; auto: all.", None, unset=0
    )
    augmentation: Augmentation = option("Augmentation of training images; the data set's own by default.", "shift")
    augmentation_policy: AugmentationPolicy = option(
        "Operations on training images after the augmentation: one at random (TrivialAugment), or two (RandAugment).",
        "none",
    )
    mixup_alpha: float = option("MixUp: alpha of the Beta distribution of its shares; 0 mixes nothing.", 0.0)
    cutmix_alpha: float = option(
        "CutMix: alpha of the Beta distribution of its shares; beside MixUp, each batch gets one of the two.", 0.0
    )
    erasing_probability: float = option(
        "Share of training images in which a random rectangle is erased; of sequences, a stretch of time is masked.",
        0.0,
    )
    noise_std: float = option(
        "Noise added to training images or sequences, in standard deviations of a channel; 0 adds none.", 0.0
    )

    def __post_init__(self) -> None:
        require(0 < self.data_fraction <= 1, "data_fraction", self.data_fraction, "must lie in (0, 1]")
        require(0 < self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "must lie in (0, 1)")
        require(
            self.max_validation_images >= 1, "max_validation_images", self.max_validation_images, "must be at least 1"
        )
        require_at_least_1_or_auto("max_test_images", self.max_test_images)
        require_choice(self, "augmentation", Augmentation)
        require_choice(self, "augmentation_policy", AugmentationPolicy)
        for name in ("mixup_alpha", "cutmix_alpha", "noise_std"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), name, value, "must be at least 0 and finite")
        require(
            0 <= self.erasing_probability <= 1, "erasing_probability", self.erasing_probability, "must lie in [0, 1]"
        )

    @property
    def evaluation_images(self) -> tuple[str, float, int, int | None]:
        """The settings that determine the images for validation and testing. Seed and fraction have no influence."""
        return self.data_fingerprint, self.validation_fraction, self.max_validation_images, self.max_test_images


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture, shared by both phases. The first four fields come from the data set.

    Images have as many axes as `dimensions` says, all of `image_size` pixels. A sequence has one: `image_size` is its
    length in samples, and `patch_size` that of a patch.
    """

    image_size: int = 8
    in_channels: int = 1
    num_classes: int = 10
    dimensions: int = 2
    patch_size: int = option("Side of a patch, pixels; of sequences its length; divides the image size or length.", 4)
    embed_dim: int = option("Width of a token.", 128)
    depth: int = option("Number of transformer blocks.", 6)
    num_heads: int = option(
        "Attention heads per block; 9 express a 3x3 convolution of patches, 3 one of width 3 on sequences.", 9
    )
    head_dim: int = option("Width of a head, independent of embed_dim / num_heads.", 16)
    inner_dim: int | None = option(
        "Width of all heads together: head_dim is its share, rounded; auto leaves head_dim as it is.", None, unset=0
    )
    mlp_ratio: float = option("Hidden width of the MLP over embed_dim.", 4.0)
    position_encoding: PositionEncoding = option(
        "Relative bias alone, or beside a learned absolute embedding.", "relative"
    )
    attention_blocks: int | None = option(
        "Hybrid: only the last so many blocks become attention, those before them stay convolutions; auto: all.", None
    )
    window_size: int | None = option(
        "Attention in windows of so many patches along each axis; divides the patches of a side; auto: no windows.",
        None,
    )
    window_shift: int | None = option(
        "Patches by which windows are shifted, in every block; auto: 0 and half a window in turn, as in Swin.", None
    )

    def __post_init__(self) -> None:
        for name in (
            "image_size",
            "in_channels",
            "dimensions",
            "patch_size",
            "embed_dim",
            "depth",
            "num_heads",
            "head_dim",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.num_classes >= 2, "num_classes", self.num_classes, "must be at least 2")
        require(
            math.isfinite(self.mlp_ratio) and round(self.embed_dim * self.mlp_ratio) >= 1,
            "mlp_ratio",
            self.mlp_ratio,
            "must be finite and make the MLP's hidden width, mlp_ratio * embed_dim, at least 1",
        )
        require_divisor(
            "patch_size", self.patch_size, self.image_size, "length" if self.is_of_sequences else "image size"
        )
        most = num_relative_positions(self.grid)
        if self.num_heads > most:
            grid = by_axis(self.grid)
            others = ""
            if self.grid_size == 1 and is_indivisible(self.image_size):
                sizes = multiples_near(4, self.image_size)
                whole = (
                    f"sequences of {self.image_size} samples"
                    if self.is_of_sequences
                    else f"images of {self.image_size} pixels"
                )
                others = f": no patch divides {whole}; an image size of {sizes} would do"
            raise CombinationError(
                f"num_heads {self.num_heads} must be at most {most}, the number of offsets on a grid of {grid} patches"
                f"{others}"
            )
        require_choice(self, "position_encoding", PositionEncoding)
        require_at_least_1_or_auto("attention_blocks", self.attention_blocks)
        if self.attention_blocks is not None and self.attention_blocks > self.depth:
            raise CombinationError(
                f"attention_blocks {self.attention_blocks} must be at most {self.depth}, the number of blocks (depth)"
            )
        self._require_valid_windows()
        require_at_least_1_or_auto("inner_dim", self.inner_dim)
        if self.inner_dim is not None:
            object.__setattr__(self, "head_dim", max(1, round(self.inner_dim / self.num_heads)))

    def _require_valid_windows(self) -> None:
        size, shift = self.window_size, self.window_shift
        require_at_least_1_or_auto("window_size", size)
        require(shift is None or shift >= 0, "window_shift", shift, f"must be at least 0, or {AUTO}")
        if size is None:
            if shift:
                raise CombinationError(f"window_shift {shift} shifts windows, and there are none: give a window_size")
            return
        valid = [divisor for divisor in range(1, self.grid_size + 1) if self.grid_size % divisor == 0]
        if size not in valid:
            raise CombinationError(
                f"window_size {size} must divide {self.grid_size}, the number of patches along an axis: one of "
                f"{', '.join(map(str, valid))}"
            )
        if shift is not None and shift >= size:
            raise CombinationError(f"window_shift {shift} must be less than window_size, {size}")

    @property
    def is_of_sequences(self) -> bool:
        """True if images have one axis."""
        return self.dimensions == 1

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_attention_blocks(self) -> int:
        """The number of blocks, the last ones, that mix tokens by attention in the attention phase."""
        return self.depth if self.attention_blocks is None else self.attention_blocks

    @property
    def is_hybrid(self) -> bool:
        """True if the attention phase has convolutions too, in its first blocks."""
        return self.num_attention_blocks < self.depth

    def window_shift_of(self, block: int) -> int:
        """The patches by which the windows of a block, from 0 on, are shifted along each axis.

        By default a window that holds the whole grid is not shifted, as in Swin: it is attention without windows.
        """
        if self.window_shift is not None:
            return self.window_shift
        if self.window_size is None or self.window_size == self.grid_size or block % 2 == 0:
            return 0
        return self.window_size // 2

    @property
    def windows(self) -> tuple[int | None, int | None]:
        """`window_size` and `window_shift`, the same for all values of the two that are the same attention: without
        windows, in a single window, or where `window_shift` says what its default does."""
        if self.window_size is None:
            return None, None
        first = self.depth - self.num_attention_blocks
        shifts = {self.window_shift_of(block) for block in range(first, self.depth)}
        if self.window_size == self.grid_size and shifts == {0}:
            return None, None
        return self.window_size, shifts.pop() if len(shifts) == 1 else None

    @property
    def num_visible(self) -> int:
        """The number of patches that a query sees, itself included: those of a window, or all."""
        size = self.window_size
        return math.prod(self.grid) if size is None else size ** len(self.grid)

    @property
    def has_position_embedding(self) -> bool:
        """True if tokens start with a learned embedding of their place."""
        return self.position_encoding == "relative+absolute"

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis of the image."""
        return (self.image_size,) * self.dimensions

    @property
    def patch(self) -> tuple[int, ...]:
        """Pixels along each axis of a patch."""
        return (self.patch_size,) * self.dimensions

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis of the image."""
        return tuple(pixels // side for pixels, side in zip(self.shape, self.patch, strict=True))


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The initialisation of the transformer. Parameters that the scheme does not use have no influence on a trial."""

    init_scheme: InitSchemeName = option(
        "How the transformer's weights start; convolution and resnet are other models, for reference.", "random"
    )
    attention_sharpness: float = option(
        "Logit gap between a head's target patch and the zero slot at the start (schemes with a convolution; impulse).",
        4.0,
    )
    attention_leak: float | None = option(
        "Attention off a head's target at the start, instead of attention_sharpness, which it overrides; auto: none.",
        None,
    )
    convolution_form: ConvolutionForm = option(
        "Convolutional twin: factorized like the heads; full rank (carried over by SVD); or a convolution of pixels.",
        "factorized",
    )
    convolution_fraction: float = option("Share of a two_phase trial's steps spent in the convolution phase.", 0.5)
    convolution_learning_rate: float | None = option(
        "Peak learning rate of the convolution phase; auto: learning_rate.", None, unset=0.0
    )
    convolution_warmup_fraction: float | None = option(
        "Warm-up of the convolution phase (schedule per_phase); auto: warmup_fraction.", None, unset=-1.0
    )

    def __post_init__(self) -> None:
        require_choice(self, "init_scheme", InitSchemeName)
        require_choice(self, "convolution_form", ConvolutionForm)
        require(
            self.attention_sharpness > 0 and math.isfinite(self.attention_sharpness),
            "attention_sharpness",
            self.attention_sharpness,
            "must be positive and finite",
        )
        leak = self.attention_leak
        require(leak is None or 0 < leak < 0.5, "attention_leak", leak, f"must be {AUTO}, or lie in (0, 0.5)")
        require(
            0 < self.convolution_fraction < 1, "convolution_fraction", self.convolution_fraction, "must lie in (0, 1)"
        )
        rate, warmup = self.convolution_learning_rate, self.convolution_warmup_fraction
        require(
            rate is None or 0 < rate <= LARGEST_LEARNING_RATE,
            "convolution_learning_rate",
            rate,
            f"must be {AUTO}, for learning_rate, or positive and at most {LARGEST_LEARNING_RATE:g}",
        )
        require(
            warmup is None or 0 <= warmup < 1,
            "convolution_warmup_fraction",
            warmup,
            f"must be {AUTO}, for warmup_fraction, or lie in [0, 1)",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation. Steps are those of both phases together, so that schemes get equal budgets.

    With `budget_unit` at `flops` they are the steps of the attention transformer, and every trial gets as many as cost
    the same operations.
    """

    epochs: int = option("Passes over the subset, both phases together.", 20)
    min_steps: int = option("Optimiser steps at least, so that small fractions are trained too.", 400)
    budget_unit: BudgetUnit = option(
        "Every scheme gets equal optimiser steps, or steps of equal FLOPs as the attention transformer's.", "steps"
    )
    batch_size: int = option("Images per optimiser step.", 64)
    learning_rate: float = option("Peak learning rate of AdamW.", 1e-3)
    position_learning_rate_factor: float = option(
        "Learning rate of relative biases and position embeddings over that of the other parameters.", 1.0
    )
    transferred_learning_rate_factor: float = option(
        "In the attention phase: learning rate of what the convolution phase has trained over that of the rest.", 1.0
    )
    optimizer_state: OptimizerState = option(
        "In the attention phase: AdamW's moments and step counts start anew, or come from the convolution phase.",
        "reset",
    )
    schedule: Schedule = option(
        "Learning rate of two phases: a warm-up and a cosine for each, or one of each over all steps.", "per_phase"
    )
    weight_decay: float = option("Decoupled weight decay; not applied to biases, norms and position terms.", 0.05)
    decay_towards: DecayTowards = option(
        "Weight decay of the attention phase: towards zero, or towards the weights at the phase's start (L2-SP).",
        "zero",
    )
    warmup_fraction: float = option("Share of a phase's steps with a linearly rising learning rate.", 0.1)
    label_smoothing: float = option("Label smoothing of the cross-entropy, in [0, 1).", 0.0)
    gradient_clip_norm: float = option("Largest norm of the gradient; 0 clips nothing.", 1.0)
    stochastic_depth: float = option(
        "Probability that the last block's branches are dropped for an image; falls linearly to 0 at the first.", 0.0
    )
    precision: Precision = option(
        "Arithmetic of products: float32 or bfloat16; auto: the faster one of this machine.", "float32", by_machine=True
    )
    evaluations: int = option("Evaluations on the validation images per trial, evenly spaced.", 10)

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        for name in ("batch_size", "evaluations"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            0 < self.learning_rate <= LARGEST_LEARNING_RATE,
            "learning_rate",
            self.learning_rate,
            f"must be positive and at most {LARGEST_LEARNING_RATE:g}",
        )
        for name in ("weight_decay", "gradient_clip_norm"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), name, value, "must be at least 0 and finite")
        for name in ("warmup_fraction", "label_smoothing", "stochastic_depth"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must lie in [0, 1)")
        for name in ("position_learning_rate_factor", "transferred_learning_rate_factor"):
            value = getattr(self, name)
            require(0 <= value <= LARGEST_RATE_FACTOR, name, value, f"must lie in [0, {LARGEST_RATE_FACTOR:g}]")
        require_choice(self, "optimizer_state", OptimizerState)
        require_choice(self, "schedule", Schedule)
        require_choice(self, "decay_towards", DecayTowards)
        require_choice(self, "precision", Precision)
        require_choice(self, "budget_unit", BudgetUnit)

    def total_steps(self, num_images: int) -> int:
        """Optimiser steps of a whole trial on a subset of `num_images` images, at least 2; those of the attention
        transformer if the budget is one of operations."""
        return max(2, self.min_steps, math.ceil(self.epochs * num_images / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that determines one training result, the seed included."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        require(
            self.data.augmentation_policy == "none" or self.model.in_channels in POLICY_CHANNELS,
            "augmentation_policy",
            self.data.augmentation_policy,
            f"is defined for images of 1 or 3 channels, and these have {self.model.in_channels}",
        )
        _require_augmentation_of_axes(self.data, self.model)
        ignored = SCHEMES[self.init.init_scheme].ignored(self.model.is_hybrid)
        if self.init.convolution_form == "pixel" and "convolution_form" not in ignored:
            _require_whole_pixels(self.model)

    @property
    def attention_sharpness(self) -> float:
        """The sharpness at which heads start: as given, or as `attention_leak` asks for with this trial's patches, in
        windows those of one."""
        leak = self.init.attention_leak
        return self.init.attention_sharpness if leak is None else sharpness_of(leak, self.model.num_visible)

    def flat(self) -> dict[str, Any]:
        """Every field on one level, by its own name."""
        flat: dict[str, Any] = {}
        for part in (self.data, self.model, self.init, self.training):
            flat |= vars(part)  # dataclasses.asdict would copy every value: half of the time of a large plan
        return flat | {"seed": self.seed}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> "TrialConfig":
        """The inverse of `flat`; names that are missing keep their defaults.

        Raises:
            ConfigError: a name is unknown or a value invalid.
        """
        require_known(flat, PARAMETERS)
        parts: dict[str, Any] = {
            name: part(**{f.name: flat[f.name] for f in dataclasses.fields(part) if f.name in flat})
            for name, part in _PARTS.items()
        }
        return cls(**parts, seed=flat.get("seed", 0))


def _require_augmentation_of_axes(data: DataConfig, model: ModelConfig) -> None:
    """Raises ConfigError if an augmentation is not defined for images of so many axes."""
    if model.dimensions == FLIPS_FOR:
        return
    kind = "sequences" if model.is_of_sequences else f"images of {model.dimensions} axes"
    valid = ", ".join(each for each in choices(Augmentation) if each != "crop_flip")
    rule = f"is defined for images of two axes, and these are {kind}"
    require(data.augmentation != "crop_flip", "augmentation", data.augmentation, f"{rule}: one of {valid}")
    require(data.augmentation_policy == "none", "augmentation_policy", data.augmentation_policy, rule)


def _require_whole_pixels(model: ModelConfig) -> None:
    """Raises CombinationError if a token cannot be divided among the pixels of a patch."""
    pixels, width = math.prod(model.patch), model.embed_dim
    if width % pixels:
        below = width // pixels * pixels
        valid = f"{below} or {below + pixels}" if below else pixels
        raise CombinationError(
            f"embed_dim {width} must be a multiple of the {pixels} pixels of a patch for convolution_form 'pixel', "
            f"such as {valid}"
        )
    if round(width * model.mlp_ratio) < pixels:
        raise CombinationError(
            f"mlp_ratio {model.mlp_ratio} must make the MLP's hidden width, mlp_ratio * embed_dim, at least the "
            f"{pixels} pixels of a patch for convolution_form 'pixel'"
        )


_PARTS: dict[str, Any] = {"data": DataConfig, "model": ModelConfig, "init": InitConfig, "training": TrainingConfig}


PARAMETERS: Mapping[str, Parameter] = parameters_of(_PARTS)
"""Every flat parameter of a training by name, in the order of the configuration."""
