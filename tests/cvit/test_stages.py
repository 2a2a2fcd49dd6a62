from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.config import PARAMETERS, InitSchemeName, TrialConfig
from cvit.fits import PARAMETERS as EXPRESSIVITY_PARAMETERS
from cvit.fits import ExpressivityConfig, FitStage
from cvit.init.schemes import SCHEMES
from cvit.parameters import Parameter, choices
from cvit.stages import SCIENCE_VERSION, TrainingStage, depends_on, short_hash, stage_key, stages_of

# Every parameter by value, so that a changed default changes no key here.
FLAT: dict[str, Any] = {
    "dataset": "digits",
    "data_fingerprint": "0123456789abcdef",
    "data_fraction": 0.5,
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
    "patch_size": 2,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 9,
    "head_dim": 8,
    "inner_dim": None,
    "mlp_ratio": 4.0,
    "position_encoding": "relative",
    "attention_blocks": None,
    "window_size": None,
    "window_shift": None,
    "init_scheme": "two_phase",
    "attention_sharpness": 4.0,
    "attention_leak": None,
    "convolution_form": "factorized",
    "convolution_fraction": 0.25,
    "convolution_learning_rate": None,
    "convolution_warmup_fraction": None,
    "epochs": 10,
    "min_steps": 40,
    "budget_unit": "steps",
    "batch_size": 16,
    "learning_rate": 0.001,
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
NUM_IMAGES = 160
OTHER: dict[str, Any] = {
    "dataset": "renamed",
    "data_fingerprint": "fedcba9876543210",
    "data_fraction": 0.25,
    "validation_fraction": 0.2,
    "max_validation_images": 50,
    "max_test_images": 100,
    "augmentation": "none",
    "augmentation_policy": "trivial_augment",
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "erasing_probability": 0.1,
    "noise_std": 0.1,
    "image_size": 16,
    "in_channels": 3,
    "num_classes": 9,
    "dimensions": 3,
    "patch_size": 1,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "head_dim": 4,
    "inner_dim": 36,
    "mlp_ratio": 2.0,
    "position_encoding": "relative+absolute",
    "attention_blocks": 1,
    "window_size": 2,
    "window_shift": 0,
    "init_scheme": "conv_structured",
    "attention_sharpness": 8.0,
    "attention_leak": 0.01,
    "convolution_form": "full",
    "convolution_fraction": 0.5,
    "convolution_learning_rate": 0.002,
    "convolution_warmup_fraction": 0.2,
    "epochs": 20,
    "min_steps": 400,
    "budget_unit": "flops",
    "batch_size": 8,
    "learning_rate": 0.002,
    "position_learning_rate_factor": 30.0,
    "transferred_learning_rate_factor": 0.1,
    "optimizer_state": "carried",
    "schedule": "joint",
    "weight_decay": 0.0,
    "decay_towards": "start",
    "warmup_fraction": 0.0,
    "label_smoothing": 0.1,
    "gradient_clip_norm": 0.0,
    "stochastic_depth": 0.1,
    "precision": "bfloat16",
    "evaluations": 20,
    "seed": 1,
}


def stages(num_images: int = NUM_IMAGES, **changes: Any) -> tuple[TrainingStage, ...]:
    return stages_of(TrialConfig.from_flat(FLAT | changes), num_images)


def keys(**changes: Any) -> tuple[str, ...]:
    return tuple(stage.key for stage in stages(**changes))


def test_the_table_of_changes_is_complete() -> None:
    assert set(FLAT) == set(OTHER) == set(PARAMETERS)
    assert all(FLAT[name] != OTHER[name] for name in FLAT)


@given(
    num_images=st.integers(1, 5000),
    epochs=st.integers(0, 5),
    min_steps=st.integers(0, 100),
    batch_size=st.integers(1, 128),
    convolution_fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    evaluations=st.integers(1, 300),
)
def test_both_phases_together_get_the_steps_of_one(num_images: int, **training: Any) -> None:
    (random,) = stages(num_images, init_scheme="random", **training)
    convolution, attention = stages(num_images, init_scheme="two_phase", **training)
    assert (convolution.phase, attention.phase, random.phase) == ("convolution", "attention", "attention")
    assert min(convolution.steps, attention.steps) >= 1
    assert convolution.steps + attention.steps == random.steps == attention.last_step
    assert (convolution.first_step, attention.first_step, random.first_step) == (0, convolution.steps, 0)
    assert attention.parent == convolution and convolution.parent is None and random.parent is None
    # Curves of all schemes have their points at the same steps.
    assert convolution.evaluation_interval == attention.evaluation_interval == random.evaluation_interval >= 1


def test_the_convolution_phase_takes_its_share() -> None:
    convolution, attention = stages(convolution_fraction=0.25)
    assert (convolution.steps, attention.steps, convolution.evaluation_interval) == (25, 75, 10)


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"init_scheme"}))
def test_a_parameter_changes_the_keys_where_it_changes_the_outcome(name: str) -> None:
    """Every parameter is either known here to be without influence, or changes the keys of both stages.

    The unit of the budget changes the number of steps, where phases cost differently.
    """
    convolution, attention = keys()
    other_convolution, other_attention = keys(**{name: OTHER[name]})
    without_influence = {"dataset", "window_shift"}  # there are no windows here
    first_phase_only = {"attention_sharpness", "attention_leak", "position_learning_rate_factor"}
    first_phase_only |= {"transferred_learning_rate_factor", "optimizer_state", "decay_towards", "attention_blocks"}
    first_phase_only |= {"window_size"}
    assert (other_attention != attention) == (name not in without_influence)
    assert (other_convolution != convolution) == (name not in without_influence | first_phase_only)


