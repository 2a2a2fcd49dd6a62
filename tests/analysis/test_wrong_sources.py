"""A source that cannot be read ends make_tables with one line, and nothing is created."""

from pathlib import Path

import pytest

from cvit.analysis import make_tables
from cvit.vocabulary import TRACKING_URI_VARIABLE


@pytest.fixture(autouse=True)
def _in_a_bare_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRACKING_URI_VARIABLE, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that the command ends with."""
    assert make_tables.main(list(options)) == 2
    ended = capsys.readouterr()
    assert ended.out == "" and ended.err.count("\n") == 1 and ended.err.startswith("make_tables.py: error: ")
    assert list(Path().iterdir()) == []
    return ended.err


@pytest.mark.parametrize("url", ["s3://", "gs://"])
def test_a_url_without_a_bucket(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"storage {url!r} cannot be opened: it names no bucket" in refused(capsys, "--storage", url)


def test_a_sweep_without_tracking_is_read_from_its_storage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "tracking URI 'none': there is no store to read; give --storage"
    assert line in refused(capsys, "--tracking-uri", "none")
    monkeypatch.setenv(TRACKING_URI_VARIABLE, "none")
    assert line in refused(capsys)
