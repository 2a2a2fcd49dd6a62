"""The starts of a pack's members are made side by side, and are those of the stages alone."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cvit.config import InitSchemeName
from cvit.init.registry import initial_model
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training import loop
from cvit.training.checkpoint import StageProgress
from cvit.training.loop import train_pack
from cvit.training.starts import first_starts, side_by_side
from tests.cvit.training.test_pack import stage, varied

BESIDE_A_GPU = torch.device("cuda")
"""Nothing of this is computed on the device; where there is one, the cores are the pack's own."""


@pytest.mark.parametrize("scheme", get_args(InitSchemeName))
def test_members_start_bit_for_bit_as_alone(scheme: InitSchemeName) -> None:
    """Of every scheme, members that differ in everything in which they may: what they share, none of it determines."""
    stages = varied(4, scheme) + varied(2, scheme, learning_rate=0.1)
    stages = [one for one in stages if one.parent is None]
    starts = first_starts(stages, BESIDE_A_GPU)
    for one in stages:
        model, measured = initial_model(one, None)
        weights, shared = starts[one]
        assert measured == shared and weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_stages_that_differ_in_data_and_training_alone_share_their_start() -> None:
    stages = [stage(seed=seed, data_fraction=fraction) for seed in range(2) for fraction in (0.1, 0.2, 0.5)]
    weights = [weights for weights, _ in first_starts(stages, BESIDE_A_GPU).values()]
    assert len(weights) == 6 and len({id(each) for each in weights}) == 2


def test_members_are_made_side_by_side_beside_a_gpu_alone() -> None:
    """Each with as many threads of torch as the caller, on which the last bit of a decomposition may depend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert side_by_side(lambda _: torch.get_num_threads(), range(4), BESIDE_A_GPU) == [3] * 4
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 / number, [1, 0], BESIDE_A_GPU)


def members(count: int, **sizes: Any) -> list[Any]:
    return [
        loop._Member(place, one, StageProgress(), weights_of(one)) for place, one in enumerate(varied(count, **sizes))
    ]


def weights_of(one: TrainingStage) -> dict[str, torch.Tensor]:
    return initial_model(one, None)[0].state_dict()


def test_the_first_checkpoint_of_a_large_pack_waits() -> None:
    """A share of 5 % holds from the first checkpoint on; a pack of 30 of the preset `reference` writes 2 GB."""
    (small,) = members(1)
    assert loop._expected_saving_s([small]) / loop.CHECKPOINT_TIME_SHARE < loop.CHECKPOINT_INTERVAL_S
    large = members(1, embed_dim=192, depth=12, head_dim=32, mlp_ratio=4.0)
    numbers = sum(tensor.numel() for tensor in large[0].state.values())
    assert loop._expected_saving_s(large * 30) == pytest.approx(30 * numbers * 12 / 100e6)
    assert loop._expected_saving_s(large * 30) / loop.CHECKPOINT_TIME_SHARE > 60


def test_a_pack_saves_nothing_before_the_expected_time(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six evaluations, each later than the least time; a report is only yielded with a checkpoint or an end."""
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(loop, "EXPECTED_BYTES_PER_S", 1.0)
    reports = list(train_pack(varied(2), digits, Storage.open(str(tmp_path)), torch.device("cpu")))
    assert len(reports) == 1
