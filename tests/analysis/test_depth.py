"""The sweep depth: tables, answer, verdicts and figure by hand-worked numbers, and the plan of its presets."""

import math
from pathlib import Path

import numpy as np
import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import depth, studies_of
from cvit.analysis.questions.figures.depth import draw
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.deep_fits import MOST_TERMS, DepthConfig
from sweeps.depth import DEPTH
from tests.support.fake_studies import TIME_MS, FakeStudy, FakeTrial, write_journal
from tests.support.plans import make_plan

KEY = "d" * 16
FITS = {
    (1, 7): (0.25, [0.25, 0.3]),
    (1, 8): (0.0, [1e-8, 0.5]),
    (2, 1): (0.6, [0.7]),
    (2, 2): (0.0, [2e-2, 1e-3]),
    (4, 1): (0.0, [0.4, 0.3]),
}
"""Nine causal taps: by layers and heads, the bound and the errors of the restarts that finished."""


def study(fits: dict[tuple[int, int], tuple[float, list[float]]]) -> FakeStudy:
    trials = []
    for (layers, heads), (bound, reached) in fits.items():
        for seed, error in enumerate(reached):
            flat = DepthConfig(depth=layers, num_heads=heads, seed=seed).flat()
            points = [(names.EXPRESSIVITY_ERROR, 600, error, TIME_MS), (names.EXPRESSIVITY_BOUND, 600, bound, TIME_MS)]
            trials.append(FakeTrial(f"{KEY}-{layers}-{heads}-{seed}", flat, points))
    grids = [{"kernel_size": [9], "depth": [layers], "num_heads": [heads], "seed": [0, 1]} for layers, heads in fits]
    constant = {
        name: value
        for name, value in DepthConfig().flat().items()
        if name not in ("kernel_size", "depth", "num_heads", "seed")
    }
    return FakeStudy(KEY, "depth", grids, trials, constant, task=names.DEPTH, question="How many heads?")


def frames_of(folder: Path, fits: dict[tuple[int, int], tuple[float, list[float]]]) -> Frames:
    return load_journal(write_journal(folder, [study(fits)]))


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_answer_stands_beside_the_frontier(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, FITS)
    answer = answer_text(frames, KEY)
    case = ["K = 9, P = 1, 1-D, causal", "9"]
    assert rows(answer)[2:] == [
        [*case, "1", "8", "8", "2.50e-01", "2.50e-01", "1.00e-08"],
        [*case, "2", "2", "2", "6.00e-01", "7.00e-01", "1.00e-03"],
        [*case, "4", "1", "-", "-", "-", "3.00e-01"],
    ]
    assert answer.splitlines()[-1] == "Missing: 1 of 10 trials." and "VIOLATION" not in answer
    (found,) = studies_of(frames, "depth")
    assert depth.sentence(found) == (
        "A convolution of 9 maps (K = 9, P = 1, 1-D, causal) was reached by layers × heads of 1 × 8 and 2 × 2, up to a "
        "relative error of 0.001."
    )


def test_verdicts_follow_bound_and_error(tmp_path: Path) -> None:
    found = {verdict.claim: verdict for verdict in verdicts(frames_of(tmp_path, FITS)) if verdict.n}
    assert {claim: verdict.verdict for claim, verdict in found.items()} == {
        "frontier_enough/K9-P1-1D-causal-L1": "holds",
        "frontier_enough/K9-P1-1D-causal-L2": "holds",
        "frontier_enough/K9-P1-1D-causal-L4": "not enough data",
        "frontier_necessary/K9-P1-1D-causal-L1": "holds",
        "frontier_necessary/K9-P1-1D-causal-L2": "holds",
        "layers_save_heads/K9-P1-1D-causal-L2": "holds",
        "layers_save_heads/K9-P1-1D-causal-L4": "not enough data",
    }
    # One layer takes 8 heads, by bound and by descent; two take 2 each, by both.
    saved = found["layers_save_heads/K9-P1-1D-causal-L2"]
    assert (saved.estimate, saved.ci_low, saved.ci_high) == (4, 4, 4)