def test_the_convolution_phase_is_shared_over_sharpness() -> None:
    assert {keys(attention_sharpness=s)[0] for s in (2.0, 4.0, 8.0)} == {keys()[0]}
    assert len({keys(attention_sharpness=s)[1] for s in (2.0, 4.0, 8.0)}) == 3


@pytest.mark.parametrize("changes", [{}, {"convolution_form": "full"}, {"convolution_form": "pixel"}])
def test_the_convolution_phase_is_shared_by_hybrids_of_any_number_of_blocks(changes: dict[str, Any]) -> None:
    """And attention in all blocks is one training, whichever way it is asked for."""
    trials = {blocks: keys(attention_blocks=blocks, depth=3, **changes) for blocks in (1, 2, 3, None)}
    assert len({convolution for convolution, _ in trials.values()}) == 1
    assert len({attention for _, attention in trials.values()}) == 3 and trials[3] == trials[None]


@pytest.mark.parametrize("scheme", choices(InitSchemeName))
def test_a_hybrid_is_a_training_of_its_own_but_for_references(scheme: str) -> None:
    trials = [stages(init_scheme=scheme, attention_blocks=blocks, depth=3)[-1] for blocks in (1, 2, 3, None)]
    expected = 1 if SCHEMES[scheme].is_reference else 3
    assert len({trial.key for trial in trials}) == len({trial.architecture for trial in trials}) == expected
    assert len({trial.shape for trial in trials}) == len({trial.cost_kind for trial in trials}) == expected


def test_the_convolution_phase_does_not_depend_on_the_scheme_that_follows() -> None:
    convolution = stages()[0]
    alone = TrainingStage(
        convolution.phase,
        TrialConfig.from_flat(FLAT | {"init_scheme": "conv_structured"}),
        convolution.steps,
        convolution.first_step,
        convolution.evaluation_interval,
    )
    assert alone.key == convolution.key


@pytest.mark.parametrize(
    "name", ["attention_sharpness", "attention_leak", "convolution_form", "convolution_fraction", "dataset"]
)
def test_random_does_not_depend_on_what_it_does_not_use(name: str) -> None:
    assert keys(init_scheme="random", **{name: OTHER[name]}) == keys(init_scheme="random")


@pytest.mark.parametrize("name", ["attention_sharpness", "convolution_form"])
def test_conv_structured_depends_on_what_it_uses(name: str) -> None:
    assert keys(init_scheme="conv_structured", **{name: OTHER[name]}) != keys(init_scheme="conv_structured")


