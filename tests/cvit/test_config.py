import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.config import (
    PARAMETERS,
    Augmentation,
    AugmentationPolicy,
    ConvolutionForm,
    DataConfig,
    InitSchemeName,
    ModelConfig,
    OptimizerState,
    PositionEncoding,
    Precision,
    TrainingConfig,
    TrialConfig,
)
from cvit.parameters import ConfigError, Parameter, as_text, choices, with_numbers

NAN, INF = math.nan, math.inf
INVALID: dict[str, list[Any]] = {
    "data_fraction": [0.0, -0.1, 1.0001, NAN, INF],
    "validation_fraction": [0.0, 1.0, -0.5, NAN],
    "max_validation_images": [0, -1],
    "max_test_images": [0, -1],
    "augmentation": ["", "flip", "Shift", None],
    "augmentation_policy": ["", "randaugment", None],
    "mixup_alpha": [-0.1, NAN, INF],
    "cutmix_alpha": [-0.1, NAN, INF],
    "erasing_probability": [-0.1, 1.1, NAN],
    "noise_std": [-0.1, NAN, INF],
    "image_size": [0, -8],
    "in_channels": [0],
    "num_classes": [1, 0],
    "dimensions": [0, -1],
    "patch_size": [0, -1, 3, 16],
    "embed_dim": [0],
    "depth": [0, -1],
    "num_heads": [0, 10],
    "head_dim": [0],
    "inner_dim": [0, -1],
    "mlp_ratio": [0.0, -1.0, NAN],
    "position_encoding": ["absolute", "relative "],
    "attention_blocks": [0, -1, 7],
    "window_size": [0, -1, 3, 4],
    "window_shift": [-1, 1],
    "init_scheme": ["", "twophase", "Random"],
    "attention_sharpness": [0.0, -4.0, NAN],
    "attention_leak": [0.0, 0.5, -0.1, NAN],
    "convolution_form": ["half"],
    "convolution_fraction": [0.0, 1.0, NAN],
    "convolution_learning_rate": [0.0, -1e-3, NAN, INF],
    "convolution_warmup_fraction": [-1.0, -0.5, 1.0, NAN],
    "epochs": [-1],
    "min_steps": [-1],
    "budget_unit": ["FLOPs"],
    "batch_size": [0, -64],
    "learning_rate": [0.0, -1e-3, NAN, INF],
    "position_learning_rate_factor": [-1.0, 1001.0, NAN, INF],
    "transferred_learning_rate_factor": [-0.1, 1001.0, NAN, INF],
    "optimizer_state": ["kept", "", None],
    "schedule": ["per phase", "cosine"],
    "weight_decay": [-0.1, NAN, INF],
    "decay_towards": ["end", "0"],
    "warmup_fraction": [-0.1, 1.0, NAN],
    "label_smoothing": [-0.1, 1.0, NAN],
    "gradient_clip_norm": [-1.0, NAN, INF],
    "stochastic_depth": [-0.1, 1.0, NAN],
    "precision": ["float16", "fp32"],
    "evaluations": [0],
    "seed": [-1],
}
WITHOUT_LIMITS = {"dataset", "data_fingerprint"}


@st.composite
def trial_configs(draw: st.DrawFn) -> TrialConfig:
    share = st.floats(0, 1, exclude_min=True, exclude_max=True)
    positive = st.floats(1e-6, 1e6)
    grid_size, patch_size = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    form = draw(st.sampled_from(choices(ConvolutionForm)))
    return TrialConfig.from_flat(
        {
            "dataset": draw(st.text(max_size=20)),
            "data_fraction": draw(share | st.just(1.0)),
            "validation_fraction": draw(share),
            "augmentation": draw(st.sampled_from(choices(Augmentation))),
            "augmentation_policy": draw(st.sampled_from(choices(AugmentationPolicy))),
            "mixup_alpha": draw(positive | st.just(0.0)),
            "erasing_probability": draw(share | st.just(0.0)),
            "stochastic_depth": draw(share | st.just(0.0)),
            "image_size": grid_size * patch_size,
            "patch_size": patch_size,
            "num_heads": draw(st.integers(1, (2 * grid_size - 1) ** 2)),
            "inner_dim": draw(st.none() | st.integers(1, 500)),
            "mlp_ratio": draw(st.floats(0.1, 8)),
            "position_encoding": draw(st.sampled_from(choices(PositionEncoding))),
            "depth": (depth := draw(st.integers(1, 6))),
            "attention_blocks": draw(st.none() | st.integers(1, depth)),
            "window_size": draw(st.none() | st.sampled_from([n for n in range(1, 7) if grid_size % n == 0])),
            "window_shift": draw(st.none() | st.just(0)),
            "init_scheme": draw(st.sampled_from(choices(InitSchemeName))),
            "convolution_form": form,
            "embed_dim": draw(st.integers(20, 99)) * (patch_size**2 if form == "pixel" else 1),
            "convolution_fraction": draw(share),
            "convolution_learning_rate": draw(st.none() | positive),
            "convolution_warmup_fraction": draw(st.none() | share | st.just(0.0)),
            "attention_sharpness": draw(positive),
            "attention_leak": draw(st.none() | st.floats(0, 0.5, exclude_min=True, exclude_max=True)),
            "position_learning_rate_factor": draw(st.floats(0, 1000)),
            "optimizer_state": draw(st.sampled_from(choices(OptimizerState))),
            "learning_rate": draw(positive),
            "weight_decay": draw(positive | st.just(0.0)),
            "precision": draw(st.sampled_from(choices(Precision))),
            "seed": draw(st.integers(0, 2**70)),
        }
    )


