"""An init scheme, a task and a parameter are added to a copy of the tree as CONTRIBUTING says, and sweeps run with it.

That a new parameter orphans no stored stage is tested in tests/cvit/test_stored_stages.py.
"""

from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as v
from tests.support.scripts import TINY, journal
from tests.support.tree import copy_of_tree, insert, run

ALONE = ("--address", "local", "--workers", "1", "--tracking-uri", "none")
LOCAL = (*ALONE, "--min-steps", "8", "--data-fraction", "0.02", "--seeds", "1")

FAR_SCHEME = '''"""`far`: attention that starts at the patches furthest away."""

import torch

from cvit.config import TrialConfig
from cvit.init.random import random
from cvit.models.attention import RelativeAttention
from cvit.models.vit import VisionTransformer


@torch.no_grad()
def far(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer whose heads all look into one corner."""
    model, _ = random(config, None)
    for module in model.modules():
        if isinstance(module, RelativeAttention):
            module.relative_bias[:, 0] = config.init.attention_sharpness
    return model, {}
'''

LINEAR_REFERENCE = '''"""`linear`: one linear layer, for reference."""

from torch import nn

from cvit.config import TrialConfig
from cvit.models.layers import Linear


def linear(config: TrialConfig) -> nn.Module:
    """The layer, uninitialised."""
    size = config.model.in_channels * config.model.image_size**2
    return nn.Sequential(nn.Flatten(start_dim=-3), Linear(size, config.model.num_classes))
'''

TOY_TASK = '''"""The task `toy`: the minimum of a parabola by gradient descent."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from cvit.parameters import option, parameters_of, require, require_known
from cvit.stages import stage_key
from cvit.tasks import Task


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """One descent."""

    start: float = option("Where the descent starts.", 1.0)
    rate: float = option("Step size.", 0.1)
    momentum: bool = option("Whether the descent has momentum.", False)
    descent_steps: int = option("Steps of the descent.", 20)
    seed: int = 0

    def __post_init__(self):
        require(self.descent_steps >= 1, "descent_steps", self.descent_steps, "must be at least 1")

    def flat(self):
        return dataclasses.asdict(self)


PARAMETERS = parameters_of({"toy": ToyConfig})


@dataclass(frozen=True)
class ToyStage:
    """The one stage of a descent."""

    task: ClassVar[str] = "toy"
    trial: ToyConfig
    phase: str = "descent"
    parent: None = None

    @property
    def key(self):
        return stage_key("toy", self.trial.flat(), PARAMETERS)

    @property
    def steps(self):
        return self.trial.descent_steps

    @property
    def last_step(self):
        return self.steps

    @property
    def report_interval(self):
        return self.steps

    @property
    def shape(self):
        return (self.key,)

    @property
    def cost_kind(self):
        return ()


def _stages(flat, info):
    require_known(flat, PARAMETERS)
    config = ToyConfig(**flat)
    return config, (ToyStage(config),)


def _train(stages, dataset, storage, device, checkpoint_at_every_evaluation):
    import torch

    from cvit.results import Report, StageResult, load_result
    from cvit.training.checkpoint import save_result

    for stage in stages:
        result = load_result(storage, stage.key)
        if result is None:
            place = torch.tensor(stage.trial.start)
            for _ in range(stage.steps):
                place = place - stage.trial.rate * 2 * place
            points = [("toy/distance", stage.steps, abs(float(place)), 1_760_000_000_000)]
            result = StageResult("ok", stage.trial.start, 0.1, "cpu", points)
            save_result(storage, stage.key, {"place": place}, result)
        yield [(stage.key, Report(result.points, stage.steps, result))]


TASK = Task(
    name="toy",
    parameters=PARAMETERS,
    needs_data=False,
    metric="toy/distance",
    selection_metric=None,
    curves=("toy/distance",),
    compared_by="rate",
    stages=_stages,
    train=_train,
    step_flops=lambda stage: 2.0,
    step_seconds=lambda stage, sizes, device: [1e-6 * size for size in sizes],
)
'''

