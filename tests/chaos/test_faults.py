"""A trial whose training raises an error each time fails, the others do not, and the next run tries it again."""

import os
from pathlib import Path

import pytest

from cvit import vocabulary as v
from cvit.engine.execution.faults import CODE_RETRIES
from tests.chaos.processes import MARK
from tests.support.scripts import ROOT, TINY, mlflow_runs, sweep, sweep_with_ray

INJECT = Path(__file__).parent / "inject"


def test_a_trial_whose_training_raises_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inject"
    folder.mkdir()
    (folder / "code-random").write_text("x\n" * 99)
    monkeypatch.setenv(MARK, str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{INJECT}{os.pathsep}{ROOT}")
    grid = ("--min-steps", "16", "--data-fraction", "0.1", "--seeds", "2", "--init-scheme", "random", "two_phase")
    said = sweep_with_ray(tmp_path, *TINY, *grid, "--max-pack", "1", exit_code=1)
    assert len((folder / "code-random").read_text().splitlines()) == 99 - 2 * (1 + CODE_RETRIES)
    assert "2 of 4 trials failed; running the command again retries them." in said
    assert (
        "  ValueError: injected into random: data_fraction=0.1 init_scheme=random budget_unit=steps "
        "seed=0; data_fraction=0.1 init_scheme=random budget_unit=steps seed=1\n" in said
    )
    assert "Traceback" not in said
    by_scheme: dict[str, set[tuple[str, str]]] = {}
    for run in mlflow_runs(tmp_path, v.ROLE_TRIAL):
        note = run.data.tags[v.TAG_NOTE]
        shown = note if run.info.status == "FAILED" else ""
        by_scheme.setdefault(run.data.params["init_scheme"], set()).add((run.info.status, shown))
    assert by_scheme == {"random": {("FAILED", "ValueError: injected into random")}, "two_phase": {("FINISHED", "")}}
    (folder / "code-random").unlink()
    sweep(tmp_path, *TINY, *grid)
    assert {run.info.status for run in mlflow_runs(tmp_path, v.ROLE_TRIAL)} == {"FINISHED"}
    assert len(mlflow_runs(tmp_path, v.ROLE_TRIAL)) == 4
