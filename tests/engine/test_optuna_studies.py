"""A search in an Optuna storage: what Optuna reads back is what the journal has, and bad storages are told at once."""

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from cvit import vocabulary as v
from cvit.engine.declaration import Choice
from cvit.engine.planning.progress import Outcome
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.optuna_studies import check_optuna_storage, export_search
from cvit.engine.recording.record import record_failures, record_pruned
from cvit.parameters import ConfigError
from cvit.results import StageResult
from cvit.stages import depends_on
from cvit.storage import Storage
from sweeps.tuned import SPACE, SWEEP
from tests.support.plans import Order, make_progress, train_here
from tests.support.scripts import call, journal, sweep

SCHEMES = ("random", "two_phase")
TINY = (
    *("--preset", "smoke", "--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16"),
    *("--epochs", "0", "--min-steps", "8", "--evaluations", "2", "--max-test-images", "20"),
)
DATABASE = "sqlite:///optuna.db"


def run(folder: Path, storage: str, *options: str) -> str:
    options = (*TINY, *options, "--optuna-storage", storage, "--tracking-uri", "none", "--max-pack", "4")
    return sweep(folder, *options, script="sweeps/tuned.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search was run with two trials per scheme, then with four, and then once more."""
    folder = tmp_path_factory.mktemp("optuna")
    run(folder, DATABASE, "--search-trials", "1")
    before = trials_of(database(folder))
    output = run(folder, DATABASE, "--search-trials", "3")
    assert "Optuna studies:      optuna-dashboard sqlite:///optuna.db" in output
    after = trials_of(database(folder))
    assert {scheme: trials[:1] for scheme, trials in after.items()} == before, "what was there stays as it was"
    run(folder, DATABASE, "--search-trials", "3")
    assert trials_of(database(folder)) == after, "nothing is added twice"
    return folder


def database(folder: Path) -> BaseStorage:
    return RDBStorage(f"sqlite:///{folder}/optuna.db")


def studies(storage: BaseStorage) -> dict[str, optuna.Study]:
    """The studies of a storage, by init scheme."""
    names = optuna.get_all_study_names(storage)
    loaded = [optuna.load_study(study_name=name, storage=storage) for name in names]
    return {study.user_attrs["init_scheme"]: study for study in loaded}


def trials_of(storage: BaseStorage) -> dict[str, list[FrozenTrial]]:
    return {scheme: study.trials for scheme, study in studies(storage).items()}


def plain(trial: FrozenTrial) -> tuple[Any, ...]:
    """The facts of a trial that do not depend on the storage."""
    return trial.number, trial.state, trial.value, trial.params, trial.distributions, trial.intermediate_values


def test_optuna_reads_what_the_journal_has(folder: Path) -> None:
    records = journal(folder, "tuned")
    (study_key,) = {record["study_key"] for record in records if record["type"] == v.RECORD_STUDY}
    params = {record["trial_key"]: record["params"] for record in records if record["type"] == v.RECORD_TRIAL}
    ends = {record["trial_key"]: record for record in records if record["type"] == v.RECORD_END}
    curves: dict[str, dict[int, float]] = {key: {} for key in params}
    for record in records:
        if record["type"] == v.RECORD_POINTS:
            points = record["points"]
            curves[record["trial_key"]].update({step: x for name, step, x, _ in points if name == v.VAL_ACCURACY})
    found = studies(database(folder))
    assert list(found) == list(SCHEMES)
    for scheme, study in found.items():
        searched = [k for k, p in params.items() if p["init_scheme"] == scheme and p["seed"] == v.SEARCH_SEED]
        assert [trial.user_attrs[v.TAG_TRIAL_KEY] for trial in study.trials] == searched and len(searched) == 3
        assert study.user_attrs[v.TAG_STUDY_KEY] == study_key
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        for key, trial in zip(searched, study.trials, strict=True):
            assert trial.state == TrialState.COMPLETE and ends[key]["status"] == v.STATUS_OK
            assert trial.intermediate_values == curves[key] and len(curves[key]) >= 2
            assert trial.value == curves[key][max(curves[key])]
            unset = {name for name in SPACE if trial.number == 0 and params[key][name] is None}
            assert {name for name in SPACE if depends_on(scheme, name)} - unset == trial.params.keys()
            assert trial.params == {name: params[key][name] for name in trial.params}
            assert trial.user_attrs[v.TAG_STATUS] == v.STATUS_OK
            stage_keys = trial.user_attrs[v.ATTRIBUTE_STAGE_KEYS]
            assert len(stage_keys) == {"random": 1, "two_phase": 2}[scheme]
            assert all((folder / "storage/stages" / stage).is_dir() for stage in stage_keys)
            assert trial.datetime_start is not None and trial.datetime_complete is not None
            assert trial.datetime_start <= trial.datetime_complete


def test_distributions_are_the_space(folder: Path) -> None:
    for study in studies(database(folder)).values():
        for trial in study.trials:
            for name, distribution in trial.distributions.items():
                within = SPACE[name]
                if isinstance(within, Choice):
                    assert distribution == CategoricalDistribution(within.values)
                else:
                    assert distribution == FloatDistribution(within.low, within.high, log=within.log)


def test_finalists_and_winner_are_those_of_the_search(folder: Path) -> None:
    records = journal(folder, "tuned")
    params = {record["trial_key"]: record["params"] for record in records if record["type"] == v.RECORD_TRIAL}
    for scheme, study in studies(database(folder)).items():
        finalists = dict(study.user_attrs[v.ATTRIBUTE_FINALISTS])
        assert len(finalists) == 2
        assert study.user_attrs[v.ATTRIBUTE_WINNER] == max(finalists, key=lambda number: finalists[number])
        winner = study.trials[study.user_attrs[v.ATTRIBUTE_WINNER]]
        fresh = [p for p in params.values() if p["init_scheme"] == scheme and 0 < p["seed"] < v.FINALIST_SEED]
        assert winner.params.items() <= fresh[-1].items()


def test_a_journal_file_holds_the_same(folder: Path) -> None:
    run(folder, "optuna.log", "--search-trials", "3")
    stored = trials_of(JournalStorage(JournalFileBackend(str(folder / "optuna.log"))))
    in_database = trials_of(database(folder))
    for scheme in SCHEMES:
        assert list(map(plain, stored[scheme])) == list(map(plain, in_database[scheme]))
    size = (folder / "optuna.log").stat().st_size
    run(folder, "optuna.log", "--search-trials", "3")
    assert trials_of(JournalStorage(JournalFileBackend(str(folder / "optuna.log")))) == stored
    assert (folder / "optuna.log").stat().st_size == size


def test_states_of_trials_that_did_not_go_well(tmp_path: Path) -> None:
    """One of each kind. What is trained after all becomes another trial with the same key."""
    progress = make_progress(tmp_path, *TINY, "--asha", "--init-scheme", "random", "--search-trials", "4", sweep=SWEEP)
    storage = Storage.open(str(tmp_path))
    book = Journal(storage, "tuned")
    book.record_plan(progress.plan.study, progress.plan.trials, {})
    pruned, failed = progress.plan.trials[:2]
    book.record_points([pruned], [(v.VAL_ACCURACY, 2, 0.125, 1_000), (v.VAL_ACCURACY, 4, 0.25, 2_000)])
    record_pruned(progress, book, pruned.stages[0].key, 0.25)
    record_failures(progress, book, {failed.stages[0].key: Outcome("failed", "RuntimeError: no")})
    url = f"sqlite:///{tmp_path}/states.db"
    export_search(progress, book.records, url)
    study = studies(RDBStorage(url))["random"]
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.FAIL]
    first, second = study.trials
    assert (first.value, first.intermediate_values) == (0.25, {2: 0.125, 4: 0.25})
    assert (second.value, second.user_attrs[v.TAG_TRIAL_KEY]) == (None, failed.key)
    # The next session trains both without --asha, and one of them diverges.
    progress = make_progress(tmp_path, *TINY, "--init-scheme", "random", "--search-trials", "4", sweep=SWEEP)
    train_here(progress, tmp_path, Order())
    key = pruned.stages[0].key
    progress.results[key] = dataclasses.replace(progress.results[key], diverged_step=4, status=v.STATUS_DIVERGED)
    assert isinstance(progress.results[key], StageResult)
    export_search(progress, Journal(storage, "tuned").records, url)
    export_search(progress, Journal(storage, "tuned").records, url)
    study = studies(RDBStorage(url))["random"]
    assert [trial.state for trial in study.trials[2:]] == [TrialState.COMPLETE] * 2
    assert [trial.user_attrs[v.TAG_TRIAL_KEY] for trial in study.trials] == [pruned.key, failed.key] * 2
    assert study.trials[2].value == 0.0 and study.trials[2].user_attrs[v.TAG_STATUS] == v.STATUS_DIVERGED