def rejected(name: str, value: Any) -> str:
    # A grid of 2x2 patches has 9 offsets, so that 10 heads are too many.
    flat = {"image_size": 8, "patch_size": 4, name: value}
    with pytest.raises(ConfigError) as caught:
        TrialConfig.from_flat(flat)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in INVALID for value in INVALID[name]])
def test_an_invalid_value_is_named_in_one_line(name: str, value: Any) -> None:
    message = rejected(name, value)
    assert "\n" not in message
    assert message.startswith(f"{name} {value!r} "), message
    assert len(message) > len(f"{name} {value!r} ") + 10, "the rule is missing"


def test_every_parameter_with_limits_is_checked() -> None:
    assert set(INVALID) | WITHOUT_LIMITS == set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention_sharpness", INF), ("mlp_ratio", INF), ("mlp_ratio", 0.001)],
)
def test_a_value_that_cannot_be_trained_is_rejected(name: str, value: float) -> None:
    assert rejected(name, value).startswith(f"{name} {value!r} ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_fraction", 1.0),
        ("num_heads", 9),
        ("patch_size", 1),
        ("patch_size", 8),
        ("warmup_fraction", 0.0),
        ("gradient_clip_norm", 0.0),
        ("weight_decay", 0.0),
        ("epochs", 0),
        ("seed", 0),
    ],
)
def test_the_edge_of_what_is_valid_is_accepted(name: str, value: Any) -> None:
    flat = {"image_size": 8, "patch_size": 4, "num_heads": 1, name: value}
    assert TrialConfig.from_flat(flat).flat()[name] == value


def test_messages_say_what_is_valid() -> None:
    assert "one of 1, 2, 4, 8" in rejected("patch_size", 3)
    assert "at most 9" in rejected("num_heads", 10) and "2x2" in rejected("num_heads", 10)
    assert "random, two_phase, conv_structured" in rejected("init_scheme", "twophase")


def test_an_unknown_parameter_is_named_with_the_valid_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown parameter 'learning_rat'; valid are .*\blearning_rate\b"
    ) as caught:
        TrialConfig.from_flat({"learning_rat": 1e-3})
    assert "\n" not in str(caught.value)


@given(trial_configs())
def test_the_flat_form_is_the_whole_configuration(config: TrialConfig) -> None:
    assert list(config.flat()) == list(PARAMETERS)
    assert TrialConfig.from_flat(config.flat()) == config


@given(trial_configs())
def test_text_from_a_tracking_store_gives_the_configuration_back(config: TrialConfig) -> None:
    parsed = {name: PARAMETERS[name].parse(as_text(value)) for name, value in config.flat().items()}
    assert TrialConfig.from_flat(parsed) == config
    assert {name: type(value) for name, value in parsed.items()} == {n: type(v) for n, v in config.flat().items()}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("max_test_images", "0"),
        ("inner_dim", "0"),
        ("convolution_learning_rate", "0.0"),
        ("convolution_warmup_fraction", "-1.0"),
    ],
)
def test_a_number_that_stood_for_not_set_is_still_read(name: str, before: str) -> None:
    """Stores made before there was None hold it, and so do command lines in papers."""
    parameter = PARAMETERS[name]
    assert parameter.default is None
    assert [parameter.parse(text) for text in (before, "auto", "None")] == [None] * 3
    assert with_numbers({name: None}, PARAMETERS) == {name: parameter.type(before)}
    assert as_text(None) == "auto" and with_numbers({name: 1}, PARAMETERS) == {name: 1}