STAGE_ONLY = {"dataset", "convolution_fraction", "convolution_learning_rate", "convolution_warmup_fraction"}
STAGE_ONLY |= {"transferred_learning_rate_factor", "optimizer_state", "schedule", "window_shift"}
"""Without influence on the stages of any scheme of one phase."""
START = {"attention_sharpness", "attention_leak"}
NOT_USED: dict[str, set[str]] = {
    "joint": {"convolution_form"},
    "mimetic": START | {"convolution_form", "budget_unit"},
    "impulse": {"convolution_form", "budget_unit"},
    "local": START | {"convolution_form", "budget_unit"},
    # It has no position term here, and no attention.
    "convolution": START | {"decay_towards", "position_learning_rate_factor", "attention_blocks", "window_size"},
    "resnet": START
    | {"convolution_form", "patch_size", "num_heads", "head_dim", "inner_dim", "position_encoding"}
    | {"decay_towards", "position_learning_rate_factor", "stochastic_depth", "attention_blocks", "window_size"},
}


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"init_scheme"}))
@pytest.mark.parametrize("scheme", NOT_USED)
def test_a_scheme_depends_on_exactly_what_it_uses(scheme: str, name: str) -> None:
    changed = keys(init_scheme=scheme, **{name: OTHER[name]}) != keys(init_scheme=scheme)
    assert changed == (name not in STAGE_ONLY | NOT_USED[scheme])


@pytest.mark.parametrize("scheme", ["convolution", "resnet"])
def test_a_reference_has_one_stage_of_the_whole_budget(scheme: str) -> None:
    (reference,), (random,) = stages(init_scheme=scheme), stages(init_scheme="random")
    assert reference.phase == "reference" and reference.parent is None
    assert (reference.steps, reference.first_step) == (random.steps, 0)
    assert reference.evaluation_interval == random.evaluation_interval


def test_architectures_that_differ_are_told_apart() -> None:
    schemes = ("two_phase", "joint", "convolution", "resnet")
    found = [stage.architecture for scheme in schemes for stage in stages(init_scheme=scheme)]
    assert len(set(found)) == len(found) == 5
    assert stages(init_scheme="mimetic")[0].architecture == stages(init_scheme="random", seed=1)[0].architecture


def test_schemes_have_keys_of_their_own() -> None:
    found = [key for scheme in choices(InitSchemeName) for key in keys(init_scheme=scheme)]
    assert len(set(found)) == len(found) == len(choices(InitSchemeName)) + 1


def test_the_attention_key_depends_on_its_parent() -> None:
    convolution, attention = stages()
    other_parent = stages(learning_rate=0.01)[0]
    adopted = TrainingStage(
        attention.phase,
        attention.trial,
        attention.steps,
        attention.first_step,
        attention.evaluation_interval,
        other_parent,
    )
    assert other_parent.key != convolution.key
    assert adopted.key != attention.key


def test_steps_count_and_not_how_they_were_asked_for() -> None:
    assert keys(epochs=0, min_steps=100) == keys()  # 10 epochs of 160 images in batches of 16
    assert keys(evaluations=11, epochs=0, min_steps=110) != keys()


def test_golden_keys() -> None:
    """Results that earlier versions stored must be found again: a key may change only where the result does.

    Where training the same configuration has come to give another result, raise SCIENCE_VERSION and put the new keys
    here. Where this fails for any other reason (a parameter added, a hash changed), stored results would be lost.
    """
    assert SCIENCE_VERSION == 1
    assert keys() == ("11b51f1e5f4415ba7968ff3e", "a1b89668388bd06e828e2877")
    assert keys(init_scheme="random") == ("d01fcb40e2238eca338cf0f4",)
    assert keys(init_scheme="conv_structured") == ("943bc783c47a3d29c00db407",)


def test_short_hash_is_that_of_the_canonical_text() -> None:
    # printf '{"a":1,"b":[2.5,null]}' | sha256sum
    assert short_hash({"b": [2.5, None], "a": 1}, 24) == "fbb68c4db7e0dd9e9fbcbf26"
    assert short_hash({"a": 1, "b": [2.5, None]}, 8) == "fbb68c4db7e0dd9e9fbcbf26"[:8]


def test_the_width_of_all_heads_counts_as_the_width_of_each() -> None:
    assert keys(inner_dim=72, head_dim=5) == keys(head_dim=8) == keys()
    assert keys(inner_dim=144) == keys(head_dim=16)


def test_a_full_convolution_phase_is_shared_by_all_heads_that_a_3x3_neighbourhood_holds() -> None:
    """The twin has no heads: training 4 heads of 16 starts from the same convolution as 9 of 8, but 12 need more."""
    first = {
        (heads, width): keys(convolution_form="full", num_heads=heads, head_dim=width)
        for heads in (1, 4, 9, 12)
        for width in (8, 16)
    }
    assert len({k[0] for (heads, _), k in first.items() if heads <= 9}) == 1
    assert first[12, 8][0] == first[12, 16][0] != first[9, 8][0]
    assert len({k[1] for k in first.values()}) == len(first)
    assert keys(num_heads=4)[0] != keys()[0], "a factorized twin has as many offsets as heads"
    alone = {"init_scheme": "convolution", "convolution_form": "full"}
    assert keys(**alone, num_heads=4, head_dim=16) == keys(**alone) != keys(**alone, num_heads=12)


