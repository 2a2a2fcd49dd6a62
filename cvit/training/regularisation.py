"""The regularisation of a pack by random changes beyond moves and flips: augmentation policies, erasing, mixing, noise,
and stochastic depth.

Every draw is addressed by seed and step, so every scheme gets the same. A pack draws and computes only what some member
uses; the other members get draws that change nothing. Draws of a range of steps go to the device as tables with a row
per step, like those of `cvit.training.batches`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cvit.config import AugmentationPolicy
from cvit.data import erasing
from cvit.data.noise import draw_windows, noisy, normal_row
from cvit.data.policies import OPERATIONS_PER_IMAGE, apply_policy, code_table, draw_policy
from cvit.models.stochastic_depth import branch_scales, drop_probabilities
from cvit.parameters import ConfigError
from cvit.randomness import generator
from cvit.stages import TrainingStage, depends_on
from cvit.training import mixing

Draws = Mapping[str, Tensor]
"""For each kind of regularisation that some member uses, (steps, M, ...) on the CPU."""

_POLICY, _ERASING, _MIXING, _NOISE = "augmentation policy", "erasing", "mixing", "noise"
_DEPTH = "stochastic depth"
"""The kinds, which are the purposes of their draws too."""


class Regularisation:
    """The random changes of a pack's members, and their tables on the device."""

    def __init__(self, stages: Sequence[TrainingStage], images: Tensor, table_steps: int, device: torch.device) -> None:
        """
        Args:
            stages: the stages of the members, of one `shape`.
            images: the training images, (N, C, *shape).
            table_steps: the number of steps whose draws are on the device at a time.

        Raises:
            ConfigError: a member wants a change that is not defined for such images.
        """
        self._stages, self._shape = tuple(stages), tuple(images.shape[2:])
        self._kinds = _kinds_of(stages)
        _require_defined(stages, images)
        first = self.draw(range(1))
        self._tables = {
            kind: torch.zeros(table_steps, *rows.shape[1:], dtype=rows.dtype, device=device)
            for kind, rows in first.items()
        }
        self._codes = code_table(self._shape[0]).to(device) if _POLICY in self._kinds else None
        self._noise_std = torch.tensor([stage.trial.data.noise_std for stage in stages], device=device)
        self._noise = normal_row(device) if _NOISE in self._kinds else None
        self._drop_probabilities = torch.tensor(self._probabilities(), device=device)

    def draw(self, steps: range) -> Draws:
        """The draws of consecutive steps, counted within the trial; they depend on the members and the steps alone."""
        draws = {
            _POLICY: self._policies,
            _ERASING: self._boxes,
            _MIXING: self._mixtures,
            _NOISE: self._windows,
            _DEPTH: self._kept_branches,
        }
        return {kind: torch.stack(draws[kind](steps), dim=1) for kind in self._kinds}

    def fill(self, draws: Draws) -> None:
        """Puts the draws of consecutive steps into the tables."""
        for kind, rows in draws.items():
            self._tables[kind][: len(rows)].copy_(rows)

    def augmented(self, images: Tensor, row: Tensor) -> Tensor:
        """The images (M · B, C, *shape) of a step after their operations; of the type that they had."""
        codes = self._row(_POLICY, row)
        if codes is None or self._codes is None:
            return images
        return apply_policy(images, codes.flatten(0, 1), self._codes)

    def changed(self, images: Tensor, row: Tensor) -> Tensor:
        """The normalised images (M, B, C, *shape) of a step after erasing, mixing and noise."""
        box, mixture, windows = self._row(_ERASING, row), self._row(_MIXING, row), self._row(_NOISE, row)
        if box is not None:
            images = erasing.erased(images, box)
        if mixture is not None:
            images = mixing.mixed(images, mixture)
        if windows is None or self._noise is None:
            return images
        return noisy(images, windows, self._noise_std, self._noise)

    def label_weights(self, row: Tensor) -> Tensor | None:
        """The weight of each member's own labels in a step, (M, 1); None if no member mixes."""
        mixture = self._row(_MIXING, row)
        return None if mixture is None else mixture[:, :1]

    def branch_scales(self, row: Tensor) -> Tensor | None:
        """The factors of the residual branches in a step, (branches, M, B); None if no member drops any."""
        is_kept = self._row(_DEPTH, row)
        return None if is_kept is None else branch_scales(is_kept, self._drop_probabilities)

    def _row(self, kind: str, row: Tensor) -> Tensor | None:
        table = self._tables.get(kind)
        return None if table is None else table.index_select(0, row)[0]

    # The draws of each member, (steps, ...)

    def _policies(self, steps: range) -> list[Tensor]:
        policies: list[AugmentationPolicy] = [stage.trial.data.augmentation_policy for stage in self._stages]
        most = max(OPERATIONS_PER_IMAGE[policy] for policy in policies)
        drawn = [
            torch.stack([draw_policy(self._batch_size, policy, generator(seed, _POLICY, step)) for step in steps])
            for policy, seed in zip(policies, self._seeds, strict=True)
        ]
        return [F.pad(codes, (0, most - codes.shape[-1])) for codes in drawn]  # code 0 is the identity

    def _boxes(self, steps: range) -> list[Tensor]:
        uniform = self._uniform(_ERASING, steps, self._batch_size, erasing.NUM_UNIFORM)
        return [
            erasing.boxes(uniform[seed], self._shape, stage.trial.data.erasing_probability)
            for stage, seed in zip(self._stages, self._seeds, strict=True)
        ]

    def _mixtures(self, steps: range) -> list[Tensor]:
        uniform = self._uniform(_MIXING, steps, mixing.NUM_UNIFORM, dtype=torch.float64)
        configs = [stage.trial.data for stage in self._stages]
        return [
            mixing.mixtures(uniform[seed], config.mixup_alpha, config.cutmix_alpha, self._shape)
            for config, seed in zip(configs, self._seeds, strict=True)
        ]

    def _windows(self, steps: range) -> list[Tensor]:
        drawn = {
            seed: torch.stack([draw_windows(self._batch_size, generator(seed, _NOISE, step)) for step in steps])
            for seed in dict.fromkeys(self._seeds)
        }
        return [drawn[seed] for seed in self._seeds]

    def _kept_branches(self, steps: range) -> list[Tensor]:
        probabilities = torch.tensor(self._probabilities())
        uniform = self._uniform(_DEPTH, steps, probabilities.shape[1], self._batch_size)
        return [uniform[seed] >= of_member[:, None] for of_member, seed in zip(probabilities, self._seeds, strict=True)]

    def _uniform(
        self, purpose: str, steps: range, *shape: int, dtype: torch.dtype = torch.float32
    ) -> dict[int, Tensor]:
        """Uniform draws (steps, *shape) in [0, 1) by seed, because members with the same seed share them."""

        def of_step(seed: int, step: int) -> Tensor:
            return torch.rand(shape, generator=generator(seed, purpose, step), dtype=dtype)

        return {seed: torch.stack([of_step(seed, step) for step in steps]) for seed in dict.fromkeys(self._seeds)}

    def _probabilities(self) -> list[list[float]]:
        return [
            drop_probabilities(stage.trial.model.depth, stage.trial.training.stochastic_depth) for stage in self._stages
        ]

    @property
    def _seeds(self) -> list[int]:
        return [stage.trial.seed for stage in self._stages]

    @property
    def _batch_size(self) -> int:
        return self._stages[0].trial.training.batch_size


