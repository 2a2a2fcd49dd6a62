"""The best learning rates and the range around them, by hand-worked numbers, and variants as schemes of their own."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of, no_warmup, studies_of
from cvit.analysis.statistics.learning_rates import rate_summaries
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED, judge_best
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, Point, trainings, write_journal
from tests.support.random_studies import study_in_memory

KEY = "a" * 16
RATES = [0.001, 0.01, 0.1, 1.0]


def frames_of(folder: Path, *studies: FakeStudy) -> Frames:
    return load_journal(write_journal(folder, studies), curves_of=curves_of)


def in_memory(levels: dict[float, list[float]], effects: tuple[float, ...] = (0.0,)) -> Study:
    """A study of two phases: by warm-up the accuracies at RATES, to which every seed adds an effect of its own."""

    def outcome(cell: Cell) -> tuple[float, dict[int, float], Cell]:
        value = levels[cell["warmup_fraction"]][RATES.index(cell["learning_rate"])] + effects[cell["seed"]]
        return value, {}, {names.VAL_ACCURACY: value - 0.1 * (cell["learning_rate"] == 0.01)}

    grid = {"warmup_fraction": [0.0, 0.1], "learning_rate": RATES, "init_scheme": ["two_phase"]}
    return study_in_memory("no_warmup", grid | {"seed": list(range(len(effects)))}, outcome)


def test_the_range_is_interpolated_on_the_logarithm_of_the_rate() -> None:
    # The best with warm-up is 0.9, so the line lies at 0.88. With it: 0.80 → 0.90 crosses at 0.8 of a decade, 0.90 →
    # 0.86 at half of one: 0.2 + 0.5 decades, from 10^-2.2 to 10^-1.5. Without: from 0.001 on, until 0.01.
    study = in_memory({0.0: [0.89, 0.88, 0.86, 0.2], 0.1: [0.80, 0.90, 0.86, 0.5]})
    none, longest = rate_summaries(study)
    assert longest.of_means.decades == pytest.approx(0.7)
    assert longest.of_means.ends == pytest.approx((10**-2.2, 10**-1.5))
    assert not longest.of_means.is_cut
    assert none.of_means.decades == pytest.approx(1.0)
    assert none.of_means.is_cut and none.of_means.ends == pytest.approx((0.001, 0.01))
    # On validation images, 0.01 is 0.1 worse for everybody.
    assert (longest.best_rate, longest.accuracy) == (0.1, pytest.approx(0.86))
    assert (none.best_rate, none.accuracy) == (0.001, pytest.approx(0.89))
    assert none.of_training.n == 0  # a single seed has no others to be measured against


def test_two_stretches_are_added_and_a_scheme_that_loses_everywhere_has_none() -> None:
    with_gap = in_memory({0.0: [0.5] * 4, 0.1: [0.9, 0.78, 0.9, 0.9]})
    none, longest = rate_summaries(with_gap)
    # Each side of the gap leaves the line, 0.02 below, after a sixth of a decade.
    assert longest.of_means.decades == pytest.approx(2 / 6 + 1) and len(longest.of_means.stretches) == 2
    assert longest.of_means.is_cut
    assert (none.of_means.decades, none.of_means.stretches, none.of_means.is_cut) == (0, (), False)
    assert all(math.isnan(end) for end in none.of_means.ends)


def test_a_training_is_measured_against_the_best_of_the_other_seeds() -> None:
    levels = [0.5, 0.9, 0.9, 0.5]
    study = in_memory({0.0: levels, 0.1: levels}, effects=(0.0, 0.0, -0.06))
    # Against 0.87 - 0.02, the mean of seeds 0 or 1 with 2, both are in range from (0.85 - 0.5) / 0.4 on: 1 + 2 · 0.125
    # decades. Seed 2 ends at 0.84, below 0.88.
    none, longest = rate_summaries(study)
    assert longest.of_training.mean == none.of_training.mean == pytest.approx((1.25 + 1.25 + 0) / 3)
    assert longest.of_training.n == 3


def test_the_best_of_one_side_against_the_best_of_the_other() -> None:
    def around(mean: float) -> list[float]:  # s = 0.01, n = 3
        return [mean - 0.01, mean, mean + 0.01]

    # Half-width at 2.5 % over two places: t(1 - 0.0125, 2) = 6.205347, times 0.01 / sqrt(3) = 0.035827.
    half = 6.205347 * 0.01 / math.sqrt(3)
    verdict, low, high = judge_best([[around(0.2), around(0.1)], [around(-0.3), around(-0.4)]], line=0.0)
    # The first place is at least 0.1 above both others; the second is far below. The best of the others is the second.
    assert (verdict, low, high) == (HOLDS, pytest.approx(0.1 - half), pytest.approx(0.1 + half))
    # Each place beats another one of the others, so that it is open which side's best is the better one.
    assert judge_best([[around(0.2), around(-0.2)], [around(-0.2), around(0.2)]], line=0.0)[0] == UNDECIDED
    assert judge_best([[around(-0.2), around(-0.1)]], line=-0.01)[0] == FAILS
    verdict, low, high = judge_best([[around(0.2), [0.1, 0.1]]], line=0.0)  # too few pairs with one of the others
    assert verdict == UNDECIDED and math.isnan(low) and high == pytest.approx(0.2 + half)


def variants_study(**extra: Any) -> FakeStudy:
    """Without warm-up two phases lose 0.1 at the larger rate, less a tenth of a point per seed; a tenth of the rate for
    what is transferred makes up for it. Random initialisation has neither, and is trained for each value."""
    grid = {
        "warmup_fraction": [0.0, 0.1],
        "learning_rate": [0.01, 0.1],
        "transferred_learning_rate_factor": [1.0, 0.1],
        "schedule": ["per_phase", "joint"],
        "init_scheme": ["random", "two_phase"],
        "seed": [0, 1, 2],
    }

    def accuracy(cell: Cell) -> float:
        if cell["init_scheme"] == "random":
            return 0.5
        is_lost = cell["learning_rate"] == 0.1 and cell["warmup_fraction"] == 0
        loss = 0.1 if is_lost and cell["transferred_learning_rate_factor"] == 1 else 0
        return 0.7 + 0.001 * cell["seed"] * (cell["warmup_fraction"] == 0) - loss

    def points(cell: Cell) -> list[Point]:
        return [(names.VAL_ACCURACY, 20, accuracy(cell) + 0.01 * (cell["learning_rate"] == 0.1), TIME_MS)]

    return trainings("no_warmup", KEY, grid, accuracy, points=points, **extra)


VARIANTS = [
    "random",
    "two_phase",
    "two_phase, factor 0.1",
    "two_phase, schedule joint",
    "two_phase, factor 0.1, schedule joint",
]


def test_variants_stand_beside_their_scheme_and_random_is_shown_once(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, variants_study())
    (study,) = studies_of(frames, "no_warmup")
    assert study.schemes == VARIANTS
    assert sorted(study.axes) == ["learning_rate", "warmup_fraction"]
    assert len(study.results) == 2 * 2 * 5 * 3  # of 96 trials; those of random differ in nothing
    assert {cell.place["init_scheme"] for cell in study.means} == set(VARIANTS)
    files = files_of(frames, "no_warmup").by_name
    text = files["no_warmup.md"].decode()
    head = next(line for line in text.splitlines() if line.startswith("| setting"))
    assert [cell.strip() for cell in head.strip("|").split("|")][1:] == VARIANTS
    rows = list(csv.DictReader(io.StringIO(files["no_warmup.csv"].decode())))
    accuracies = [row for row in rows if row["kind"] == "accuracy"]
    assert [row["init_scheme"] for row in accuracies] == VARIANTS * 4
    ranges = [row for row in rows if row["kind"] == "learning_rate_range_decades"]
    assert [row["init_scheme"] for row in ranges] == [scheme for scheme in VARIANTS for _ in range(2)]
    assert {row["range_is_cut"] for row in ranges} == {"True"}
    answer = answer_text(frames, KEY)
    for said in ("two_phase, factor 0.1, schedule joint", "Learning rates: the best, and the range around it:"):
        assert said in answer
    assert (
        answer.count("at least 1.00") == 10 - 2
    )  # all but two phases without warm-up at the full rate, both schedules


def test_verdicts_at_the_best_rates(tmp_path: Path) -> None:
    found = {v.claim: v for v in verdicts(frames_of(tmp_path, variants_study()))}
    names_of = [name for name in found if name.startswith("no_loss_without_warmup")]
    places = ("0.01", "0.1", "best", "own_best")
    assert names_of == [
        f"no_loss_without_warmup/{place}{variant}"
        for variant in ("", ", factor 0.1", ", schedule joint", ", factor 0.1, schedule joint")
        for place in places
    ]
    lost, own = found["no_loss_without_warmup/best"], found["no_loss_without_warmup/own_best"]
    at_rate = found["no_loss_without_warmup/0.1"]
    # With warm-up 0.1 is the best rate on validation images; without it, 0.01 is, and there nothing is lost.
    assert (lost.verdict, lost.estimate, lost.ci_low) == (FAILS, at_rate.estimate, at_rate.ci_low)
    assert lost.estimate == pytest.approx(-0.099)
    assert (own.verdict, own.estimate, own.n) == (HOLDS, pytest.approx(0.001), 3)
    # The pair (0.01, 0.1) and the pair (0.01, 0.01) differ by the same: t(1 - 0.025 / 2, 2) · 0.001 / sqrt(3).
    assert own.ci_low == pytest.approx(0.001 - 6.205347 * 0.001 / math.sqrt(3))
    assert found["no_loss_without_warmup/best, factor 0.1"].verdict == HOLDS
    spread = found["warmup_does_not_widen_the_range/range"]
    # Two phases keep the lower part of the decade: the line through 0.7 and 0.6 leaves 0.68 after a fifth of it.
    assert spread.estimate == pytest.approx(-0.79, abs=0.01)
    assert spread.n == 3


def test_a_study_from_before_the_variants_is_judged_as_before(tmp_path: Path) -> None:
    old = variants_study()
    grid = {name: values for name, values in old.cells[0].items() if name not in no_warmup.QUESTION.variants}
    neutral = {"transferred_learning_rate_factor": 1.0, "schedule": "per_phase"}
    trials = [t for t in old.trials if all(t.params[name] == value for name, value in neutral.items())]
    for trial in trials:
        trial.params = {name: value for name, value in trial.params.items() if name not in neutral}
    old.cells, old.trials = [grid], trials
    before = {v.claim: v for v in verdicts(frames_of(tmp_path / "old", old))}
    now = {v.claim: v for v in verdicts(frames_of(tmp_path / "new", variants_study()))}
    for claim in ("no_loss_without_warmup", "random_loses_without_warmup", "warmup_does_not_widen_the_range"):
        of_claim = {name: verdict for name, verdict in before.items() if name.startswith(claim)}
        assert of_claim and all(vars(verdict) == vars(now[name]) for name, verdict in of_claim.items())


def test_the_figure_draws_every_range(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.no_warmup import draw

    (study,) = studies_of(frames_of(tmp_path, variants_study()), "no_warmup")
    (block,) = draw([study]).subfigs
    (axes,) = block.subfigs[1].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == VARIANTS
    assert len(axes.lines) == 2 * len(VARIANTS)
    ends = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert ends[3] == pytest.approx([0.01, 0.1])  # two phases with warm-up
    assert ends[2] == pytest.approx([0.01, 0.01 * 10 ** (0.021 / 0.1)])
    looks = [line.get_color() for line in axes.lines]
    assert len(set(looks)) == len(VARIANTS)
