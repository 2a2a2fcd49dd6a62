import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cvit.training.loop as loop
from cvit.config import InitSchemeName, ModelConfig, TrainingConfig, TrialConfig, choices
from cvit.data.augment import apply_augmentation
from cvit.data.datasets import Dataset, describe, load
from cvit.data.subsets import select
from cvit.init.registry import initial_model
from cvit.models.pack import Pack
from cvit.models.vit import VisionTransformer
from cvit.stages import Stage, stages_of
from cvit.storage import Storage
from cvit.training.batches import batch_indices, draw_batches, pack_data
from cvit.training.checkpoint import load_checkpoint, load_weights
from cvit.training.loop import ParentStageMissing, Report, train_pack
from cvit.training.optimizer import AdamW, coefficients, decays
from cvit.training.pack import TrainingPack
from cvit.training.results import StageResult, load_result
from cvit.training.schedule import learning_rate

CPU = torch.device("cpu")
NUM_IMAGES = 1295  # of digits
TINY: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 9,
    "head_dim": 4,
    "mlp_ratio": 2.0,
    "epochs": 0,
    "min_steps": 16,
    "batch_size": 32,
    "evaluations": 8,
    "max_validation_images": 60,
    "learning_rate": 3e-3,
}
SCHEMES: tuple[Any, ...] = choices(InitSchemeName)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order every time, as in a sweep's workers on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(describe("digits", "nowhere", download=False))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "storage"))


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every evaluation that the time spent on checkpoints allows: at the first one of each session."""
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)


def stages(scheme: InitSchemeName = "random", **changes: Any) -> tuple[Stage, ...]:
    return stages_of(TrialConfig.from_flat(TINY | {"init_scheme": scheme} | changes), NUM_IMAGES)


def reports_of(stage: Stage, digits: Dataset, storage: Storage, device: torch.device = CPU) -> Iterator[Report]:
    """The reports of a stage that is trained alone."""
    for reports in train_pack([stage], digits, storage, device):
        yield from (report for _, report in reports)


def train(stage: Stage, digits: Dataset, storage: Storage, device: torch.device = CPU) -> StageResult:
    *_, last = reports_of(stage, digits, storage, device)
    assert last.result is not None
    return last.result


def train_all(trial_stages: tuple[Stage, ...], digits: Dataset, storage: Storage) -> list[StageResult]:
    return [train(stage, digits, storage) for stage in trial_stages]


def measured(result: StageResult) -> list[tuple[str, int, float]]:
    """The points without what differs from run to run: the time."""
    return [(name, step, value) for name, step, value, _ in result.points if name != "images_per_second"]


def weights_of(stage: Stage, storage: Storage) -> dict[str, Tensor]:
    weights = load_weights(storage, stage.key)
    assert weights is not None
    return weights


def assert_same_outcome(stage: Stage, one: Storage, other: Storage) -> None:
    results = load_result(one, stage.key), load_result(other, stage.key)
    assert results[0] is not None and results[1] is not None
    assert measured(results[0]) == measured(results[1])
    assert (results[0].status, results[0].diverged_step) == (results[1].status, results[1].diverged_step)
    assert results[0].initial_loss == results[1].initial_loss
    weights = weights_of(stage, one), weights_of(stage, other)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# Interruption and resumption


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("eager_checkpoints")
def test_a_stage_interrupted_at_every_checkpoint_ends_as_if_it_had_not_been(
    scheme: InitSchemeName, digits: Dataset, tmp_path: Path
) -> None:
    undisturbed, disturbed = Storage.open(str(tmp_path / "a")), Storage.open(str(tmp_path / "b"))
    for stage in stages(scheme):
        train(stage, digits, undisturbed)
        sessions = 0
        while load_result(disturbed, stage.key) is None:
            sessions += 1
            torch.manual_seed(sessions)  # nothing hangs on the global stream
            report = next(reports_of(stage, digits, disturbed, CPU))
            assert report.step > 2 * (sessions - 1)
        assert sessions == stage.steps / stage.evaluation_interval > 2
        assert_same_outcome(stage, undisturbed, disturbed)


@pytest.mark.usefixtures("eager_checkpoints")
def test_with_a_damaged_checkpoint_the_one_before_leads_to_the_same_end(digits: Dataset, tmp_path: Path) -> None:
    undisturbed, disturbed = Storage.open(str(tmp_path / "a")), Storage.open(str(tmp_path / "b"))
    (stage,) = stages()
    train(stage, digits, undisturbed)
    for _ in range(3):
        next(reports_of(stage, digits, disturbed, CPU))
    newest = f"stages/{stage.key}/step-00000006.safetensors"
    disturbed.write(newest, disturbed.read(newest)[:-7])
    found = load_checkpoint(disturbed, stage.key)
    assert found is not None and found[1].step == 4
    train(stage, digits, disturbed)
    assert_same_outcome(stage, undisturbed, disturbed)


def test_a_finished_stage_is_not_trained_again(
    digits: Dataset, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = stages()
    first = train(stage, digits, storage)
    files = {name: storage.read(f"stages/{stage.key}/{name}") for name in storage.names(f"stages/{stage.key}")}
    assert set(files) == {"result.json", "weights.safetensors"}
    monkeypatch.setattr(loop, "_train_interval", lambda *_: pytest.fail("it was trained"))
    reports = list(reports_of(stage, digits, storage, CPU))
    assert reports == [Report(first.points, stage.steps, first)]
    assert files == {name: storage.read(f"stages/{stage.key}/{name}") for name in storage.names(f"stages/{stage.key}")}


@pytest.mark.usefixtures("eager_checkpoints")
def test_reports_together_hold_every_point_once(
    digits: Dataset, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_TIME_SHARE", 1e9)  # checkpoints at every evaluation
    (stage,) = stages()
    reports = list(reports_of(stage, digits, storage, CPU))
    assert [report.step for report in reports] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [report.result is not None for report in reports] == [False] * 7 + [True]
    assert reports[-1].result is not None
    assert [point for report in reports for point in report.points] == reports[-1].result.points


def test_a_checkpoint_holds_weights_and_moments_and_gives_them_back(digits: Dataset) -> None:
    (stage,) = stages()
    data = pack_data(digits, [stage], CPU)
    start = dict(initial_model(stage, None)[0].named_parameters())
    one = TrainingPack([stage], data, [start], CPU)
    one.train(0)
    (state,) = one.states()
    assert state.keys() == {prefix + name for name in start for prefix in ("", "exp_avg/", "exp_avg_sq/")}
    other = TrainingPack([stage], data, [state], CPU)
    assert torch.equal(one.train(2).losses, other.train(2).losses)
    for (name, value), found in zip(one.states()[0].items(), other.states()[0].values(), strict=True):
        assert torch.equal(value, found), name


# What is measured


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_falls_on_digits(scheme: InitSchemeName, digits: Dataset, storage: Storage) -> None:
    trial_stages = stages(scheme, embed_dim=24, min_steps=90, evaluations=6, learning_rate=1e-2)
    results = train_all(trial_stages, digits, storage)
    assert [result.status for result in results] == ["ok"] * len(results)
    losses = [value for result in results for name, _, value, _ in result.points if name == "train/loss"]
    assert len(losses) == 6
    assert losses[-1] < 0.93 * losses[0]  # over three seeds at most 0.88 of it
    (accuracy,) = [value for name, _, value, _ in results[-1].points if name == "test/accuracy"]
    assert accuracy > 0.17  # over three seeds at least 0.21; chance is 0.1, its standard deviation 0.016


def test_curves_of_both_phases_run_on_one_axis(digits: Dataset, storage: Storage) -> None:
    convolution, attention = stages("two_phase")
    first, second = train_all((convolution, attention), digits, storage)
    (random,) = train_all(stages("random"), digits, storage)

    def steps(result: StageResult, metric: str) -> list[int]:
        return [step for name, step, _, _ in result.points if name == metric]

    assert steps(first, "val/accuracy") + steps(second, "val/accuracy") == steps(random, "val/accuracy")
    assert steps(random, "val/accuracy") == list(range(2, 17, 2))
    assert steps(first, "convolution/test_accuracy") == [8] and steps(first, "test/accuracy") == []
    assert steps(second, "test/accuracy") == steps(random, "test/accuracy") == [16]
    for metric in ("transfer/weight_error", "transfer/logit_error", "transfer/val_accuracy"):
        assert steps(second, metric) == [8] and steps(random, metric) == steps(first, metric) == []
    for metric in ("train/loss", "train/accuracy", "val/loss", "lr", "grad_norm", "images_per_second"):
        assert steps(random, metric) == steps(random, "val/accuracy")
    assert second.initial_loss == first.initial_loss


def test_the_transfer_is_measured_on_the_trained_twin(digits: Dataset, storage: Storage) -> None:
    values = {}
    for sharpness in (2.0, 6.0):
        convolution, attention = stages("two_phase", attention_sharpness=sharpness)
        before, after = train_all((convolution, attention), digits, storage)
        (accuracy,) = [value for name, step, value, _ in before.points if (name, step) == ("val/accuracy", 8)]
        values[sharpness] = {name: value for name, step, value, _ in after.points if step == 8} | {"before": accuracy}
    assert values[6.0]["transfer/weight_error"] == 0.0
    assert 0 < values[6.0]["transfer/logit_error"] < 0.1 * values[2.0]["transfer/logit_error"]
    assert values[6.0]["transfer/val_accuracy"] == pytest.approx(values[6.0]["before"], abs=2 / 60)


def test_every_scheme_trains_on_the_same_batches(
    digits: Dataset, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(pack: TrainingPack) -> tuple[Tensor, Tensor]:
        seen.append(batch_of(pack))
        return seen[-1]

    batch_of = TrainingPack._batch
    monkeypatch.setattr(TrainingPack, "_batch", watched)
    by_scheme = []
    for scheme in SCHEMES:
        seen.clear()
        train_all(stages(scheme), digits, storage)
        by_scheme.append(list(seen))
    for batches in by_scheme:
        assert len(batches) == 16
        for (images, labels), (first_images, first_labels) in zip(batches, by_scheme[0], strict=True):
            assert torch.equal(images, first_images) and torch.equal(labels, first_labels)
    seen.clear()
    train_all(stages(seed=1), digits, storage)
    assert not torch.equal(seen[0][1], by_scheme[0][0][1]) and not torch.equal(seen[0][0], by_scheme[0][0][0])


def first_batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    """Normalised, augmented images and labels of the first step, put together by hand."""
    data = pack_data(digits, stages(), CPU)
    places, changes = draw_batches(data, stages(), range(1))
    images = apply_augmentation(data.train.images[places[0, 0]], changes[0, 0])
    return data.normalised(images[None])[0], data.train.labels[places[0, 0]]


def test_the_first_loss_is_that_of_the_untrained_model(digits: Dataset, storage: Storage) -> None:
    result = train(stages()[0], digits, storage)
    model = loop.initial_model(stages()[0], None)[0]
    images, labels = first_batch(digits)
    expected = torch.nn.functional.cross_entropy(model(images), labels)
    assert result.initial_loss == pytest.approx(float(expected.detach()), rel=1e-6)


def test_label_smoothing_and_precision_have_an_influence(digits: Dataset, storage: Storage) -> None:
    plain = train(stages()[0], digits, storage)
    smoothed = train(stages(label_smoothing=0.2)[0], digits, storage)
    half = train(stages(precision="bfloat16")[0], digits, storage)
    assert abs(smoothed.initial_loss - plain.initial_loss) > 1e-3
    assert 0 < abs(half.initial_loss - plain.initial_loss) < 0.05
    assert half.status == "ok"


def test_gradient_clipping_of_zero_clips_nothing(digits: Dataset, tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    trained = {clip: stages(gradient_clip_norm=clip, learning_rate=0.1)[0] for clip in (0.0, 1e6, 1e-9)}
    results = {clip: train(stage, digits, storage) for clip, stage in trained.items()}
    assert measured(results[0.0]) == measured(results[1e6])
    none, high, low = (weights_of(trained[clip], storage) for clip in (0.0, 1e6, 1e-9))
    assert all(torch.equal(value, high[name]) for name, value in none.items())
    assert not torch.equal(none["head.weight"], low["head.weight"])
    norms = {clip: [v for name, _, v, _ in result.points if name == "grad_norm"] for clip, result in results.items()}
    assert max(norms[0.0]) > 1, "no gradient is large enough to be clipped by the default"
    assert min(norms[1e-9]) > 1e-3, "the norm reported is that before clipping"


# Divergence


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_divergence_is_a_result(scheme: InitSchemeName, rate: float, digits: Dataset, storage: Storage) -> None:
    changes = {"learning_rate": rate, "gradient_clip_norm": 0.0, "warmup_fraction": 0.0}
    stage = stages(scheme, **changes)[0]
    result = train(stage, digits, storage)
    assert result.status == "diverged"
    assert result.diverged_step is not None and 0 < result.diverged_step <= stage.last_step
    assert math.isfinite(result.initial_loss)
    assert all(math.isfinite(value) for _, _, value, _ in result.points)
    assert load_result(storage, stage.key) == result


def test_the_step_of_the_first_value_that_is_not_finite_is_told(digits: Dataset, storage: Storage) -> None:
    # The first step is taken from finite weights and makes them about 1e30: the second one overflows.
    stage = stages(learning_rate=1e30, gradient_clip_norm=0.0, warmup_fraction=0.0)[0]
    *_, last = reports_of(stage, digits, storage, CPU)
    assert last.result is not None and last.result.diverged_step == 1
    assert last.step == 2
    assert "test/accuracy" not in {name for name, *_ in last.result.points}


def test_a_loss_that_ends_above_its_start_has_diverged(digits: Dataset, storage: Storage) -> None:
    stage = stages(learning_rate=30.0, warmup_fraction=0.5)[0]
    result = train(stage, digits, storage)
    losses = [value for name, _, value, _ in result.points if name == "train/loss"]
    assert len(losses) == 8 and losses[-1] > 100 * result.initial_loss
    assert (result.status, result.diverged_step) == ("diverged", 16)


def test_the_noise_of_batches_is_no_divergence(digits: Dataset, storage: Storage) -> None:
    """A model that learns nothing ends at its start, give or take what batches differ by."""
    above = 0
    for seed in range(6):
        result = train(stages(learning_rate=1e-12, min_steps=4, evaluations=2, seed=seed)[0], digits, storage)
        losses = [value for name, _, value, _ in result.points if name == "train/loss"]
        above += losses[-1] > result.initial_loss
        assert (result.status, result.diverged_step) == ("ok", None)
    assert above > 0, "no stage ended above its start"


def test_the_second_phase_is_judged_by_the_start_of_the_first(digits: Dataset, storage: Storage) -> None:
    """A transfer that costs something at first is no divergence, while the loss stays below the trial's start."""
    convolution, attention = stages("two_phase", min_steps=40, evaluations=4, attention_sharpness=0.01)
    first, second = train_all((convolution, attention), digits, storage)
    assert second.initial_loss == first.initial_loss
    assert second.status == "ok"