def _kinds_of(stages: Sequence[TrainingStage]) -> list[str]:
    """The kinds of regularisation that some member uses."""
    uses: Mapping[str, Callable[[TrainingStage], bool]] = {
        _POLICY: lambda stage: stage.trial.data.augmentation_policy != "none",
        _ERASING: lambda stage: stage.trial.data.erasing_probability > 0,
        _MIXING: lambda stage: stage.trial.data.mixup_alpha > 0 or stage.trial.data.cutmix_alpha > 0,
        _NOISE: lambda stage: stage.trial.data.noise_std > 0,
        _DEPTH: lambda stage: (
            stage.trial.training.stochastic_depth > 0 and depends_on(stage.trial.init.init_scheme, "stochastic_depth")
        ),
    }
    return [kind for kind, is_used in uses.items() if any(map(is_used, stages))]


def _require_defined(stages: Sequence[TrainingStage], images: Tensor) -> None:
    """Raises ConfigError if a change is not defined for such images."""
    for stage in stages:
        data = stage.trial.data
        if data.augmentation_policy != "none" and (images.dtype != torch.uint8 or images.ndim != 4):
            raise ConfigError(
                f"augmentation_policy {data.augmentation_policy!r} is defined for images of uint8 on two axes, not for "
                f"{str(images.dtype).removeprefix('torch.')} on {images.ndim - 2}"
            )
        for name in ("cutmix_alpha", "erasing_probability"):
            if getattr(data, name) > 0 and images.ndim > 4:
                raise ConfigError(
                    f"{name} must be 0 for images of more than two axes, and these have {images.ndim - 2}"
                )
