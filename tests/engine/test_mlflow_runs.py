"""The runs of a sweep in MLflow say where they came from and what they found, and so does a copy of the journal."""

import getpass
import json
import math
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from cvit import native
from cvit import vocabulary as v
from cvit.analysis.display.colours import colour_of
from cvit.engine import sync as sync_module
from cvit.engine.tracking.attachments import Attachment
from cvit.engine.tracking.run_facts import study_note
from cvit.engine.tracking.tracker import Tracker
from cvit.init.registry import blank_model
from cvit.provenance import git_commit
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.tasks import task_named
from cvit.training.checkpoint import load_weights
from tests.support.fake_runs import journal_of, keys, trial_runs
from tests.support.mlflow_stores import empty_store
from tests.support.plans import SMALL, make_plan
from tests.support.scripts import TINY, sweep

OPTIONS = (
    *TINY,
    *("--min-steps", "24", "--seeds", "2", "--data-fraction", "0.05", "0.3"),
    *("--init-scheme", "random", "two_phase", "--budget-unit", "steps"),
)
OF_SESSION = (v.TAG_DRIVER, "mlflow.parentRunId", "mlflow.loggedArtifacts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which a sweep has run, with its store in another folder."""
    folder = tmp_path_factory.mktemp("work")
    place = tmp_path_factory.mktemp("store")
    (folder / "uri").write_text(empty_store(place))
    run(folder)
    return folder


def run(folder: Path, *options: str) -> str:
    return sweep(folder, *OPTIONS, "--tracking-uri", uri_of(folder), *options)


def uri_of(folder: Path) -> str:
    return (folder / "uri").read_text()


def runs_in(uri: str, role: str) -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("low_data")
    assert experiment is not None
    return [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags[v.TAG_ROLE] == role]


def parent_in(uri: str) -> Any:
    (parent,) = runs_in(uri, v.ROLE_STUDY)
    return parent


def test_every_run_says_where_it_came_from(folder: Path) -> None:
    runs = [*runs_in(uri_of(folder), v.ROLE_TRIAL), parent_in(uri_of(folder))]
    assert len(runs) == 2 * 2 * 2 + 1
    for run in runs:
        tags = run.data.tags
        assert tags[v.TAG_USER] == run.info.user_id == getpass.getuser()
        assert tags[v.TAG_SOURCE].endswith("sweeps/low_data.py") and tags[v.TAG_SOURCE_TYPE] == "LOCAL"
        assert tags.get(v.TAG_GIT_COMMIT, "") == git_commit()
        stages = [Path(path) for path in tags[v.TAG_STAGES].split(", ")]
        assert all(path.is_absolute() and path.is_dir() for path in stages)
        is_two_phase = run.data.params.get("init_scheme") == "two_phase"
        assert len(stages) == (2 if is_two_phase else 1)


def test_every_run_has_its_data_set_with_fingerprint_and_share(folder: Path) -> None:
    for run in runs_in(uri_of(folder), v.ROLE_TRIAL):
        (used,) = run.inputs.dataset_inputs
        fraction = run.data.params["data_fraction"]
        assert used.dataset.name == f"digits {100 * float(fraction):g} %"
        assert used.dataset.digest == run.data.tags[v.TAG_DATA_FINGERPRINT]
        profile = json.loads(used.dataset.profile)
        assert (profile["data_fraction"], profile["num_classes"]) == (float(fraction), 10)
        assert {tag.key: tag.value for tag in used.tags} == {
            "mlflow.data.context": "training",
            "data_fraction": fraction,
            "train_images": run.data.tags[v.TAG_TRAIN_IMAGES],
        }
    (whole,) = parent_in(uri_of(folder)).inputs.dataset_inputs
    assert whole.dataset.name == "digits"


def test_runs_have_the_colours_of_the_figures(folder: Path) -> None:
    runs = runs_in(uri_of(folder), v.ROLE_TRIAL)
    colours = {run.data.params["init_scheme"]: run.data.tags[v.TAG_COLOUR] for run in runs}
    assert colours == {scheme: colour_of(scheme) for scheme in ("random", "two_phase")}


def test_a_study_has_its_answer_as_metrics(folder: Path) -> None:
    """The means equal those of the trials' own runs; the gain has its interval, of two pairs: t(0.975, 1) = 12.7062."""
    metrics = parent_in(uri_of(folder)).data.metrics
    finals: dict[tuple[str, str, str], float] = {}
    for run in runs_in(uri_of(folder), v.ROLE_TRIAL):
        params = run.data.params
        place = params["init_scheme"], params["data_fraction"], params["seed"]
        finals[place] = run.data.metrics[v.TEST_ACCURACY]
    for scheme in ("random", "two_phase"):
        for fraction in ("0.05", "0.3"):
            values = [finals[scheme, fraction, seed] for seed in "01"]
            assert metrics[f"answer/{scheme} data_fraction {fraction} mean"] == pytest.approx(statistics.fmean(values))
            assert metrics[f"answer/{scheme} data_fraction {fraction} n"] == 2
    gains = [finals["two_phase", "0.3", seed] - finals["random", "0.3", seed] for seed in "01"]
    half = 12.7062 * statistics.stdev(gains) / math.sqrt(2)
    name = "answer/paired_gain two_phase-random data_fraction 0.3"
    assert metrics[f"{name} mean"] == pytest.approx(statistics.fmean(gains))
    assert metrics[f"{name} ci_low"] == pytest.approx(statistics.fmean(gains) - half, abs=1e-4)
    assert metrics[f"{name} ci_high"] == pytest.approx(statistics.fmean(gains) + half, abs=1e-4)


def test_a_study_has_answer_report_and_environment_as_files(folder: Path, tmp_path: Path) -> None:
    parent = parent_in(uri_of(folder))
    place = Path(download_artifacts(run_id=parent.info.run_id, tracking_uri=uri_of(folder), dst_path=str(tmp_path)))
    assert {"low_data.md", "low_data.csv", "low_data.png", "report.html"} <= {
        p.name for p in (place / "answer").iterdir()
    }
    assert (place / "answer/low_data.png").read_bytes().startswith(b"\x89PNG")
    packages = (place / "environment/requirements.txt").read_text().splitlines()
    assert f"mlflow=={metadata.version('mlflow')}" in packages and packages == sorted(packages, key=str.lower)
    hardware = json.loads((place / "environment/hardware.json").read_text())
    assert hardware["cores"] >= 1 and hardware["fused_operators"] == native.is_available()
    assert "| training data |" in parent.data.tags[v.TAG_NOTE]


def test_a_study_has_the_load_of_the_machine(folder: Path) -> None:
    metrics = parent_in(uri_of(folder)).data.metrics
    loads = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.startswith(v.SYSTEM)}
    assert 0 <= loads["cpu_utilization_percentage"] <= 100 and 0 < loads["system_memory_usage_percentage"] <= 100