# Parents


def test_a_missing_parent_is_named(digits: Dataset, storage: Storage) -> None:
    convolution, attention = stages("two_phase")
    with pytest.raises(ParentStageMissing, match=convolution.key):
        next(reports_of(attention, digits, storage, CPU))


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_an_altered_parent_is_not_used(name: str, digits: Dataset, storage: Storage) -> None:
    convolution, attention = stages("two_phase")
    train(convolution, digits, storage)
    path = f"stages/{convolution.key}/{name}"
    storage.write(path, storage.read(path)[:-2])
    with pytest.raises(ParentStageMissing, match=convolution.key):
        next(reports_of(attention, digits, storage, CPU))


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_an_altered_parent_is_trained_anew(name: str, digits: Dataset, storage: Storage) -> None:
    convolution, attention = stages("two_phase")
    train(convolution, digits, storage)
    weights, path = weights_of(convolution, storage), f"stages/{convolution.key}/{name}"
    storage.write(path, storage.read(path)[:-2])
    train(convolution, digits, storage)
    anew = weights_of(convolution, storage)
    assert all(torch.equal(value, anew[name]) for name, value in weights.items())
    assert train(attention, digits, storage).status == "ok"


# Batches


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(num_images: int, batch_size: int, seed: int, first_epoch: int) -> None:
    begin, end = first_epoch * num_images, (first_epoch + 2) * num_images
    batches = range(begin // batch_size, -(-end // batch_size))
    parts = [batch_indices(step, batch_size, num_images, seed) for step in batches]
    assert all(part.shape == (batch_size,) for part in parts)
    stream = torch.cat(parts)[begin - batches.start * batch_size :]
    for epoch in range(2):
        taken = stream[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(taken.tolist()) == list(range(num_images))


def test_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(batch_indices(step, 30, 30, seed).tolist()) for step in range(4) for seed in range(3)}
    assert len(orders) == 12


def test_a_batch_reaches_over_several_epochs_of_a_small_subset() -> None:
    batch = batch_indices(0, 64, 10, seed=0)
    assert torch.bincount(batch, minlength=10).tolist() == pytest.approx([6.4] * 10, abs=0.7)


def test_a_batch_does_not_depend_on_what_was_asked_for_before() -> None:
    late = batch_indices(1000, 32, 100, seed=0)
    for step in range(0, 1000, 50):
        batch_indices(step, 32, 100, seed=1)
    assert torch.equal(batch_indices(1000, 32, 100, seed=0), late)


def test_training_images_are_those_of_each_members_subset(digits: Dataset) -> None:
    members = [
        stages(data_fraction=fraction, seed=seed, augmentation="none", batch_size=16)[0]
        for fraction, seed in ((0.1, 4), (0.1, 5), (0.3, 4))
    ]
    data = pack_data(digits, members, CPU)
    places, changes = draw_batches(data, members, range(3, 5))
    assert places.shape == (2, 3, 16) and not changes.any()
    assert len(data.subsets[0]) == pytest.approx(NUM_IMAGES / 10, abs=5)
    assert set(data.subsets[0].tolist()) < set(data.subsets[2].tolist()), "subsets of a seed are nested"
    for member, stage in enumerate(members):
        config = stage.trial.data
        chosen = select(digits.train.labels, config.data_fraction, config.validation_fraction, stage.trial.seed).train
        subset = torch.from_numpy(digits.train.images[chosen])
        index = batch_indices(4, 16, len(chosen), seed=stage.trial.seed)
        assert torch.equal(data.train.images[places[1, member]], subset[index])
        assert torch.equal(data.train.labels[places[1, member]], torch.from_numpy(digits.train.labels[chosen])[index])
        everything = data.of([member]).normalised(subset[None])
        assert abs(float(everything.mean())) < 1e-5 and float(everything.std()) == pytest.approx(1, abs=1e-3)
    held_out = {image.numpy().tobytes() for image in data.validation.images}
    assert not held_out & {image.numpy().tobytes() for image in data.train.images}


# Learning rate and optimiser


@given(
    total=st.integers(2, 2000),
    peak=st.floats(1e-6, 1e3),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_the_schedule_rises_linearly_and_falls_to_zero(total: int, peak: float, warmup: float) -> None:
    rates = [learning_rate(step, total, peak, warmup) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    warm = round(warmup * total)
    assert rates[:warm] == pytest.approx([peak * (i + 1) / warm for i in range(warm)])
    if warm < total:
        assert rates[warm] == peak
        falling = rates[warm:]
        assert all(later < earlier for earlier, later in pairwise(falling))
        # The last of n steps of a cosine from peak to zero: sin²(π / 2n) of the peak.
        assert rates[-1] == pytest.approx(peak * math.sin(math.pi / 2 / len(falling)) ** 2)


def test_the_schedule_by_numbers() -> None:
    assert [learning_rate(i, 8, 2.0, 0.5) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    cosine = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    assert [learning_rate(i, 8, 2.0, 0.5) for i in range(4, 8)] == pytest.approx(cosine)
    assert [learning_rate(i, 4, 2.0, 0.0) for i in range(4)] == pytest.approx(cosine)
    assert learning_rate(9999, 10000, 1.0, 0.1) < 1e-7


def test_each_phase_has_a_schedule_of_its_own(digits: Dataset, storage: Storage) -> None:
    results = train_all(stages("two_phase", warmup_fraction=0.5), digits, storage)
    rates = [[value / 3e-3 for name, _, value, _ in result.points if name == "lr"] for result in results]
    # 8 steps each; at their 2nd, 4th, 6th and 8th
    expected = [0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5 * (1 + math.cos(3 * math.pi / 4))]
    assert rates == [pytest.approx(expected), pytest.approx(expected)]


@pytest.mark.parametrize(
    ("phase", "form", "mixing"),
    [
        ("attention", "factorized", {"query.weight", "key.weight", "value.weight", "output.weight"}),
        ("convolution", "factorized", {"value.weight", "output.weight"}),
        ("convolution", "full", {"weight"}),
    ],
)
def test_weight_decay_spares_biases_norms_and_position_terms(phase: str, form: Any, mixing: set[str]) -> None:
    config = ModelConfig(patch_size=2, embed_dim=16, depth=1, position_encoding="relative+absolute")
    model = VisionTransformer(config, phase, form)
    pack = Pack(model, 2, CPU)
    start = dict(model.named_parameters())
    names = {name for name, parameter in start.items() if decays(name, parameter.shape)}
    assert names == {
        "patch_embedding.weight",
        "blocks.0.mlp.0.weight",
        "blocks.0.mlp.2.weight",
        "head.weight",
    } | {f"blocks.0.mixing.{name}" for name in mixing}
    for member in range(2):
        pack.put(member, pack.matrix, start)
    configs = [TrainingConfig(weight_decay=0.1), TrainingConfig(weight_decay=0.0)]
    nothing, moving = torch.zeros_like(pack.matrix), torch.ones(2, 1, dtype=torch.bool)
    factors = torch.tensor(coefficients([0.5, 0.5], configs, 0))
    # Without a gradient there is decay alone, by learning rate times weight decay.
    AdamW(pack, configs).step(pack.matrix, nothing, nothing[:, :1], factors, moving)
    decayed, spared = pack.taken(pack.matrix)
    for name, parameter in start.items():
        torch.testing.assert_close(decayed[name], parameter.detach() * (0.95 if name in names else 1.0))
        assert torch.equal(spared[name], parameter.detach())


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.01), ("bfloat16", 0.05)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gpu_measures_what_the_cpu_measures(
    scheme: InitSchemeName, precision: str, tolerance: float, digits: Dataset, tmp_path: Path
) -> None:
    cuda = torch.device("cuda")
    cpu_storage, gpu_storage = Storage.open(str(tmp_path / "cpu")), Storage.open(str(tmp_path / "gpu"))
    for reference, stage in zip(stages(scheme), stages(scheme, precision=precision), strict=True):
        expected, found = train(reference, digits, cpu_storage), train(stage, digits, gpu_storage, cuda)
        assert found.status == "ok"
        assert found.device == torch.cuda.get_device_name(cuda)
        assert found.initial_loss == pytest.approx(expected.initial_loss, rel=tolerance)
        losses = [[v for name, _, v, _ in result.points if name == "train/loss"] for result in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance)
        assert all(value.device == CPU for value in weights_of(stage, gpu_storage).values())


@pytest.mark.gpu
@pytest.mark.usefixtures("eager_checkpoints")
def test_a_stage_goes_on_from_its_checkpoint_on_a_gpu(digits: Dataset, tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    (stage,) = stages()
    undisturbed, disturbed = Storage.open(str(tmp_path / "a")), Storage.open(str(tmp_path / "b"))
    expected = train(stage, digits, undisturbed, cuda)
    assert next(reports_of(stage, digits, disturbed, cuda)).result is None
    found = train(stage, digits, disturbed, cuda)
    for (name, step, value), reference in zip(measured(found), measured(expected), strict=True):
        assert (name, step) == reference[:2]
        assert value == pytest.approx(reference[2], rel=0.01, abs=0.01)