def test_an_error_below_the_bound_refutes_and_stands_out(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, {(2, 1): (0.6, [0.5, 0.7]), (2, 2): (0.1, [0.2])})
    line = "VIOLATION: K = 9, P = 1, 1-D, causal, 2 layers of 1 head: reached 5.00e-01 lies below the bound 6.00e-01."
    files = {name: data.decode("utf-8", "replace") for name, data in files_of(frames, "depth").by_name.items()}
    assert line in answer_text(frames, KEY) and f"**{line}**" in files["depth.md"]
    assert files["depth.csv"].splitlines()[1:] == ["9,1,1,causal,32,8,2,1,0.6,0.5,2", "9,1,1,causal,32,8,2,2,0.1,0.2,1"]
    by_name = {verdict.claim: verdict.verdict for verdict in verdicts(frames)}
    assert by_name["frontier_necessary/K9-P1-1D-causal-L2"] == "does not hold"
    assert by_name["frontier_enough/K9-P1-1D-causal-L2"] == "does not hold"


def test_a_study_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, {(1, 8): (0.0, []), (2, 2): (0.0, [])})
    assert "Missing: 4 of 4 trials." in answer_text(frames, KEY)
    files = files_of(frames, "depth").by_name
    assert len(files) == 6 and b"9,1,1,causal,32,8,1,8,,,0" in files["depth.csv"]


def test_on_a_small_image_or_few_channels_the_frontier_is_that_of_fewer_maps() -> None:
    """On six tokens 27 causal taps have six offsets; with two channels their maps have four dimensions."""
    usual = depth.Case(27, 1, 1, "causal", 32, 8)
    small, narrow = usual._replace(fit_image_size=6), usual._replace(fit_channels=2)
    assert [case.maps for case in (usual, small, narrow)] == [27, 6, 4]
    assert [case.frontier(2) for case in (usual, small, narrow)] == [5, 2, 1]
    assert [case.text for case in (usual, small, narrow)] == [
        "K = 27, P = 1, 1-D, causal", "K = 27, P = 1, 1-D, causal, N = 6", "K = 27, P = 1, 1-D, causal, C = 2"
    ]  # fmt: skip


def test_the_figure_has_the_frontier_and_a_mark_for_each_fit(tmp_path: Path) -> None:
    (axes,) = draw(studies_of(frames_of(tmp_path, FITS), "depth")).axes
    frontier, exact, others = (np.asarray(line.get_xydata()).tolist() for line in axes.lines)
    assert frontier == [[0.5, 7.5], [1.5, 7.5], [1.5, 1.5], [2.5, 1.5], [3.5, 0.5], [4.5, 0.5]]
    assert exact == [[1, 8], [2, 2]]
    assert others == [[1, 7], [2, 1], [4, 1]]
    assert [text.get_text() for text in axes.texts] == ["study dddddddd; 9 maps", "K = 9\nP = 1\n1-D\ncausal"]
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "layers"


@pytest.mark.parametrize("preset", DEPTH.presets)
def test_presets_surround_the_frontier_and_leave_out_what_is_too_large(preset: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "--preset", preset, "--seeds", "1", sweep=DEPTH)
    configs = [DepthConfig.from_flat(trial.params) for trial in plan.trials]
    assert all(config.terms <= MOST_TERMS for config in configs)
    assert all(math.pow(cell["num_heads"] + 1, cell["depth"]) > MOST_TERMS for cell, _ in plan.dropped)
    heads: dict[tuple[int, int], set[int]] = {}
    for config in configs:
        heads.setdefault((config.maps, config.depth), set()).add(config.num_heads)
    for (maps, layers), planned in heads.items():
        least = next(count for count in range(1, maps) if (count + 1) ** layers >= maps)
        assert {least, max(least - 1, 1)} <= planned, (maps, layers)
