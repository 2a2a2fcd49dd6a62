"""The verdicts on the paper's claims, by hand-worked numbers, and the exit code that goes with them."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvit import vocabulary as names
from cvit.analysis import make_tables, verdicts_text
from cvit.analysis.claims import Verdict, all_claims, verdicts
from cvit.analysis.questions import curves_of
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, LEAST_PAIRS, UNDECIDED, holm_adjusted, judge
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.fits import ExpressivityConfig
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, FakeTrial, Point, trainings, write_journal

SCHEMES = ["random", "two_phase"]
KEY, OTHER_KEY = "a" * 16, "b" * 16
SEEDS = [0, 1, 2]


def frames_of(folder: Path, *studies: FakeStudy) -> Frames:
    return load_journal(write_journal(folder / "storage", studies), curves_of=curves_of)


def judged(folder: Path, *studies: FakeStudy) -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in verdicts(frames_of(folder, *studies))}


def low_data(
    gain: Callable[[Cell], float],
    points: Callable[[Cell], list[Point]] = lambda cell: [],
    key: str = KEY,
    **shared: Any,
) -> FakeStudy:
    """Random initialisation is at 0.5."""
    grid = {"data_fraction": [0.05, 0.1, 1.0], "init_scheme": SCHEMES, "seed": SEEDS}
    return trainings(
        "low_data",
        key,
        grid,
        lambda c: 0.5 + (gain(c) if c["init_scheme"] == "two_phase" else 0),
        points=points,
        **shared,
    )


def fits(errors: dict[tuple[int, int, int], tuple[float, list[float]]]) -> FakeStudy:
    """By kernel size, patch size and heads the bound, and the errors of the restarts."""
    trials, grids = [], []
    for (kernel_size, patch_size, heads), (bound, reached) in errors.items():
        place = {"kernel_size": kernel_size, "patch_size": patch_size, "num_heads": heads}
        grids.append({name: [value] for name, value in place.items()} | {"seed": list(range(len(reached)))})
        for seed, error in enumerate(reached):
            flat = ExpressivityConfig.from_flat(place | {"seed": seed}).flat()
            points = [(names.EXPRESSIVITY_ERROR, 9, error, TIME_MS), (names.EXPRESSIVITY_BOUND, 9, bound, TIME_MS)]
            trials.append(FakeTrial(f"{place}{seed}", flat, points))
    return FakeStudy(KEY, "expressivity", grids, trials, task=names.EXPRESSIVITY)


def test_holm_by_a_worked_example() -> None:
    # Ascending 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1, and none below the one before it: at 0.025 one is rejected.
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # Ascending 0.001 · 3, 0.01 · 2, 0.02 · 1: all are rejected at 0.025, which Bonferroni would not do.
    assert holm_adjusted([0.001, 0.02, 0.01]) == pytest.approx([0.003, 0.02, 0.02])
    assert holm_adjusted([]) == [] and holm_adjusted([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("differences", "line", "verdict"),
    [
        # s = 0.01, t(0.975, 2) = 4.302653: half of the interval is 0.0248414.
        ([0.02, 0.03, 0.04], 0.0, HOLDS),  # from 0.0052
        ([0.01, 0.02, 0.03], 0.0, UNDECIDED),  # from -0.0048 to 0.0448
        ([-0.03, -0.02, -0.01], 0.0, FAILS),  # up to 0.0048: no gain that matters
        ([-0.02, -0.01, 0.0], 0.0, UNDECIDED),  # up to 0.0148
        ([0.01, 0.02, 0.03], -0.01, HOLDS),  # no loss that matters: from -0.0048
        ([-0.04, -0.03, -0.02], -0.01, FAILS),  # a loss: up to -0.0052
        ([-0.01, 0.0, 0.01], -0.01, UNDECIDED),
        ([0.02, 0.03], 0.0, UNDECIDED),  # two pairs are too few
        ([], 0.0, UNDECIDED),
    ],
)
def test_the_rule_by_hand(differences: list[float], line: float, verdict: str) -> None:
    (found,) = judge([differences], line)
    assert (found.verdict, found.n) == (verdict, len(differences))
    if len(differences) >= LEAST_PAIRS:
        assert found.ci_low == pytest.approx(found.estimate - 0.0248414, abs=1e-6)
        assert found.ci_high == pytest.approx(found.estimate + 0.0248414, abs=1e-6)
    else:
        assert math.isnan(found.ci_low) and math.isnan(found.ci_high)


@pytest.mark.parametrize("line", [0.0, -0.01])
@pytest.mark.parametrize(
    "differences",
    [
        [0.0] * 3,
        [0.5] * 3,
        [-0.5] * 3,
        [0.3] * 10,
        [0.9 - 0.6, 0.8 - 0.5, 0.7 - 0.4],  # not the same to the last bit
        [float(np.float32(0.9) - np.float32(0.6)), 0.3, 0.8 - 0.5],
    ],
)
def test_differences_without_spread_decide_nothing_at_any_size(differences: list[float], line: float) -> None:
    (found,) = judge([differences], line)
    assert (found.verdict, found.n) == (UNDECIDED, len(differences))
    assert found.estimate == pytest.approx(differences[0], abs=1e-6)
    assert math.isnan(found.ci_low) and math.isnan(found.ci_high)


def test_one_image_of_a_large_test_set_is_a_spread() -> None:
    (found,) = judge([[0.3, 0.3, 0.3 + 1 / 10_000]], 0.0)
    assert found.verdict == HOLDS


def test_a_family_is_judged_together() -> None:
    alone = [0.02, 0.03, 0.04]
    # t = 0.03 / (0.01 / sqrt(3)) = 5.196 on 2 degrees of freedom: p = 1/2 - t / (2 sqrt(2 + t²)) = 0.0175494. The
    # interval is that of a difference alone, whatever the family: t(0.975, 2) = 4.302653, half of it 0.0248414.
    p, low = 0.0175494, pytest.approx(0.03 - 0.0248414, abs=1e-6)
    (found,) = judge([alone], 0.0)
    assert (found.verdict, found.ci_low, found.p_holm) == (HOLDS, low, pytest.approx(p, abs=1e-6))
    for found in judge([alone, alone], 0.0):
        assert (found.verdict, found.ci_low, found.p_holm) == (UNDECIDED, low, pytest.approx(2 * p, abs=1e-6))
    # Beside a clearer one it is tested as alone; too few pairs are no member.
    found, clear, few = judge([alone, [0.1, 0.1001, 0.0999], [0.1, 0.1]], 0.0)
    assert (found.verdict, clear.verdict, few.verdict) == (HOLDS, HOLDS, UNDECIDED)
    assert (found.ci_low, found.p_holm) == (low, pytest.approx(p, abs=1e-6))
    # Differences without spread are a member: whether there are any is known from the results only.
    found, _ = judge([alone, [0.1, 0.1, 0.1]], 0.0)
    assert (found.verdict, found.p_holm) == (UNDECIDED, pytest.approx(2 * p, abs=1e-6))
    # Against a gain the p-value of the other side is shown: a loss of 0.03 is 0.04 below the line of +0.01.
    (against,) = judge([[-x for x in alone]], 0.0)
    assert (against.verdict, against.p_holm) == (FAILS, pytest.approx(0.0101021, abs=1e-6))


def test_low_data_gains_at_every_small_fraction_and_their_shrinking(tmp_path: Path) -> None:
    by_fraction = {0.05: 0.1, 0.1: -0.1, 1.0: 0.02}
    found = judged(
        tmp_path, low_data(lambda c: by_fraction[c["data_fraction"]] + 0.001 * c["seed"] * (c["data_fraction"] < 1))
    )
    assert [claim for claim in found if claim.startswith("low_data_gain/")] == [
        "low_data_gain/0.05",
        "low_data_gain/0.1",
    ]
    gain = found["low_data_gain/0.05"]
    assert (gain.verdict, gain.n, gain.source) == (HOLDS, 3, f"low_data/digits-{KEY[:8]}")
    assert gain.estimate == pytest.approx(0.101)
    # s = 0.001.
    assert gain.ci_low == pytest.approx(0.101 - 0.00248414, abs=1e-7)
    assert found["low_data_gain/0.1"].verdict == FAILS
    shrinks = found["gain_shrinks/0.05-to-1"]
    assert (shrinks.verdict, shrinks.estimate) == (HOLDS, pytest.approx(0.081))


def test_a_gain_that_grows_does_not_shrink(tmp_path: Path) -> None:
    found = judged(tmp_path, low_data(lambda c: c["data_fraction"] * (1 + 0.01 * c["seed"])))
    assert found["gain_shrinks/0.05-to-1"].verdict == FAILS


def test_of_each_data_set_the_most_recent_study_counts(tmp_path: Path) -> None:
    old = low_data(lambda c: 0.1 + 0.001 * c["seed"])
    new = low_data(lambda c: -0.1 + 0.001 * c["seed"], key=OTHER_KEY)
    new.start_time_ms += 1
    other = low_data(lambda c: 0.1 + 0.001 * c["seed"], key="c" * 16, dataset="svhn")
    frames = frames_of(tmp_path, old, new, other)
    rows = [(c.verdict, c.source) for c in verdicts(frames) if c.claim == "low_data_gain/0.05"]
    assert sorted(rows) == [(FAILS, "low_data/digits-bbbbbbbb"), (HOLDS, "low_data/svhn-cccccccc")]
    # The file for people tells them apart too.
    text = verdicts_text.markdown(frames, verdicts(frames))
    lines = [line for line in text.splitlines() if "low_data_gain/0.05" in line]
    assert ["digits-bbbbbbbb" in line for line in lines] == [FAILS in line for line in lines] == [True, False]


def test_steps_to_the_same_accuracy(tmp_path: Path) -> None:
    """Random is twice as slow at 5 %; at 10 % two phases do next to nothing, at 100 % random diverges on all seeds."""

    def points(cell: Cell) -> list[Point]:
        is_random, fraction = cell["init_scheme"] == "random", float(cell["data_fraction"])
        slowness = 1 + 0.01 * int(cell["seed"]) + (is_random and fraction == 0.05)
        values: dict[int, float] = {step: 0.1 + 0.7 * min(1.0, step / (8 * slowness)) for step in range(1, 21)}
        if fraction == 0.1 and not is_random:
            values = dict.fromkeys(values, 0.1 + 0.001 * int(cell["seed"]))
        if fraction == 1.0 and is_random:
            values = {1: values[1]}
        return [(names.VAL_ACCURACY, step, value, TIME_MS) for step, value in values.items()]

    study = low_data(lambda c: 0.1, points)
    for trial in study.trials:
        if trial.params["data_fraction"] == 1.0 and trial.params["init_scheme"] == "random":
            trial.status = names.STATUS_DIVERGED
    found = judged(tmp_path, study)
    twice, never, diverged = (found[f"trains_faster/{fraction}"] for fraction in ("0.05", "0.1", "1"))
    # By seed 2, 2.01 / 1.01 and 2.02 / 1.02 times as fast.
    mean = (2 * 2.01 / 1.01 * 2.02 / 1.02) ** (1 / 3)
    assert (twice.verdict, twice.n) == (HOLDS, 3)
    assert twice.estimate == pytest.approx(1 - 1 / mean, abs=5e-3)
    # Half of the way to 0.8, 0.45, takes 4 steps (4.04 in the mean), and never is after 40, whichever scheme it is.
    assert (never.verdict, diverged.verdict) == (FAILS, HOLDS)
    assert -never.estimate == pytest.approx(1 - 4.04 / 40, abs=1e-4)
    assert diverged.estimate == pytest.approx(1 - 4.04 / 40, abs=1e-4)


def test_without_warmup_divergence_counts_as_guessing(tmp_path: Path) -> None:
    grid = {"warmup_fraction": [0.0, 0.1], "learning_rate": [0.01, 0.1, 1.0], "init_scheme": SCHEMES, "seed": SEEDS}

    def accuracy(cell: Cell) -> float:
        if cell["learning_rate"] == 1.0:  # nothing trains there, even with warm-up
            return 0.2
        if cell["init_scheme"] == "two_phase":
            return 0.8 + 0.001 * cell["seed"] * (cell["warmup_fraction"] == 0)
        if cell["warmup_fraction"] == 0:
            return math.nan if cell["learning_rate"] == 0.1 else 0.7
        return 0.7 + 0.001 * cell["seed"]

    found = judged(tmp_path, trainings("no_warmup", KEY, grid, accuracy))
    warmup = {name: claim for name, claim in found.items() if "without_warmup" in name}
    assert {name: claim.verdict for name, claim in warmup.items()} == {
        "no_loss_without_warmup/0.01": HOLDS, "no_loss_without_warmup/0.1": HOLDS,
        "random_loses_without_warmup/0.01": FAILS, "random_loses_without_warmup/0.1": HOLDS,
    }  # fmt: skip
    diverged = warmup["random_loses_without_warmup/0.1"]
    assert (diverged.estimate, diverged.n) == (pytest.approx(0.701 - 1 / 10), 3)
    # The rate at which nothing trains is not shown, and yet a member of the family: three times its own p.
    t = 0.601 / (0.001 / math.sqrt(3))
    assert diverged.p_holm == pytest.approx(3 * (0.5 - t / (2 * math.sqrt(2 + t * t))), rel=1e-3)
    assert diverged.ci_low == pytest.approx(0.601 - 4.302653 * 0.001 / math.sqrt(3), abs=1e-6)


def test_nine_heads_against_fewer_and_more(tmp_path: Path) -> None:
    grid = {"num_heads": [4, 8, 9, 16], "inner_dim": [0], "init_scheme": SCHEMES, "seed": SEEDS}
    by_heads = {4: 0.5, 8: 0.9, 9: 0.8, 16: 0.8}

    def accuracy(cell: Cell) -> float:
        return by_heads[cell["num_heads"]] + 0.001 * cell["seed"] * (cell["num_heads"] == 9)

    study = trainings("head_count", KEY, grid, accuracy, image_size=32)
    found = judged(tmp_path, study)
    assert found["nine_beat_fewer/inner_dim=0,num_heads=4"].verdict == HOLDS
    assert found["nine_beat_fewer/inner_dim=0,num_heads=8"].verdict == FAILS
    assert found["nine_match_more/inner_dim=0,num_heads=16"].verdict == HOLDS
    on_sequences = trainings(
        "head_count",
        KEY,
        grid | {"num_heads": [1, 3, 4]},
        lambda cell: {1: 0.5, 3: 0.8, 4: 0.7}[cell["num_heads"]] + 0.001 * cell["seed"] * (cell["num_heads"] == 3),
        image_size=32,
        dimensions=1,
    )
    three = judged(tmp_path / "three", on_sequences)
    assert three["nine_beat_fewer/inner_dim=0,num_heads=1"].verdict == HOLDS
    assert three["nine_match_more/inner_dim=0,num_heads=4"].verdict == HOLDS
    study.cells = [grid | {"seed": [0, 1]}]
    few = judged(tmp_path / "few", study)["nine_match_more/inner_dim=0,num_heads=16"]
    assert (few.verdict, few.n) == (UNDECIDED, 2)


def test_what_heads_express_follows_bound_and_error(tmp_path: Path) -> None:
    errors = {
        (3, 1, 8): (0.25, [0.3, 0.26]), (3, 1, 9): (0.0, [1e-8]),
        (3, 2, 8): (0.0, [1e-8]), (3, 2, 9): (0.0, [0.2]),
        (5, 1, 24): (0.1, [0.05]), (5, 1, 25): (0.5, [0.6]),
        (5, 2, 8): (0.2, [0.3]), (5, 2, 9): (0.0, [1e-4]),
        (7, 1, 48): (0.2, [0.3]), (7, 1, 49): (0.0, [1e-8]), (7, 4, 8): (0.2, [0.3]), (7, 4, 9): (0.0, [1e-8]),
    }  # fmt: skip
    found = judged(tmp_path, fits(errors))
    enough = {name: c.verdict for name, c in found.items() if name.startswith("heads_enough")}
    # At (3, 2) descent has not got there, which proves nothing; at (5, 1) the bound says that none can.
    assert list(enough.values()) == [HOLDS, UNDECIDED, FAILS, HOLDS, HOLDS, HOLDS]
    necessary = {name: c.verdict for name, c in found.items() if name.startswith("heads_necessary")}
    # At (3, 2) eight reach it; at (5, 1) an error lies below the bound.
    assert list(necessary.values()) == [HOLDS, FAILS, FAILS, HOLDS, HOLDS, HOLDS]
    eight = found["heads_necessary/K3-P1"]
    assert (eight.estimate, eight.ci_low, eight.ci_high, eight.n) == (0.26, 0.25, 0.26, 2)
    # 5 pixels: 25 heads did not reach it on pixels, so what patches save has no upper end. 7 pixels: 49 - 9.
    saved = {name: c for name, c in found.items() if name.startswith("patches_save_heads")}
    assert list(saved) == ["patches_save_heads/K5-P2", "patches_save_heads/K7-P4"]
    assert (saved["patches_save_heads/K5-P2"].ci_low, saved["patches_save_heads/K5-P2"].ci_high) == (26 - 9, math.inf)
    whole = saved["patches_save_heads/K7-P4"]
    assert (whole.verdict, whole.estimate, whole.ci_low, whole.ci_high) == (HOLDS, 40, 40, 40)


def test_where_a_general_kernel_needs_fewer_heads_none_is_said_to_be_necessary(tmp_path: Path) -> None:
    """On 8x8 pixels: 2x2 kernels reach to one side only, patches of 8 have no neighbours; 4x4 on patches of 2 have."""
    zero = (0.0, [1e-9])
    found = judged(tmp_path, fits({(2, 1, 8): zero, (3, 8, 8): zero, (4, 2, 8): (0.1, [0.1])}))
    assert [name for name in found if name.startswith("heads_necessary")] == ["heads_necessary/K4-P2"]
    assert found["heads_necessary/K4-P2"].verdict == HOLDS


def test_a_claim_without_its_sweep_is_listed(tmp_path: Path) -> None:
    found = judged(tmp_path, low_data(lambda c: 0.1))
    nothing = found["no_loss_without_warmup"]
    assert (nothing.verdict, nothing.n, nothing.source) == (UNDECIDED, 0, "no study of no_warmup")
    assert math.isnan(nothing.estimate)
    assert {name.partition("/")[0] for name in found} == {claim.name for _, claim in all_claims()}


def test_files_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(gain: float, *options: str) -> int:
        storage = tmp_path / f"{gain}"
        if not storage.exists():
            write_journal(storage, [low_data(lambda c: gain * (1.1 - c["data_fraction"]) * (1 + 0.01 * c["seed"]))])
        return make_tables.main(["--storage", str(storage), "--out", str(tmp_path / "out"), *options])

    assert run(0.1, "--strict") == 0
    rows = list(csv.reader((tmp_path / "out" / "claims.csv").read_text().splitlines()))
    assert rows[0] == ["claim", "verdict", "estimate", "ci_low", "ci_high", "n", "source", "p_holm"]
    assert {row[1] for row in rows[1:]} == {HOLDS, UNDECIDED}
    text = (tmp_path / "out" / "claims.md").read_text()
    for said in (
        verdicts_text.RULE,
        "| `low_data_gain/0.05`",
        "    python sweeps/low_data.py --dataset digits --seeds 3",
    ):
        assert said in text
    *_, judged, waiting, without, folder, last = capsys.readouterr().out.splitlines()
    assert judged == "3 claims hold."
    assert waiting == "10 more cannot be judged yet: no seed has what they compare, at least 3 are needed."
    assert without.startswith("No study yet: heads_enough, ") and "low_data" not in without
    assert folder.endswith(f"{tmp_path / 'out'}/") and last == f"Report: {tmp_path / 'out' / 'report.html'}"
    assert run(-0.1) == 0
    assert run(-0.1, "--strict") == 3
    capsys.readouterr()
    assert make_tables.main(["--storage", str(tmp_path / "absent"), "--strict"]) == 2