def test_settings_outside_of_the_space_are_attributes(tmp_path: Path) -> None:
    options = (*TINY, "--init-scheme", "random", "--search-trials", "1")
    progress = make_progress(tmp_path, *options, sweep=SWEEP)
    space = {**SPACE, "learning_rate": dataclasses.replace(SPACE["learning_rate"], low=0.5, high=0.9)}
    assert progress.plan.search is not None
    progress.plan = dataclasses.replace(progress.plan, search=dataclasses.replace(progress.plan.search, space=space))
    book = Journal(Storage.open(str(tmp_path)), "tuned")
    book.record_plan(progress.plan.study, progress.plan.trials, {})
    train_here(progress, tmp_path, Order())
    export_search(progress, Journal(Storage.open(str(tmp_path)), "tuned").records, str(tmp_path / "log"))
    (trial,) = studies(JournalStorage(JournalFileBackend(str(tmp_path / "log"))))["random"].trials
    (own,) = progress.plan.trials
    assert "learning_rate" not in trial.params and trial.user_attrs["learning_rate"] == own.cell["learning_rate"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://optuna.db", "Invalid SQLite URL"),
        ("sqlite://", "give sqlite:///FILE, with three slashes"),
        ("sqlite:///:memory:", "give sqlite:///FILE, with three slashes"),
        ("sqlite:///no/such/optuna.db", "there is no folder 'no/such'"),
        ("no/such/optuna.log", "there is no folder 'no/such'"),
        ("redis://localhost:6379", "give sqlite:///FILE, postgresql://…, mysql://…, or the path of a journal file"),
        ("s3://bucket/optuna", "give sqlite:///FILE, postgresql://…, mysql://…, or the path of a journal file"),
        ("postgresql+nodriver://h/d", "Can't load plugin: sqlalchemy.dialects:postgresql.nodriver"),
        ("sqlite:///text", "(sqlite3.DatabaseError) file is not a database"),
        ("sqlite:///other.db", "it is a database of something else; give one of its own"),
        ("text", "it is a file of something else; give "),
        ("other.db", "it is a database: give sqlite:///other.db"),
        (".", "Is a directory"),
        ("mysql+nodriver://user:hush@host/d", "Can't load plugin"),
    ],
)
def test_a_bad_storage_is_told_in_a_line_before_any_work(url: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Not a database, not a journal.\n" * 9)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE experiments (name TEXT)")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ((), ("--dry-run",)):
        ended = call(tmp_path, *TINY, "--optuna-storage", url, *options, script="sweeps/tuned.py")
        assert ended.exit_code == 2 and ended.output == "" and ended.errors.count("\n") == 1
        assert reason in ended.errors and "hush" not in ended.errors
        shown = url.replace("user:hush", "***")
        assert ended.errors.startswith(f"tuned.py: error: optuna_storage {shown!r} is not valid: "), ended.errors
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_a_dry_run_creates_no_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    check_optuna_storage(url, may_write=False)
    check_optuna_storage(str(tmp_path / "optuna.log"), may_write=False)
    assert list(tmp_path.iterdir()) == []
    check_optuna_storage(url, may_write=True)
    check_optuna_storage(url, may_write=False)
    with pytest.raises(ConfigError, match="it is a database: give sqlite:///"):
        check_optuna_storage(str(tmp_path / "optuna.db"), may_write=False)


def test_a_storage_that_breaks_later_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its disk is full: the sweep ends well, says what is missing, and the next run adds it."""
    from cvit.engine.recording import optuna_studies

    (tmp_path / "gone").mkdir()
    check = optuna_studies.check_optuna_storage

    def check_and_break(url: str, may_write: bool) -> None:
        check(url, may_write)
        (tmp_path / "gone" / "optuna.log").unlink()
        (tmp_path / "gone").rmdir()

    monkeypatch.setattr(optuna_studies, "check_optuna_storage", check_and_break)
    options = ("--init-scheme", "random", "--search-trials", "1")
    output = run(tmp_path, "gone/optuna.log", *options)
    assert "gone/optuna.log is incomplete (" in output and "running the command again copies the search" in output
    monkeypatch.setattr(optuna_studies, "check_optuna_storage", check)
    (tmp_path / "gone").mkdir()
    run(tmp_path, "gone/optuna.log", *options)
    stored = trials_of(JournalStorage(JournalFileBackend(str(tmp_path / "gone/optuna.log"))))
    assert len(stored["random"]) == 1