def test_only_what_may_be_left_open_is_auto() -> None:
    assert {name for name, parameter in PARAMETERS.items() if parameter.unset is not None} == {
        *("max_test_images", "inner_dim", "convolution_learning_rate", "convolution_warmup_fraction")
    }
    assert PARAMETERS["gradient_clip_norm"].parse("0.0") == 0.0, "0 clips nothing: a value as any other"
    assert PARAMETERS["dataset"].parse("auto") == "auto"
    with pytest.raises(ValueError, match="auto"):
        PARAMETERS["depth"].parse("auto")


def test_truth_is_read_from_text() -> None:
    parameter = Parameter(name="flag", type=bool, default=False, part="training")
    assert [parameter.parse(text) for text in ("True", "False")] == [True, False]
    with pytest.raises(ValueError, match="index"):
        parameter.parse("yes")


def test_neutral_values_never_change() -> None:
    """Keys leave them out: were one to change, two different trainings would have the same key. Where a default
    changes, the field's `neutral` keeps the value from before; this table only grows."""
    assert {name: parameter.neutral for name, parameter in PARAMETERS.items()} == {
        "dataset": "digits",
        "data_fingerprint": "",
        "data_fraction": 1.0,
        "validation_fraction": 0.1,
        "max_validation_images": 2000,
        "max_test_images": None,
        "augmentation": "shift",
        "augmentation_policy": "none",
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "erasing_probability": 0.0,
        "noise_std": 0.0,
        "image_size": 8,
        "in_channels": 1,
        "num_classes": 10,
        "dimensions": 2,
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 9,
        "head_dim": 16,
        "inner_dim": None,
        "mlp_ratio": 4.0,
        "position_encoding": "relative",
        "attention_blocks": None,
        "window_size": None,
        "window_shift": None,
        "init_scheme": "random",
        "attention_sharpness": 4.0,
        "attention_leak": None,
        "convolution_form": "factorized",
        "convolution_fraction": 0.5,
        "convolution_learning_rate": None,
        "convolution_warmup_fraction": None,
        "epochs": 20,
        "min_steps": 400,
        "budget_unit": "steps",
        "batch_size": 64,
        "learning_rate": 1e-3,
        "position_learning_rate_factor": 1.0,
        "transferred_learning_rate_factor": 1.0,
        "optimizer_state": "reset",
        "schedule": "per_phase",
        "weight_decay": 0.05,
        "decay_towards": "zero",
        "warmup_fraction": 0.1,
        "label_smoothing": 0.0,
        "gradient_clip_norm": 1.0,
        "stochastic_depth": 0.0,
        "precision": "float32",
        "evaluations": 10,
        "seed": 0,
    }


def test_parts_have_no_parameter_in_common() -> None:
    parts = [getattr(TrialConfig(), f.name) for f in dataclasses.fields(TrialConfig) if f.name != "seed"]
    names = [f.name for part in parts for f in dataclasses.fields(part)]
    assert sorted([*names, "seed"]) == sorted(PARAMETERS)


def test_defaults_are_those_of_the_parameters() -> None:
    assert TrialConfig().flat() == {name: parameter.default for name, parameter in PARAMETERS.items()}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().data_fraction = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("epochs", "min_steps", "batch_size", "num_images", "steps"),
    [
        (20, 400, 64, 64, 400),  # the minimum
        (20, 0, 64, 640, 200),
        (20, 0, 64, 641, 201),  # part of a batch counts as one
        (3, 0, 64, 10, 2),  # two at least: one for each phase
        (0, 0, 64, 1000, 2),
        (0, 7, 64, 1000, 7),
        (1, 0, 1, 5, 5),
    ],
)
def test_total_steps(epochs: int, min_steps: int, batch_size: int, num_images: int, steps: int) -> None:
    config = TrainingConfig(epochs=epochs, min_steps=min_steps, batch_size=batch_size)
    assert config.total_steps(num_images) == steps


def test_grid_size_is_the_number_of_patches_along_a_side() -> None:
    assert ModelConfig(image_size=32, patch_size=4).grid_size == 8
