"""How many times as fast one training is as another, on made-up learning curves whose speeds are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.analysis.questions.low_data import QUESTION
from cvit.analysis.statistics.speed import PENALTY, TARGET_SHARE, log_speed
from tests.support.random_studies import Cell, measured_curve, study_in_memory

Shape = Callable[[np.ndarray], np.ndarray]
GUESSING = 0.1
SHAPES: dict[str, Shape] = {
    "exponential": lambda time: 1 - np.exp(-5 * time),
    "power law": lambda time: 1 - (1 + 5 * time) ** -1.5,
    "from a slow start": lambda time: (5 * time) ** 2 / (1 + (5 * time) ** 2),
    "with a plateau at first": lambda time: np.clip(2.5 * time - 0.4, 0, 1),
}
"""The share of the way to the end, by the share of the steps."""
TRUE_SPEEDS = (1.0, 1.2, 1.5, 2.0)


def saved(shape: Shape, speed: float, noise: float, evaluations: int, num_seeds: int) -> float:
    """The estimate of `trains_faster` where two phases have a speed, whatever the speed and the end of a seed."""
    rng = np.random.default_rng(7)
    seeds = list(range(num_seeds))
    of_seed = {seed: float(np.exp(0.2 * rng.normal())) for seed in seeds}
    end = {seed: 0.8 + 0.03 * float(rng.normal()) for seed in seeds}

    def outcome(cell: Cell) -> tuple[float, dict[int, float], Cell]:
        seed = cell["seed"]
        own = of_seed[seed] * (speed if cell["init_scheme"] == "two_phase" else 1)
        curve = measured_curve(rng, shape, speed=own, end=end[seed], noise=noise, evaluations=evaluations)
        return 0.0, curve, {}

    study = study_in_memory(
        "low_data", {"data_fraction": [0.1], "init_scheme": ["random", "two_phase"], "seed": seeds}, outcome
    )
    (claim,) = (claim for claim in QUESTION.claims if claim.name == "trains_faster")
    ((_, judged),) = next(iter(claim.judge(study)))
    assert judged.n == num_seeds
    return judged.estimate


@pytest.mark.parametrize("speed", TRUE_SPEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_within_two_points_of_the_truth(shape: str, speed: float) -> None:
    assert saved(SHAPES[shape], speed, 0.01, 20, num_seeds=150) == pytest.approx(1 - 1 / speed, abs=0.02)


@pytest.mark.simulation
@pytest.mark.parametrize("evaluations", [10, 20])
@pytest.mark.parametrize("noise", [0.01, 0.025])
@pytest.mark.parametrize("speed", TRUE_SPEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_so_it_is_with_more_noise_and_fewer_evaluations(
    shape: str, speed: float, noise: float, evaluations: int
) -> None:
    estimate = saved(SHAPES[shape], speed, noise, evaluations, num_seeds=1000)
    print(f"{shape}, {evaluations} evaluations, noise {noise}: {100 * (estimate - 1 + 1 / speed):+.1f} at {speed}")
    assert estimate == pytest.approx(1 - 1 / speed, abs=0.02)


curves = st.lists(st.floats(0, 1), min_size=0, max_size=12).map(lambda values: dict(enumerate(values, 1)))


@given(curves, curves)
def test_exchanging_the_two_changes_the_sign_only(one: dict[int, float], other: dict[int, float]) -> None:
    speed = log_speed(one, other, GUESSING)
    assert math.isfinite(speed)
    assert log_speed(other, one, GUESSING) == pytest.approx(-speed, abs=1e-9)
    assert log_speed(one, one, GUESSING) == 0


@pytest.mark.parametrize("end", [0.7, 0.9])
def test_the_target_is_that_of_the_lower_plateau(end: float) -> None:
    """Straight lines to 0.8 and to `end` at step 10. The target is TARGET_SHARE of the way to the lower of the two."""

    def line(plateau: float) -> dict[int, float]:
        return {step: 0.1 + (plateau - 0.1) * min(1, step / 10) for step in range(1, 31)}

    target = TARGET_SHARE * (min(end, 0.8) - 0.1)
    steps, steps_of_other = (10 * target / (plateau - 0.1) for plateau in (0.8, end))
    assert log_speed(line(0.8), line(end), GUESSING) == pytest.approx(math.log(steps_of_other / steps), abs=2e-3)


def test_one_lucky_evaluation_is_not_the_target_reached() -> None:
    steady = {step: 0.1 + 0.07 * step for step in range(1, 11)}
    lucky = steady | {2: steady[9]}
    assert abs(log_speed(lucky, steady, GUESSING)) < 0.1


def test_a_dip_between_the_phases_is_smoothed() -> None:
    """The accuracy that the transfer loses is no accuracy that the training had reached for good."""
    rising = {step: 0.1 + 0.07 * min(step, 10) for step in range(1, 21)}
    dipping = rising | dict.fromkeys(range(8, 16), 0.3)
    assert log_speed(dipping, rising, GUESSING) < -0.3


def test_a_training_that_never_gets_there_is_penalised_whichever_it_is() -> None:
    good = {step: 0.1 + 0.7 * min(1, step / 8) for step in range(1, 21)}
    # Half of the way to 0.8 takes 4 steps.
    expected = math.log(PENALTY * 20 / 4)
    for poor in ({}, dict.fromkeys(good, 0.05), dict.fromkeys(good, 0.4)):
        assert log_speed(good, poor, GUESSING) == pytest.approx(expected, abs=1e-6)
        assert log_speed(poor, good, GUESSING) == pytest.approx(-expected, abs=1e-6)
    assert log_speed({}, {}, GUESSING) == log_speed({}, dict.fromkeys(good, 0.1), GUESSING) == 0