def test_the_experiment_has_the_question_and_files_lie_beside_the_store(folder: Path) -> None:
    experiment = MlflowClient(uri_of(folder)).get_experiment_by_name("low_data")
    assert experiment is not None
    question, where, links = experiment.tags[v.TAG_NOTE].split("\n\n")
    assert question == parent_in(uri_of(folder)).data.tags[v.TAG_QUESTION] and "Model training" in where
    assert f"](#/experiments/{experiment.experiment_id}/runs?" in links
    store = Path(uri_of(folder).removeprefix("sqlite:///")).parent
    assert experiment.artifact_location == (store / "mlartifacts" / "low_data").as_uri()
    assert not (folder / "mlruns").exists() and (store / "mlartifacts").is_dir()


def contents(uri: str) -> list[Any]:
    """Everything that a store has of the sweep's runs but ids, times and what only a driver knows."""
    client = MlflowClient(uri)

    def of(run: Any) -> Any:
        run_id = run.info.run_id
        tags = {name: text for name, text in run.data.tags.items() if name not in OF_SESSION}
        histories = [client.get_metric_history(run_id, name) for name in run.data.metrics]
        points = sorted((point.key, point.step, point.value) for history in histories for point in history)
        files = [file.path for folder in ("answer", "environment") for file in client.list_artifacts(run_id, folder)]
        inputs = [
            (use.dataset.to_dictionary(), sorted(tag.key for tag in use.tags)) for use in run.inputs.dataset_inputs
        ]
        return run.info.run_name, run.info.status, tags, run.data.params, points, files, inputs

    return sorted(map(of, [*runs_in(uri, v.ROLE_TRIAL), *runs_in(uri, v.ROLE_STUDY)]), key=lambda each: each[0])