TOY_SWEEP = '''"""How fast does a parabola fall?"""

from cvit.engine.declaration import Preset, Sweep
from cvit.engine.main import main

SWEEP = Sweep(
    name="toy",
    question="How fast does a parabola fall?",
    task="toy",
    presets={"laptop": Preset(description="3 descents", grid={"rate": (0.1, 0.25, 0.5)}, seeds=1, settings={})},
)

if __name__ == "__main__":
    main(SWEEP)
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_of_tree(tmp_path)


def trials_of(folder: Path, sweep: str) -> list[dict[str, Any]]:
    """Parameters, status and last measurements of every trial in the journal."""
    records = journal(folder, sweep)
    trials = {r["trial_key"]: {"params": r["params"]} for r in records if r["type"] == v.RECORD_TRIAL}
    for record in records:
        if record["type"] == v.RECORD_END:
            trials[record["trial_key"]]["status"] = record["status"]
        elif record["type"] == v.RECORD_POINTS:
            last = trials[record["trial_key"]].setdefault("last", {})
            last |= {metric: value for metric, _, value, _ in record["points"]}
    return list(trials.values())


def test_an_init_scheme_is_a_file_and_a_line_and_so_is_a_reference(tree: Path, tmp_path: Path) -> None:
    (tree / "cvit/init/far.py").write_text(FAR_SCHEME)
    (tree / "cvit/init/linear.py").write_text(LINEAR_REFERENCE)
    lines = (
        '        InitScheme("far", ignores=frozenset({"convolution_form"})),\n'
        '        InitScheme("linear", ignores=_CONVOLUTION | _TRANSFORMER, is_reference=True),\n'
    )
    insert(tree / "cvit/init/schemes.py", 'InitScheme("resnet"', lines)

    schemes = ("random", "far", "linear")
    run(tree, tmp_path, str(tree / "sweeps/low_data.py"), *TINY, *LOCAL, "--init-scheme", *schemes)
    trials = {trial["params"]["init_scheme"]: trial for trial in trials_of(tmp_path, "low_data")}
    assert set(trials) == set(schemes)
    assert all(trial["status"] == v.STATUS_OK and 0 <= trial["last"][v.TEST_ACCURACY] <= 1 for trial in trials.values())
    losses = {trial["last"][v.TRAIN_LOSS] for trial in trials.values()}
    assert len(losses) == 3, "another start is another training"

    tables = run(tree, tmp_path, str(tree / "analysis/make_tables.py"), "--storage", "storage", "--out", "results")
    text = (tmp_path / "results/low_data.md").read_text()
    assert "far" in text and "linear (reference)" in text, tables


def test_a_task_is_a_file_and_its_name(tree: Path, tmp_path: Path) -> None:
    (tree / "cvit/tasks/toy.py").write_text(TOY_TASK)
    names = tree / "cvit/tasks/__init__.py"
    names.write_text(names.read_text().replace('"depth")', '"depth", "toy")'))
    (tree / "sweeps/toy.py").write_text(TOY_SWEEP)

    script = str(tree / "sweeps/toy.py")
    assert "--descent-steps" in run(tree, tmp_path, script, "--help-all")
    run(tree, tmp_path, script, *ALONE, "--descent-steps", "10")
    found = {trial["params"]["rate"]: trial for trial in trials_of(tmp_path, "toy")}
    assert set(found) == {0.1, 0.25, 0.5} and {trial["status"] for trial in found.values()} == {v.STATUS_OK}
    for rate, trial in found.items():
        assert trial["last"]["toy/distance"] == pytest.approx((1 - 2 * rate) ** 10, rel=1e-5)
    again = run(tree, tmp_path, script, *ALONE, "--descent-steps", "10")
    assert "Nothing to train" in again


def test_a_parameter_is_a_field(tree: Path, tmp_path: Path) -> None:
    """It is an option, it reaches what is trained, and it stands in the journal; a number, a truth, and one that may be
    left open."""
    fields = (
        '    logit_scale: float = option("Factor of the logits.", 1.0)\n'
        '    is_mirrored: bool = option("Whether images are mirrored.", False)\n'
        '    most_steps: int | None = option("Steps at most; auto: no limit.", None)\n'
    )
    insert(tree / "cvit/config.py", "evaluations: int", fields)
    script = str(tree / "sweeps/low_data.py")
    text = run(tree, tmp_path, script, "--help-all")
    assert "--logit-scale" in text and "--is-mirrored" in text and "[default: auto]" in text

    options = (*TINY, *LOCAL, "--init-scheme", "random")
    for more in ((), ("--logit-scale", "2", "--is-mirrored", "--most-steps", "5"), ("--most-steps", "auto")):
        run(tree, tmp_path, script, *options, *more)
    found = [trial["params"] for trial in trials_of(tmp_path, "low_data")]
    values = [(params["logit_scale"], params["is_mirrored"], params["most_steps"]) for params in found]
    assert values == [(1.0, False, None), (2.0, True, 5)], "auto is the default"
    assert len(list((tmp_path / "storage/stages").iterdir())) == 2
