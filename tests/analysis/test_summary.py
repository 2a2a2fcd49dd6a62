"""The sentences that sum verdicts up, and what make_tables prints and opens."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cvit.analysis import make_tables, verdicts_text
from cvit.analysis.answers import answer_text
from cvit.analysis.claims import Verdict, all_claims, verdicts
from cvit.analysis.questions import curves_of
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import Cell, FakeStudy, trainings, write_journal

KEY = "a" * 16


def low_data(seeds: int, accuracy: Callable[[Cell], float | None]) -> FakeStudy:
    grid = {"data_fraction": [0.05, 0.1], "init_scheme": ["random", "two_phase"], "seed": list(range(seeds))}
    return trainings("low_data", KEY, grid, accuracy)


def gain(cell: Cell) -> float:
    return 0.5 + (0.1 + 0.001 * cell["seed"]) * (cell["init_scheme"] == "two_phase")


def summary(folder: Path, *studies: FakeStudy) -> list[str]:
    frames = load_journal(write_journal(folder, studies), curves_of=curves_of)
    return verdicts_text.summary([v for v in verdicts(frames) if v.claim.startswith("low_data_gain/")])


def test_one_seed_is_no_claim_that_fails(tmp_path: Path) -> None:
    assert summary(tmp_path / "1", low_data(1, gain)) == ["Nothing can be judged yet: 1 seed, at least 3 are needed."]
    assert summary(tmp_path / "2", low_data(2, gain)) == ["Nothing can be judged yet: 2 seeds, at least 3 are needed."]


def test_the_terminal_says_so_too(tmp_path: Path) -> None:
    for seeds in (1, 3):
        frames = load_journal(write_journal(tmp_path / str(seeds), [low_data(seeds, gain)]))
        said = "Nothing can be judged yet: 1 seed, at least 3 are needed." in answer_text(frames, KEY)
        assert said == (seeds == 1)


def test_no_seed_with_both_schemes(tmp_path: Path) -> None:
    one_side = low_data(3, lambda cell: gain(cell) if cell["init_scheme"] == "random" else None)
    assert summary(tmp_path, one_side) == [
        "Nothing can be judged yet: no seed has what they compare, at least 3 are needed."
    ]


def test_some_places_with_too_few_seeds(tmp_path: Path) -> None:
    partly = low_data(3, lambda cell: gain(cell) if cell["seed"] < 2 or cell["data_fraction"] == 0.05 else None)
    assert summary(tmp_path, partly) == [
        "1 claim holds.",
        "1 more cannot be judged yet: 2 seeds, at least 3 are needed.",
    ]


def test_outcomes_are_counted_and_none_that_is_zero() -> None:
    def verdict(outcome: str, n: int = 5, claim: str = "low_data_gain/0.05", source: str = "low_data/x") -> Verdict:
        return Verdict(claim, outcome, 0.0, 0.0, 0.0, n, source)

    def said(*outcomes: str) -> str:
        return " ".join(verdicts_text.summary([verdict(outcome) for outcome in outcomes]))

    assert said(HOLDS, HOLDS, FAILS, UNDECIDED) == "2 claims hold, 1 does not hold and 1 is undecided."
    assert said(FAILS, UNDECIDED, UNDECIDED) == "1 claim does not hold and 2 are undecided."
    assert said(UNDECIDED) == "1 claim is undecided."
    # One restart is enough for a claim about heads.
    assert verdicts_text.summary([verdict(HOLDS, 1, "heads_enough/K3-P1", "expressivity/x")]) == ["1 claim holds."]
    # The reason is that of the claim which has come furthest, not that a fit without a result needs one restart.
    fit = verdict(UNDECIDED, 0, "heads_enough/K3-P1", "expressivity/x")
    for waiting in ([fit, verdict(UNDECIDED, 1)], [verdict(UNDECIDED, 1), fit]):
        assert verdicts_text.summary(waiting) == ["Nothing can be judged yet: 1 seed, at least 3 are needed."]
    nothing = verdict(UNDECIDED, 0, "low_data_gain", "nothing to compare in low_data/x")
    assert verdicts_text.summary([nothing]) == [
        "Nothing can be judged yet: their studies have nothing to compare."
    ]  # fmt: skip
    without = [verdict(UNDECIDED, 0, claim.name, f"no study of {sweep}") for sweep, claim in all_claims()]
    assert verdicts_text.summary(without) == ["Nothing can be judged yet: no claim has a study."]
    assert verdicts_text.summary([verdict(HOLDS), without[0]]) == ["1 claim holds.", "No study yet: heads_enough."]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summary") / "storage"
    grid = {"depth": [1, 2], "init_scheme": ["random"], "seed": [0]}
    write_journal(folder, [low_data(3, gain), trainings("any", "b" * 16, grid, lambda cell: 0.5)])
    return folder


def test_a_line_per_sweep_and_the_report_last(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_tables.main(["--storage", str(storage), "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "low_data: digits, n = 3; 12 of 12 trials. 2 claims hold and 1 is undecided."
    assert lines[1] == "any: digits, n = 1; 2 of 2 trials."
    assert lines[2] == "" and lines[-1] == f"Report: {tmp_path / 'report.html'}" and len(lines) < 10
    assert not any(line.startswith("|") for line in lines)


@pytest.mark.parametrize("name", ["low_data", "low-data", "low_data,low_data"])
def test_one_sweep_of_a_store(storage: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_tables.main(["--storage", str(storage), "--out", str(tmp_path), "--sweep", name]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"low_data", "claims", "report"}
    output = capsys.readouterr().out
    assert "any" not in output and "No study yet" not in output  # claims of other sweeps were not asked for
    page = (tmp_path / "report.html").read_text()
    assert "sweep-any" not in page and f"--storage {storage} --sweep {name}" in page


def test_a_sweep_that_is_not_there_is_one_line(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert make_tables.main(["--storage", str(storage), "--out", str(out), "--sweep", "low_date"]) == 2
    said = capsys.readouterr().err
    assert said == "make_tables.py: error: sweep 'low_date' is not in the store, which has low_data, any\n"
    assert not out.exists()


def test_open_shows_the_report_in_the_browser(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    browser.chmod(0o755)
    monkeypatch.setattr("webbrowser._tryorder", None)  # so that the variable is read anew
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    out = tmp_path / "out"
    assert make_tables.main(["--storage", str(storage), "--out", str(out), "--sweep", "any", "--open"]) == 0
    assert opened.read_text() == (out / "report.html").as_uri()


def test_strict_names_what_does_not_hold(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = low_data(3, lambda cell: 0.9 - gain(cell) / 2)
    write_journal(tmp_path / "storage", [lost])
    assert make_tables.main(["--storage", str(tmp_path / "storage"), "--out", str(tmp_path / "out"), "--strict"]) == 3
    assert "Do not hold: low_data_gain/0.05; low_data_gain/0.1.\n" in capsys.readouterr().out
    assert os.path.getsize(tmp_path / "out" / "report.html") > 10_000