def test_a_key_leaves_out_what_is_neutral_whatever_the_task() -> None:
    plain = Parameter(name="width", type=int, default=3, part="toy", neutral=3)
    changed = Parameter(name="depth", type=int, default=2, part="toy", neutral=1)  # its default was 1 once
    parameters = {"width": plain, "depth": changed}
    assert stage_key("toy", {}, parameters) == stage_key("toy", {"width": 3, "depth": 1}, parameters)
    assert stage_key("toy", {"width": 4, "depth": 2}, parameters) == short_hash(
        {"science_version": SCIENCE_VERSION, "task": "toy", "width": 4, "depth": 2}, 24
    )
    others = [stage_key(task, {"width": 4}, parameters, **more) for task in ("toy", "game") for more in ({}, {"n": 1})]
    assert len({*others, stage_key("toy", {}, parameters)}) == 5


def test_what_was_always_hashed_is_hashed_at_its_neutral_value_too() -> None:
    """The key of version d709f53, spelled out: every field, of what was neutral then nothing but `max_test_images`."""
    stage = stages(init_scheme="random")[0]
    ignored = {"attention_sharpness", "convolution_form", "max_test_images", "dataset", "inner_dim", "epochs"}
    ignored |= {"min_steps", "budget_unit", "evaluations", *(name for name in FLAT if name.startswith("convolution_"))}
    ignored |= {"augmentation_policy", "mixup_alpha", "cutmix_alpha", "erasing_probability", "stochastic_depth"}
    ignored |= {"noise_std", "dimensions"}
    ignored |= {"attention_leak", "position_learning_rate_factor", "transferred_learning_rate_factor"}  # added since
    ignored |= {"optimizer_state", "schedule", "decay_towards", "attention_blocks", "window_size", "window_shift"}
    decisive = {name: value for name, value in stage.trial.flat().items() if name not in ignored}
    place = {"phase": "attention", "steps": 100, "first_step": 0, "evaluation_interval": 10, "parent": None}
    assert stage.key == short_hash({"science_version": 1} | decisive | place, 24)
    assert stage.trial.training.weight_decay == PARAMETERS["weight_decay"].neutral


def test_fits_have_keys_of_their_own() -> None:
    """Golden for the same reason as above; every parameter decides a fit."""
    flat = {
        "kernel_size": 3,
        "patch_size": 2,
        "num_heads": 9,
        "fit_image_size": 8,
        "fit_channels": 8,
        "fit_steps": 400,
        "fit_learning_rate": 0.2,
        "seed": 0,
    }
    other: dict[str, Any] = dict(zip(flat, (5, 4, 8, 16, 4, 200, 0.1, 1), strict=True))
    other |= {"dimensions": 1, "stride": 2, "dilation": 2, "causal": True, "window_size": 2}  # added since
    assert set(other) == set(EXPRESSIVITY_PARAMETERS)

    def key(**changes: Any) -> str:
        return FitStage(ExpressivityConfig.from_flat(flat | changes)).key

    assert len({key(), *(key(**{name: other[name]}) for name in other)}) == 1 + len(other)
    assert key() == "2f81b330b2a75064f67fb01b"


def test_the_convolution_phase_may_have_a_schedule_of_its_own_and_is_then_shared_over_that_of_attention() -> None:
    own: dict[str, Any] = {"convolution_learning_rate": 0.001, "convolution_warmup_fraction": 0.1}
    found = [keys(**own, learning_rate=rate, warmup_fraction=share) for rate in (0.001, 0.1) for share in (0.0, 0.1)]
    assert {convolution for convolution, _ in found} == {keys()[0]}, "0.001 and 0.1 are what FLAT says for both"
    assert len({attention for _, attention in found}) == 4
    convolution, attention = stages(**own, learning_rate=0.1, warmup_fraction=0.0)
    assert (convolution.learning_rate, convolution.warmup_fraction) == (0.001, 0.1)
    assert (attention.learning_rate, attention.warmup_fraction) == (0.1, 0.0)
    assert keys(init_scheme="random", **own) == keys(init_scheme="random")