def test_a_copy_by_hand_equals_the_live_one_and_again_adds_nothing(folder: Path, tmp_path: Path) -> None:
    live = contents(uri_of(folder))
    uri = empty_store(tmp_path)
    for _ in range(2):
        assert sync_module.sync(storage=str(folder / "storage"), tracking_uri=uri) == 0
        assert contents(uri) == live
    run(folder)
    assert contents(uri_of(folder)) == live


def test_what_an_earlier_version_did_not_write_is_completed(folder: Path, tmp_path: Path) -> None:
    uri = empty_store(tmp_path)
    sync_module.sync(storage=str(folder / "storage"), tracking_uri=uri)
    before, client = contents(uri), MlflowClient(uri)
    for each in [*runs_in(uri, v.ROLE_TRIAL), parent_in(uri)]:
        for tag in (v.TAG_USER, v.TAG_SOURCE, v.TAG_COLOUR, v.TAG_STAGES):
            if tag in each.data.tags:
                client.delete_tag(each.info.run_id, tag)
    assert contents(uri) != before
    sync_module.sync(storage=str(folder / "storage"), tracking_uri=uri)
    assert contents(uri) == before


def test_the_best_model_is_logged_and_predicts_as_the_stored_one(folder: Path) -> None:
    run(folder, "--log-models")
    uri = uri_of(folder)
    (best,) = [each for each in runs_in(uri, v.ROLE_TRIAL) if v.TAG_MODEL in each.data.tags]
    others = [each.data.metrics[v.VAL_ACCURACY] for each in runs_in(uri, v.ROLE_TRIAL)]
    assert best.data.metrics[v.VAL_ACCURACY] == max(others) and best.info.status == "FINISHED"
    (output,) = best.outputs.model_outputs
    logged = MlflowClient(uri).get_logged_model(output.model_id)
    from mlflow import pytorch

    model = pytorch.load_model(logged.artifact_location)
    storage = Storage.open(str(folder / "storage"))
    stored = stored_model(folder, best.data.tags[v.TAG_MODEL])
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), stored(images), rtol=1e-4, atol=1e-5)
    assert load_weights(storage, best.data.tags[v.TAG_MODEL]) is not None


def stored_model(folder: Path, key: str) -> torch.nn.Module:
    plan = make_plan(folder, *OPTIONS)
    stage = plan.stages[key]
    assert isinstance(stage, TrainingStage)
    model = blank_model(stage)
    weights = load_weights(Storage.open(str(folder / "storage")), key)
    assert weights is not None and task_named(plan.study.task).trained_model is not None
    model.load_state_dict(weights)
    return model.eval()


def test_files_that_cannot_be_stored_hold_up_nothing_else(tmp_path: Path) -> None:
    uri = empty_store(tmp_path)
    (tmp_path / "file").write_text("no folder")
    MlflowClient(uri).create_experiment("low_data", (tmp_path / "file" / "below").as_uri())
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 3, ended=True)
    tracker = Tracker(uri, "low_data", keys(plan), journal.records)
    tracker.attach(plan.study.key, Attachment(v.TAG_ANSWER, "1", lambda: {"a.txt": b"a"}))
    assert not tracker.close("FINISHED", timeout_s=60)
    assert tracker.error is not None and v.TAG_ANSWER in tracker.error
    assert {run.info.status for run in trial_runs(uri, "low_data")} == {"FINISHED"}
    assert parent_in(uri).info.status == "FINISHED" and v.TAG_ANSWER not in parent_in(uri).data.tags


def test_an_interval_in_a_description_is_no_link() -> None:
    assert study_note("Q?", "c", "+5.4 [-2.0, +12.9] (3)") == "Q?\n\n+5.4 \\[-2.0, +12.9] (3)\n\n    c"


def test_an_answer_that_comes_after_the_runs_are_found_is_there_once(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    uri, journal = empty_store(tmp_path), journal_of(tmp_path, plan, 3, ended=True)
    for time_ms in (1000, 2000):
        tracker = Tracker(uri, "low_data", keys(plan), journal.records)
        if time_ms == 2000:
            while not tracker._is_connected:
                time.sleep(0.05)
        answer = Attachment(v.TAG_ANSWER, "checksum", points=[("answer/random mean", 8, 0.5, time_ms)])
        tracker.attach(plan.study.key, answer)
        assert tracker.close("FINISHED", timeout_s=60), tracker.error
    history = MlflowClient(uri).get_metric_history(parent_in(uri).info.run_id, "answer/random mean")
    assert [point.timestamp for point in history] == [1000]
