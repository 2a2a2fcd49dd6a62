"""Loss spikes, the largest gradient and the early loss, on losses made by hand."""

import json
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.training.stability import SPIKE_WINDOW, Stability
from cvit.vocabulary import EARLY_LOSS, GRAD_NORM_MAX, GRAD_NORM_MAX_STEP, LOSS_SPIKES

INITIAL = 2.0


def measured(losses: list[float], norms: list[float] | None = None, first_step: int = 0) -> dict[str, float]:
    stability = Stability()
    stability.update(losses, norms or [1.0] * len(losses), 0, len(losses), INITIAL)
    return stability.measured(first_step)


@pytest.mark.parametrize(
    ("bumps", "expected"),
    [
        ({}, 0),
        ({40: 1.99}, 0),  # 1.0 above a median of 1.0 is the threshold: half of the first loss
        ({40: 2.01}, 1),
        ({40: 9.0, 41: 9.0, 42: 9.0}, 1),  # one spike as long as it lasts
        ({40: 9.0, 42: 9.0}, 2),
        ({SPIKE_WINDOW - 1: 9.0}, 0),  # too early: there are not enough steps to compare with
        ({SPIKE_WINDOW: 9.0}, 1),
        (dict.fromkeys(range(40, 80), 3.0), 1),  # a new level is a spike once, then the level
    ],
)
def test_spikes_are_counted(bumps: dict[int, float], expected: int) -> None:
    losses = [bumps.get(step, 1.0) for step in range(100)]
    assert measured(losses)[LOSS_SPIKES] == expected


def test_noise_of_a_loss_near_zero_is_no_spike() -> None:
    draws = random.Random(0)
    assert measured([0.01 * draws.expovariate(1.0) for _ in range(500)])[LOSS_SPIKES] == 0


def test_the_largest_gradient_and_its_step_are_counted_over_the_trial() -> None:
    found = measured([1.0] * 4, [1.0, 5.0, 5.0, 2.0], first_step=30)
    assert (found[GRAD_NORM_MAX], found[GRAD_NORM_MAX_STEP]) == (5.0, 31.0)


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.0), (2, 1.0), (50, 1.0), (101, 2.0), (1000, 10.0)])
def test_the_early_loss_is_that_after_the_first_percent_of_the_steps(steps: int, expected: float) -> None:
    """Step n measures the weights after n updates: step 0 the untrained ones, which tell nothing about early steps."""
    assert measured([float(step) for step in range(steps)])[EARLY_LOSS] == expected


def test_a_stage_that_diverges_at_once_has_no_early_loss() -> None:
    assert EARLY_LOSS not in Stability().measured(0)


@given(
    losses=st.lists(st.floats(0, 10), min_size=2, max_size=80),
    cuts=st.lists(st.integers(1, 79), max_size=3),
)
def test_an_interruption_changes_nothing(losses: list[float], cuts: list[int]) -> None:
    """The same through any number of checkpoints, each of which is JSON."""
    norms = [loss**2 for loss in losses]
    stability, first = Stability(), 0
    for end in [*sorted({cut for cut in cuts if cut < len(losses)}), len(losses)]:
        stability.update(losses[first:end], norms[first:end], first, len(losses), INITIAL)
        stability = Stability(**json.loads(json.dumps(asdict(stability))))
        first = end
    assert stability.measured(0) == measured(losses, norms)
