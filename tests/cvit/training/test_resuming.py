"""Interruption, resumption and parents: nothing saved is trained again, nothing damaged is used."""

from pathlib import Path

import pytest
import torch

import cvit.training.loop as loop
from cvit.config import InitSchemeName
from cvit.data.datasets import Dataset
from cvit.init.registry import initial_model
from cvit.results import Report, load_result
from cvit.storage import Storage
from cvit.training.batches import pack_data
from cvit.training.checkpoint import load_checkpoint
from cvit.training.loop import ParentStageMissing
from cvit.training.pack import TrainingPack
from tests.cvit.training.tiny import CPU, SCHEMES, assert_same_outcome, measured, reports_of, stages, train, weights_of


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
