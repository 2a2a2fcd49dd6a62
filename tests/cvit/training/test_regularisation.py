"""Regularisation of a pack: the same draws for every scheme, members as alone, and the loss of mixed labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

import cvit.training.pack as training_pack
from cvit.data.augment import apply_augmentation
from cvit.data.datasets import Dataset
from cvit.data.erasing import erased
from cvit.data.policies import apply_policy, code_table
from cvit.init.registry import blank_model, initial_model
from cvit.models.stochastic_depth import branch_scales, drop_probabilities
from cvit.parameters import ConfigError
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training.batches import LabelledImages, PackData, draw_batches, pack_data
from cvit.training.loop import train_pack
from cvit.training.pack import TrainingPack
from cvit.training.regularisation import Regularisation
from tests.cvit.training.test_pack import assert_same, outcome, stage, train
from tests.cvit.training.tiny import CPU, SCHEMES, stages

EVERYTHING: dict[str, Any] = {
    "augmentation_policy": "trivial_augment",
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "erasing_probability": 0.5,
    "stochastic_depth": 0.4,
}
KINDS = ["augmentation policy", "erasing", "mixing", "stochastic depth"]
IMAGES = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)


def regularisation(*members: TrainingStage) -> Regularisation:
    return Regularisation(members, IMAGES, 4, CPU)


def pack_of(members: list[TrainingStage], digits: Dataset) -> TrainingPack:
    states = [initial_model(member, None)[0].state_dict() for member in members]
    return TrainingPack(members, pack_data(digits, members, CPU), states, CPU)


def one_of_each() -> list[TrainingStage]:
    """Members that differ in what regularises them, one of them in nothing."""
    changes: list[dict[str, Any]] = [
        {},
        EVERYTHING,
        {"augmentation_policy": "rand_augment", "stochastic_depth": 0.1},
        {"cutmix_alpha": 1.0, "label_smoothing": 0.1},
        {"mixup_alpha": 0.2, "erasing_probability": 1.0, "augmentation": "none"},
    ]
    return [stage(seed=number, **change) for number, change in enumerate(changes)]


def test_draws_are_those_of_seed_and_step_alone() -> None:
    everything: dict[str, Any] = EVERYTHING | {"depth": 2}
    by_scheme = {scheme: regularisation(stages(scheme, **everything)[-1]).draw(range(8)) for scheme in SCHEMES}
    first = by_scheme["random"]
    assert list(first) == KINDS and all(rows.shape[:2] == (8, 1) for rows in first.values())
    for scheme, draws in by_scheme.items():
        assert list(draws) == (KINDS[:-1] if scheme == "resnet" else KINDS)
        assert all(torch.equal(rows, first[kind]) for kind, rows in draws.items()), scheme
    later = regularisation(stages(**everything)[0]).draw(range(3, 5))
    assert all(torch.equal(rows, first[kind][3:5]) for kind, rows in later.items())
    others = regularisation(stages(seed=1, **everything)[0], stages(**everything)[0]).draw(range(8))
    for kind, rows in others.items():
        assert torch.equal(rows[:, 1], first[kind][:, 0]) and not torch.equal(rows[:, 0], first[kind][:, 0])


def test_both_phases_of_a_trial_see_the_draws_of_one() -> None:
    convolution, attention = stages("two_phase", **EVERYTHING)
    for phase in (convolution, attention):
        drawn = regularisation(phase).draw(range(8))
        whole = regularisation(stages(**EVERYTHING)[0]).draw(range(8))
        assert all(torch.equal(drawn[kind], whole[kind]) for kind in KINDS)


@pytest.mark.parametrize("changes", [{}, {"augmentation": "none"}])
def test_a_pack_without_regularisation_has_no_tables_and_changes_nothing(changes: dict[str, Any]) -> None:
    found = regularisation(*stages(**changes))
    row, images = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, 1, 8, 8)
    assert found.draw(range(5)) == {}
    assert found.augmented(images, row) is images
    assert found.changed(images, row) is images
    assert found.label_weights(row) is None and found.branch_scales(row) is None


def test_members_end_as_alone_whatever_regularises_the_others(digits: Dataset, tmp_path: Path) -> None:
    members = one_of_each()
    together, alone = Storage.open(str(tmp_path / "together")), Storage.open(str(tmp_path / "alone"))
    train(members, digits, together)
    for member in members:
        train([member], digits, alone)
        assert_same(member, together, alone)
    losses = {outcome(member, together)[0].initial_loss for member in members}
    assert len(losses) == len(members)


@pytest.mark.usefixtures("every_checkpoint")
def test_an_interrupted_training_goes_on_with_the_draws_of_its_steps(digits: Dataset, tmp_path: Path) -> None:
    member = stage("conv_structured", **EVERYTHING)
    resumed, whole = Storage.open(str(tmp_path / "resumed")), Storage.open(str(tmp_path / "whole"))
    next(train_pack([member], digits, resumed, CPU))
    train([member], digits, resumed)
    train([member], digits, whole)
    assert_same(member, resumed, whole)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("scheme", ["conv_structured", "convolution", "resnet"])
def test_every_change_has_an_influence(name: str, scheme: Any, digits: Dataset) -> None:
    """Also on the twin; stochastic depth, which is defined for transformers, has none on the ResNet."""
    plain, changed = (
        pack_of([stage(scheme, **changes)], digits).train(0).losses for changes in ({}, {name: EVERYTHING[name]})
    )
    assert torch.equal(plain, changed) == (name == "stochastic_depth" and scheme == "resnet")


def test_a_step_is_put_together_from_its_draws(digits: Dataset) -> None:
    """Losses and correct images of the first step by hand, with torchvision's mixing and torch's cross-entropy of soft
    labels."""
    members = []
    for seed, (mixup, cutmix) in enumerate([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.8, 1.0)]):
        changes: dict[str, Any] = EVERYTHING | {"mixup_alpha": mixup, "cutmix_alpha": cutmix}
        # Evaluated after every step.
        members.append(stage(seed=seed, label_smoothing=0.1 * (seed % 2), evaluations=24, **changes))
    measured = pack_of(members, digits).train(0)
    data = pack_data(digits, members, CPU)
    places, moves = draw_batches(data, members, range(1))
    draws = Regularisation(members, data.train.images, 1, CPU).draw(range(1))
    for number, member in enumerate(members):
        codes, box, mixture, is_kept = (draws[kind][0, number] for kind in KINDS)
        images = apply_augmentation(data.train.images[places[0, number]], moves[0, number])
        images = apply_policy(images, codes, code_table(8))
        images = erased(data.of([number]).normalised(images[None])[0], box)
        images, soft = mixed_by_torchvision(images, data.train.labels[places[0, number]], mixture)
        scales = branch_scales(is_kept[None], torch.tensor([drop_probabilities(2, 0.4)]))[:, 0]
        with torch.no_grad():
            logits = initial_model(member, None)[0](images, branch_scales=scales)
        expected = F.cross_entropy(logits, soft, label_smoothing=member.trial.training.label_smoothing)
        assert float(measured.losses[0, number]) == pytest.approx(float(expected), rel=1e-5), number
        assert int(measured.correct[number]) == int((logits.argmax(dim=1) == soft.argmax(dim=1)).sum())


def mixed_by_torchvision(images: Tensor, labels: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Images and soft labels as torchvision mixes them."""
    weight, share, top, left, bottom, right = mixture.tolist()
    parameters = {
        "labels": labels,
        "batch_size": len(labels),
        "lam": share,
        "lam_adjusted": weight,
        "box": tuple(map(int, (left, top, right, bottom))),
    }
    transform = v2.MixUp(num_classes=10) if right == left else v2.CutMix(num_classes=10)
    return transform.transform(images, parameters), transform.transform(labels, parameters)


