"""The stability of a training: its largest gradient, its loss spikes, its loss after the first steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from cvit.vocabulary import EARLY_LOSS, GRAD_NORM_MAX, GRAD_NORM_MAX_STEP, LOSS_SPIKES

EARLY_FRACTION = 0.01
"""The share of a stage's steps after which the early loss is measured."""
SPIKE_WINDOW = 20
"""The number of steps whose median loss a spike is compared with."""
SPIKE_HEIGHT = 0.5
"""The least height of a spike above that median, as a share of the trial's first loss. As a share of the current loss,
the noise of a loss near zero would count as spikes."""


@dataclass
class Stability:
    """The measures of stability of a stage so far; they are part of its checkpoints.

    A *loss spike* begins at a step whose training loss exceeds the median of the SPIKE_WINDOW steps before it by more
    than SPIKE_HEIGHT times the loss of the trial's first step, and ends when the loss no longer does.
    """

    grad_norm_max: float = 0.0
    grad_norm_max_step: int = 0
    loss_spikes: int = 0
    in_spike: bool = False
    early_loss: float | None = None
    recent_losses: list[float] = field(default_factory=list)

    def update(
        self, losses: Sequence[float], norms: Sequence[float], first: int, steps: int, initial_loss: float
    ) -> None:
        """Updates the measures with the finite losses and gradient norms of consecutive steps.

        Args:
            losses: the mean training loss of each step's batch.
            norms: the norm of each step's gradient before clipping.
            first: the first of these steps, counted within the stage.
            steps: the number of steps of the whole stage.
            initial_loss: the training loss of the trial's first step.
        """
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            if norm > self.grad_norm_max:
                self.grad_norm_max, self.grad_norm_max_step = norm, step
            # The loss of a step is measured with the weights before its update.
            if step == min(steps - 1, max(1, math.ceil(EARLY_FRACTION * steps))):
                self.early_loss = loss
            is_high = (
                len(self.recent_losses) == SPIKE_WINDOW
                and loss > median(self.recent_losses) + SPIKE_HEIGHT * initial_loss
            )
            self.loss_spikes += is_high and not self.in_spike
            self.in_spike = is_high
            self.recent_losses = [*self.recent_losses, loss][-SPIKE_WINDOW:]

    def measured(self, first_step: int) -> dict[str, float]:
        """The metrics of a stage that begins at `first_step` of its trial."""
        early = {} if self.early_loss is None else {EARLY_LOSS: self.early_loss}
        return early | {
            GRAD_NORM_MAX: self.grad_norm_max,
            GRAD_NORM_MAX_STEP: float(first_step + self.grad_norm_max_step),
            LOSS_SPIKES: float(self.loss_spikes),
        }
