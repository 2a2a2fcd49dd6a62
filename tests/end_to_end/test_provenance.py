"""The code version of a trial is that of its training, whoever planned it, and whoever takes its stages up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cvit import provenance
from cvit import vocabulary as v
from cvit.provenance import announce_code_version, source_hash
from tests.support.scripts import TINY, journal, mlflow_runs, sweep

OLDER, NEWER = "0.1.0+older", "0.1.0+newer"
TWO_PHASE = (
    *(*TINY, "--min-steps", "8", "--data-fraction", "0.05", "--init-scheme", "two_phase", "--seeds", "1"),
    *("--convolution-learning-rate", "1e-3", "--convolution-warmup-fraction", "0.1"),
)


@pytest.fixture
def announced() -> Iterator[None]:
    """Forgets the versions that a test has announced."""
    yield
    provenance._known_versions.clear()


def run_by(version: str, folder: Path, *options: str) -> None:
    announce_code_version(source_hash(), version)
    sweep(folder, *TWO_PHASE, *options)


def versions(folder: Path, role: str) -> list[str]:
    return sorted(run.data.tags[v.TAG_CODE_VERSION] for run in mlflow_runs(folder, role))


def test_the_code_version_is_that_of_the_training(tmp_path: Path, announced: None) -> None:
    run_by(OLDER, tmp_path, "--learning-rate", "1e-3")
    run_by(NEWER, tmp_path, "--learning-rate", "2e-3")  # its convolution phase is there already
    both = f"{OLDER}, {NEWER}"
    assert versions(tmp_path, v.ROLE_TRIAL) == versions(tmp_path, v.ROLE_STUDY) == [OLDER, both]
    for run in mlflow_runs(tmp_path, v.ROLE_TRIAL):
        assert run.data.tags[v.TAG_TORCH_VERSION] == torch.__version__
        assert run.data.tags[v.TAG_CPU_CAPABILITY] == torch.backends.cpu.get_cpu_capability()
        assert run.data.tags[v.TAG_TRAIN_IMAGES] == "58"
    # A journal that is lost is written again from the stages, by a version that trained none of them.
    for path in (tmp_path / "storage" / v.JOURNAL_FOLDER / "low_data").iterdir():
        path.unlink()
    run_by("0.1.0+newest", tmp_path, "--learning-rate", "1e-3", "--tracking-uri", "none")
    ends = [record["tags"] for record in journal(tmp_path) if record["type"] == v.RECORD_END]
    assert [tags[v.TAG_CODE_VERSION] for tags in ends] == [OLDER]