def test_images_for_evaluation_are_never_changed(digits: Dataset) -> None:
    plain, changed = (pack_of([stage(**changes)], digits) for changes in ({}, EVERYTHING))
    data = pack_data(digits, plain.stages, CPU)
    assert plain.evaluate(data.validation) == changed.evaluate(data.validation)
    assert plain.evaluate(data.test) == changed.evaluate(data.test)


@pytest.mark.parametrize(
    ("images", "name"),
    [
        (torch.zeros(3, 1, 8, 8), "augmentation_policy"),
        (torch.zeros(3, 1, 8, dtype=torch.uint8), "augmentation_policy"),
        (torch.zeros(3, 1, 4, 4, 4), "cutmix_alpha"),
        (torch.zeros(3, 1, 4, 4, 4), "erasing_probability"),
    ],
)
def test_images_for_which_a_change_is_not_defined_are_refused(images: Tensor, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} .*{images.ndim - 2}$"):
        Regularisation([stage(**{name: EVERYTHING[name]})], images, 4, CPU)
    Regularisation([stage(mixup_alpha=1.0, stochastic_depth=0.1)], images, 4, CPU)


def test_images_of_floats_are_erased_and_mixed() -> None:
    """As those of series and volumes are, which have no policies."""
    changes: dict[str, Any] = EVERYTHING | {"augmentation_policy": "none"}
    members = [stage(**changes)]
    images = torch.randn(50, 1, 8, 8)
    labelled = LabelledImages(images, torch.arange(50) % 10)
    one = torch.ones(1, 1)
    data = PackData(labelled, (torch.arange(50),), labelled, labelled, mean=0 * one, std=one)
    pack = TrainingPack(members, data, [dict(blank_model(members[0]).named_parameters())], CPU)
    assert pack.train(0).losses.isfinite().all()


@pytest.mark.gpu
def test_a_captured_step_is_the_step(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, with CUDA graphs and without, over several stretches of steps."""
    cuda = torch.device("cuda")
    members = [stage(seed=seed, min_steps=300, evaluations=2, **EVERYTHING) for seed in range(3)]
    captured, eager = Storage.open(str(tmp_path / "captured")), Storage.open(str(tmp_path / "eager"))
    train(members, digits, captured, cuda)
    monkeypatch.setattr(training_pack, "_LEAST_REPLAYS", 10**9)
    train(members, digits, eager, cuda)
    for member in members:
        losses = [
            [value for name, _, value, _ in outcome(member, storage)[0].points if name in ("train/loss", "val/loss")]
            for storage in (captured, eager)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.05), "300 steps amplify what atomic additions round"