def test_the_rate_of_position_terms_counts_wherever_there_are_any() -> None:
    absolute: dict[str, Any] = {"position_encoding": "relative+absolute"}
    factor = {"position_learning_rate_factor": 30.0}
    for scheme in ("two_phase", "convolution"):
        plain, changed = keys(**absolute, init_scheme=scheme), keys(**absolute, **factor, init_scheme=scheme)
        assert not set(plain) & set(changed), "the twin learns a position embedding"
    assert keys(**absolute, init_scheme="resnet") == keys(**absolute, **factor, init_scheme="resnet")


def test_without_decay_it_makes_no_difference_what_weights_decay_towards() -> None:
    for scheme in ("two_phase", "random"):
        assert keys(init_scheme=scheme, weight_decay=0.0) == keys(
            init_scheme=scheme, weight_decay=0.0, decay_towards="start"
        )


def test_a_joint_schedule_spans_both_phases_so_that_the_first_depends_on_all_steps() -> None:
    convolution, attention = stages(schedule="joint")
    assert (convolution.schedule_steps, attention.schedule_steps) == (100, 100)
    # The same first 25 steps of a longer trial: shared where each phase has a schedule of its own.
    longer: dict[str, Any] = {"epochs": 0, "min_steps": 50, "convolution_fraction": 0.5, "evaluations": 5}
    assert keys(**longer)[0] == keys()[0]
    assert keys(**longer, schedule="joint")[0] != convolution.key
    own: dict[str, Any] = {"convolution_warmup_fraction": 0.3}
    assert stages(**own, schedule="joint")[0].key == convolution.key, "there is one warm-up, that of the trial"
    assert keys(**own)[0] != keys()[0]


def test_a_leak_is_the_sharpness_that_it_asks_for() -> None:
    """One training has one key, whichever of the two asks for it."""
    leak = keys(attention_leak=0.01)
    sharpness = TrialConfig.from_flat(FLAT | {"attention_leak": 0.01}).attention_sharpness
    assert keys(attention_sharpness=sharpness) == leak == keys(attention_leak=0.01, attention_sharpness=9.0)
    assert len({leak, keys(), keys(attention_leak=0.02)}) == 3


@pytest.mark.parametrize(
    ("scheme", "parameter", "settings", "expected"),
    [
        ("two_phase", "attention_sharpness", {"attention_leak": 0.01}, False),
        ("two_phase", "attention_sharpness", {"attention_leak": None}, True),
        ("convolution", "position_learning_rate_factor", {"position_encoding": "relative"}, False),
        ("convolution", "position_learning_rate_factor", {"position_encoding": "relative+absolute"}, True),
        ("convolution", "position_learning_rate_factor", {}, True),
        ("random", "position_learning_rate_factor", {"position_encoding": "relative"}, True),
        ("random", "decay_towards", {"weight_decay": 0.0}, False),
        ("random", "decay_towards", {"weight_decay": 0.1}, True),
        ("convolution", "decay_towards", {}, False),
        ("random", "optimizer_state", {}, False),
        ("two_phase", "optimizer_state", {}, True),
        ("random", "convolution_form", {"attention_blocks": None}, False),
        ("random", "convolution_form", {"attention_blocks": 1, "depth": 2}, True),
        ("random", "convolution_form", {"attention_blocks": 2, "depth": 2}, False),
        ("joint", "convolution_form", {"attention_blocks": 1, "depth": 2}, False),
        ("convolution", "attention_blocks", {"depth": 2}, False),
        ("random", "attention_blocks", {"depth": 2}, True),
        ("random", "window_size", {}, True),
        ("resnet", "window_size", {}, False),
        ("random", "window_shift", {"window_size": 2}, True),
        ("random", "window_shift", {"window_size": None}, False),
        ("convolution", "window_shift", {"window_size": 2}, False),
    ],
)
def test_a_search_varies_what_has_an_influence(
    scheme: str, parameter: str, settings: dict[str, Any], expected: bool
) -> None:
    """And with these settings, two values of the parameter have keys that differ exactly then."""
    assert depends_on(scheme, parameter, settings) == expected
    if settings:
        changed = keys(init_scheme=scheme, **settings) != keys(
            init_scheme=scheme, **settings, **{parameter: OTHER[parameter]}
        )
        assert changed == expected
