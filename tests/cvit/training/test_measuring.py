"""What a training measures, and when it has diverged."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cvit.training.loop as loop
from cvit.config import InitSchemeName
from cvit.data.augment import apply_augmentation
from cvit.data.datasets import Dataset
from cvit.results import StageResult, load_result
from cvit.storage import Storage
from cvit.training.batches import draw_batches, pack_data
from cvit.training.pack import TrainingPack
from tests.cvit.training.tiny import CPU, SCHEMES, measured, reports_of, stages, train, train_all, weights_of


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
