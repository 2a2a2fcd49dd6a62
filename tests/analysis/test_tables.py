"""From tracking store to tables: the same from the journal as from MLflow, and right by hand-computed numbers."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cvit import tracking
from cvit import vocabulary as names
from cvit.analysis import make_tables
from cvit.analysis.answers import answer_text
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of
from cvit.analysis.statistics import stats
from cvit.analysis.store.frames import Frames, rows_of
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from cvit.config import TrialConfig
from cvit.storage import Storage
from tests.support.fake_studies import TIME_MS, FakeStudy, FakeTrial, write_journal, write_mlflow

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"


def fake_trial(
    dataset: str, fraction: float, scheme: str, seed: int, final: float, status: str | None = "ok", steps: int = 400
) -> FakeTrial:
    params = TrialConfig.from_flat({"dataset": dataset, "data_fraction": fraction, "init_scheme": scheme, "seed": seed})
    flat = params.flat() | {"position_encoding": "relative+absolute" if scheme == "random" else "relative"}
    flat |= {"learning_rate": 0.0005 if scheme == "random" else 0.001}
    points = []
    for step in range(0, steps + 1, steps // 10):
        time_ms = TIME_MS + step
        points.append((names.VAL_ACCURACY, step, 0.1 + (final - 0.1) * (1 - math.exp(-5 * step / steps)), time_ms))
        points.append((names.TRAIN_LOSS, step, 2.3 - 2 * step / steps, time_ms))
    if not math.isnan(final):
        points.append((names.TEST_ACCURACY, steps // 2, final / 2, TIME_MS))
        points.append((names.TEST_ACCURACY, steps, final, TIME_MS + steps))
    tags = {names.TAG_DIVERGED_STEP: "120"} if status == names.STATUS_DIVERGED else {}
    return FakeTrial(f"{dataset}-{fraction}-{scheme}-{seed}", flat, points, status, tags)


def fake_studies() -> list[FakeStudy]:
    """Two studies: one whole apart from every kind of incompleteness, and one that has only begun."""
    fractions, schemes = [0.01, 0.1, 1.0], ["random", "two_phase"]
    base = {(0.01, "random"): 0.12, (0.01, "two_phase"): 0.60, (0.1, "random"): 0.55, (0.1, "two_phase"): 0.85}
    base |= {(1.0, "random"): 0.95, (1.0, "two_phase"): 0.96}
    trials = []
    for (fraction, scheme), final in base.items():
        for seed in range(4):
            status: str | None = "ok"
            accuracy = final + 0.01 * seed * (1 if scheme == "random" else -0.5)
            match fraction, scheme, seed:
                case 0.1, "random", 1:
                    status = "failed"
                case 0.1, "random", 2:
                    status = None
                case 0.1, "two_phase", 3:
                    continue
                case 1.0, "random", 0:
                    status = "diverged"
                case 1.0, "random", 1:
                    status, accuracy = "diverged", math.nan
            trials.append(fake_trial("digits", fraction, scheme, seed, accuracy, status, 400 if fraction < 1 else 800))
    trials[0].points.append((names.TRAIN_LOSS, 410, math.inf, TIME_MS + 410))
    first = {"data_fraction": fractions, "init_scheme": schemes, "seed": [0, 1, 2]}
    second = {"data_fraction": fractions, "init_scheme": schemes, "seed": [3]}
    begun = {"data_fraction": [0.05], "init_scheme": schemes, "seed": [0]}
    digits, cifar = ({"dataset": name, "batch_size": 64, "learning_rate": 0.001} for name in ("digits", "cifar_10%"))
    of_cifar = [fake_trial("cifar_10%", 0.05, "two_phase", 0, 0.446)]
    return [
        FakeStudy("a1b2c3d4e5f60718", "low_data", [first], trials, digits, extensions=[[second]]),
        FakeStudy("0f1e2d3c4b5a6978", "low_data", [begun], of_cifar, cifar, TIME_MS + 86_400_000),
    ]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return write_journal(tmp_path_factory.mktemp("storage"), fake_studies())


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    write_mlflow(uri, fake_studies())
    return uri


@pytest.fixture(scope="module")
def frames(journal: Storage) -> Frames:
    return load_journal(journal, curves_of=curves_of)


def test_t_interval_by_hand() -> None:
    three = stats.t_interval([0.5, 0.6, 0.7])  # s = 0.1, t(0.975, 2) = 4.302653, half-width 4.302653 * 0.1 / sqrt(3)
    assert (three.mean, three.n) == (pytest.approx(0.6), 3)
    assert three.ci_low == pytest.approx(0.6 - 0.2484138, abs=1e-7)
    assert three.ci_high == pytest.approx(0.6 + 0.2484138, abs=1e-7)
    one = stats.t_interval([0.5])
    assert (one.mean, one.n) == (0.5, 1) and math.isnan(one.ci_low) and math.isnan(one.ci_high)
    assert stats.t_interval([]).n == 0 and math.isnan(stats.t_interval([]).mean)


def test_pairs_are_made_by_seed(frames: Frames) -> None:
    study = rows_of(frames.studies)[0]
    own = [trial for trial in rows_of(frames.trials) if trial["study_key"] == study["study_key"]]
    results = stats.study_results(study["cells"], own)
    gains = stats.paired_difference(results, "init_scheme", "two_phase", "random")
    low, middle, full = gains
    assert [gain.place for gain in gains] == [{"data_fraction": fraction} for fraction in (0.01, 0.1, 1.0)]
    # Differences at 1 %: 0.48 - 0.015 * seed, for four seeds: s = 0.0193649, t(0.975, 3) = 3.182446.
    assert low.estimate.mean == pytest.approx(0.4575)
    assert low.estimate.ci_high == pytest.approx(0.4575 + 3.182446 * 0.0193649 / 2, abs=1e-6)
    # At 10 % only seed 0 has both members; at 100 % random's seed 1 diverged unmeasured and seed 0 with an accuracy.
    assert (middle.estimate.n, middle.expected, middle.diverged, middle.missing) == (1, 4, 0, 3)
    assert math.isnan(middle.estimate.ci_low)
    assert (full.estimate.n, full.expected, full.diverged, full.missing) == (3, 4, 2, 0)


def test_frames_hold_every_trial_once(frames: Frames) -> None:
    studies = fake_studies()
    assert list(frames.studies["study_key"]) == [study.key for study in studies]
    assert list(frames.studies["start_time_ms"]) == [study.start_time_ms for study in studies]
    assert frames.studies["command"].iloc[0] == studies[0].command(1)
    assert [grid["seed"] for grid in frames.studies["cells"].iloc[0]] == [[0, 1, 2], [3]]
    assert sorted(frames.trials["trial_key"]) == sorted(trial.key for study in studies for trial in study.trials)
    first = frames.trials.set_index("trial_key").loc[studies[0].trials[0].key]
    assert first["status"] == "ok" and first[names.TEST_ACCURACY] == 0.12 and first[names.TRAIN_LOSS] == math.inf
    assert first["batch_size"] == 64 and isinstance(first["data_fraction"], float)
    assert not frames.curves.duplicated(["trial_key", "metric", "step"]).any()
    assert set(frames.curves["metric"]) == set(curves_of("low_data"))


def test_mlflow_gives_the_same_frames_page_by_page(
    frames: Frames, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PER_PAGE", 4)
    again = load_mlflow(mlflow_uri, curves_of)
    for name in ("studies", "trials", "curves"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(frames, name), check_exact=True)


def test_tables_are_the_golden_ones_from_either_source(
    journal: Storage, mlflow_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_journal, from_mlflow = tmp_path / "journal", tmp_path / "mlflow"
    assert make_tables.main(["--storage", journal.url, "--out", str(from_journal)]) == 0
    printed = capsys.readouterr().out
    assert make_tables.main(["--tracking-uri", mlflow_uri, "--out", str(from_mlflow)]) == 0
    for name in ("low_data.md", "low_data.csv", "low_data.tex"):
        assert (from_journal / name).read_text() == (GOLDEN / name).read_text()
    for name in ("low_data.md", "low_data.csv", "low_data.tex", "low_data.svg", "low_data.png", "low_data.pdf"):
        assert (from_journal / name).read_bytes() == (from_mlflow / name).read_bytes()
    # One trial of the first study failed, one is unfinished and one has not started; of the second, one of two is done.
    assert printed.startswith("low_data: 2 studies; 22 of 26 trials. ")
    assert printed.endswith(f"Report: {from_journal / 'report.html'}\n")


def test_missing_cells_are_shown(frames: Frames) -> None:
    files = files_of(frames, "low_data").by_name
    text = files["low_data.md"].decode()
    for line in (
        "- 10 %, random, seed 1: failed",
        "- 10 %, random, seed 2: unfinished",
        "- 10 %, two_phase, seed 3: not started",
        "- 100 %, random, seed 1: diverged at step 120",
        "- 5 %, random, seed 0: not started",
    ):
        assert f"\n{line}\n" in text
    csv = files["low_data.csv"].decode().splitlines()
    assert "low_data,cifar_10%-0f1e2d3c,cifar_10%,accuracy,0.05,random,,,,0,1,0" in csv


def test_a_study_without_trials_is_all_missing(tmp_path: Path) -> None:
    begun = fake_studies()[1]
    begun.trials = []
    storage = write_journal(tmp_path / "storage", [begun])
    assert make_tables.main(["--storage", storage.url, "--out", str(tmp_path / "out")]) == 0
    assert "Missing: 2 of 2 trials." in answer_text(load_journal(storage, "low_data"), begun.key)


def test_the_answer_for_the_terminal(frames: Frames) -> None:
    assert answer_text(frames, "a1b2c3d4e5f60718") == (GOLDEN / "answer.txt").read_text()
    with pytest.raises(KeyError):
        answer_text(frames, "unknown")


def test_the_tables_need_neither_plots_nor_mlflow() -> None:
    heavy = ("matplotlib", "mlflow", "torch", "ray")
    code = f"import sys, cvit.analysis.answers; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bad_input_is_one_line_and_creates_nothing(
    journal: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.db").write_text("not a database, not a database, not a database")
    (tmp_path / "journal_only" / "journal" / "low_data").mkdir(parents=True)
    (tmp_path / "journal_only" / "journal" / "low_data" / "0.jsonl").write_text("torn")
    before = sorted(tmp_path.rglob("*"))
    cases = {
        (): "'mlflow.db'",
        ("--tracking-uri", "sqlite:///absent/mlflow.db"): "'absent/mlflow.db'",
        ("--tracking-uri", "sqlite:///text.db"): "not a database",
        ("--tracking-uri", "mlruns"): "'mlruns'",
        ("--tracking-uri", "nonsense://host"): "nonsense://host is not valid: it must begin with one of sqlite,",
        ("--storage", "absent"): "/absent' has no journal",
        ("--storage", "empty"): "/empty' has no journal",
        ("--storage", "text.db"): "/text.db'",
        ("--storage", "journal_only"): "no study",
        ("--storage", "nonsense://host"): "nonsense://host",
        ("--storage", journal.url, "--out", "text.db"): "out 'text.db' must be a folder",
        ("--storage", "empty", "--tracking-uri", "sqlite:///mlflow.db"): "exclusive",
        ("--outt", "x"): "--outt",
    }
    for arguments, said in cases.items():
        assert make_tables.main(list(arguments)) == 2, arguments
        output = capsys.readouterr()
        assert output.err.startswith("make_tables.py: error: ") and output.err.count("\n") == 1, arguments
        assert said.lower() in output.err.lower(), arguments
        assert output.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_the_script_runs_as_documented(journal: Storage, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "analysis" / "make_tables.py"), "--storage", journal.url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # The journal has a record of a type that no version has so far.
    passed_over = "has records of type 'of a later version', written by a later version; they are passed over"
    assert done.returncode == 0 and [passed_over] == [line[-len(passed_over) :] for line in done.stderr.splitlines()]
    assert done.stdout.startswith("low_data: ")
    assert len(list((tmp_path / "results").iterdir())) == 6 + 3


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_tables.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--tracking-uri", "--storage", "--out", "--strict", "--sweep", "--open"))


def test_latex_has_the_comparisons_sections_and_costs_of_markdown(tmp_path: Path) -> None:
    from tests.analysis.test_budget import budget_study

    files = files_of(load_journal(write_journal(tmp_path, [budget_study()])), "budget").by_name
    markdown, latex = files["budget.md"].decode(), files["budget.tex"].decode()
    titles = [line.removeprefix("### ") for line in markdown.splitlines() if line.startswith("### ")]
    assert "Cost of a trial" in titles and "The budget from which on two phases pay" in titles
    captions = [line for line in latex.splitlines() if r"\caption{" in line]
    assert len(captions) == 1 + len(titles) and all(any(title in line for line in captions) for title in titles)
    labels = [line.strip() for line in latex.splitlines() if r"\label{" in line]
    assert len(set(labels)) == len(labels)
    crossing = next(line for line in markdown.splitlines() if line.startswith("| random ") and " 234 " in line)
    assert " & ".join(cell.strip() for cell in crossing.strip("|").split("|")) + r" \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == len(captions)
