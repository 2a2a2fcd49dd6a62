"""The operations of an optimiser step, against torch's own counter, and budgets in operations."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvit.config import ConvolutionForm, InitConfig, InitSchemeName, ModelConfig, TrainingConfig, TrialConfig
from cvit.geometry import num_relative_positions
from cvit.parameters import ConfigError, choices
from cvit.stages import TrainingStage, stages_of
from cvit.training import probe
from cvit.training.schedule import learning_rate_sum
from tests.cvit.test_dimensions import config_on
from tests.cvit.training.tiny import learning_rates

ALL_SCHEMES, FORMS = choices(InitSchemeName), choices(ConvolutionForm)


def stages(model: ModelConfig, batch_size: int, **init: Any) -> tuple[TrainingStage, ...]:
    training = TrainingConfig(epochs=0, min_steps=10, batch_size=batch_size)
    return stages_of(TrialConfig(model=model, init=InitConfig(**init), training=training), 100)


@settings(max_examples=15)
@given(
    scheme=st.sampled_from(ALL_SCHEMES),
    form=st.sampled_from(FORMS),
    grid=st.integers(1, 6),
    patch=st.integers(1, 4),
    heads=st.integers(1, 30),
    depth=st.integers(1, 3),
    attention_blocks=st.integers(1, 3),
    batch_size=st.integers(2, 70),
    channels=st.integers(2, 6),
    sizes=st.fixed_dictionaries(
        {
            "in_channels": st.integers(1, 4),
            "num_classes": st.integers(2, 12),
            "head_dim": st.integers(1, 12),
            "mlp_ratio": st.floats(0.5, 4),
            "position_encoding": st.sampled_from(["relative", "relative+absolute"]),
        }
    ),
)
def test_operations_are_those_that_torch_counts(
    scheme: str,
    form: str,
    grid: int,
    patch: int,
    heads: int,
    depth: int,
    attention_blocks: int,
    batch_size: int,
    channels: int,
    sizes: Any,
) -> None:
    """So they are for hybrids, whose first blocks are convolutions."""
    sizes |= {"num_heads": min(heads, num_relative_positions((grid, grid))), "embed_dim": channels * patch**2}
    sizes |= {"attention_blocks": min(attention_blocks, depth)}
    model = ModelConfig(image_size=grid * patch, patch_size=patch, depth=depth, **sizes)
    for stage in stages(model, batch_size, init_scheme=scheme, convolution_form=form):
        assert stage.step_flops == probe.step_flops(stage)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("grid", "patch"), [((9,), (4,)), ((4, 6), (2, 3)), ((1, 7), (2, 1)), ((3, 4, 2), (2, 1, 3))])
@pytest.mark.parametrize("heads", [2, 5])
def test_so_they_are_in_any_number_of_dimensions(
    grid: tuple[int, ...], patch: tuple[int, ...], heads: int, form: str
) -> None:
    model = config_on(grid, patch, num_heads=heads, embed_dim=24)
    for stage in stages(model, 3, init_scheme="two_phase", convolution_form=form):
        assert stage.step_flops == probe.step_flops(stage)


def cost(trial_stages: tuple[TrainingStage, ...]) -> int:
    flops = [stage.step_flops for stage in trial_stages]
    assert all(number is not None for number in flops)
    return sum(stage.steps * (number or 0) for stage, number in zip(trial_stages, flops, strict=True))


def budgeted(unit: str, steps: int, **flat: Any) -> tuple[TrainingStage, ...]:
    sizes = {"depth": 2, "embed_dim": 24, "patch_size": 2, "head_dim": 4, "epochs": 0}
    return stages_of(TrialConfig.from_flat(sizes | flat | {"budget_unit": unit, "min_steps": steps}), 100)


@given(
    scheme=st.sampled_from(ALL_SCHEMES),
    form=st.sampled_from(FORMS),
    steps=st.integers(20, 3000),
    share=st.floats(0.02, 0.98),
    evaluations=st.integers(1, 20),
)
def test_a_budget_of_operations_is_kept_to_less_than_a_step(
    scheme: str, form: str, steps: int, share: float, evaluations: int
) -> None:
    flat = {"init_scheme": scheme, "convolution_form": form, "convolution_fraction": share, "evaluations": evaluations}
    of_random = budgeted("steps", steps, init_scheme="random")
    of_equal_cost = budgeted("flops", steps, **flat)
    assert abs(cost(of_equal_cost) - cost(of_random)) < max(stage.step_flops or 0 for stage in of_equal_cost)
    total = sum(stage.steps for stage in of_equal_cost)
    if scheme == "two_phase":
        # The split is that of as many steps, asked for as steps.
        assert [s.key for s in of_equal_cost] == [s.key for s in budgeted("steps", total, **flat)]
        assert form == "full" or total >= steps


@pytest.mark.parametrize("scheme", ["random", "conv_structured", "mimetic", "impulse", "local"])
def test_trials_of_attention_alone_are_the_same_stage_in_either_unit(scheme: str) -> None:
    for steps in (2, 3, 40, 1237):
        one, other = (budgeted(unit, steps, init_scheme=scheme) for unit in ("steps", "flops"))
        assert [stage.key for stage in one] == [stage.key for stage in other]
        assert [stage.shape for stage in one] == [stage.shape for stage in other]


def test_a_model_whose_operations_are_unknown_has_no_budget_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvit import stages as module

    monkeypatch.setattr(module, "step_flops", lambda architecture, batch_size: None)
    with pytest.raises(ConfigError, match="budget_unit 'flops' is not valid with init_scheme 'resnet'"):
        budgeted("flops", 40, init_scheme="resnet")


@pytest.mark.parametrize("schedule", ["per_phase", "joint"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5])
def test_s_is_the_sum_of_the_learning_rates_of_a_phase(schedule: str, warmup_fraction: float) -> None:
    flat = {"init_scheme": "two_phase", "schedule": schedule, "warmup_fraction": warmup_fraction}
    flat |= {"convolution_learning_rate": 0.004, "learning_rate": 0.01}
    for stage in budgeted("steps", 400, **flat):
        assert learning_rate_sum(stage) == pytest.approx(sum(learning_rates(stage)), rel=1e-12)


def test_s_by_hand() -> None:
    """A cosine to zero has half of the peak on average and half a step more, and so has a linear warm-up."""
    (stage,) = budgeted("steps", 100, init_scheme="random", warmup_fraction=0.2, learning_rate=0.01)
    assert learning_rate_sum(stage) == pytest.approx(0.01 * (21 / 2 + 81 / 2))
