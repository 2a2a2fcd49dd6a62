"""Environments in which Ray, Tune or printing would fail: it works, or one line names the variable and what to set."""

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cvit.engine.environment import NO_HOME, prepare
from cvit.engine.execution import ray_here
from cvit.engine.execution.ray_here import provide_token, session_folder
from cvit.parameters import ConfigError
from tests.support.scripts import ROOT

LONG = "x" * 60
SMOKE = ("--preset", "smoke", "--max-pack", "1", "--min-steps", "2", "--epochs", "0", "--tracking-uri", "none")


def run(folder: Path, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_folders")
class TestSessionFolder:
    """The folder of Ray's sockets."""

    def test_is_in_the_folder_that_the_variable_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        assert session_folder() == "/tmp/ray"

    @pytest.mark.parametrize(
        ("folder", "reason"),
        [
            (f"/tmp/{LONG}", rf"/tmp/{LONG}/ray is \d+ bytes too long for the path of a socket"),
            ("/proc", r"/proc/ray cannot be used \(No such file or directory\)"),
            ("/dev/null", r"/dev/null/ray cannot be used \(Not a directory\)"),
        ],
    )
    def test_is_refused_in_one_line_if_ray_could_not_use_it(
        self, folder: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with pytest.raises(ConfigError, match=rf"^RAY_TMPDIR '{folder}' is not valid for Ray: {reason}; set it to "):
            session_folder()
        monkeypatch.delenv("RAY_TMPDIR")
        monkeypatch.setenv("TMPDIR", folder)  # which was not set for Ray
        assert session_folder() in ("/tmp/ray", f"/tmp/ray-{os.geteuid()}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
    def test_is_not_another_users(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (Path("/tmp") / f"cvit-{os.getpid()}" / "ray").mkdir(parents=True)
        folder = Path("/tmp") / f"cvit-{os.getpid()}"
        monkeypatch.setenv("TMPDIR", str(folder))
        try:
            assert session_folder() == str(folder / "ray")
            os.chown(folder / "ray", 12345, 12345)
            assert session_folder() != str(folder / "ray")
        finally:
            (folder / "ray").rmdir()
            folder.rmdir()

    def test_has_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_here, "NEEDED_BYTES", 2**80)
        with pytest.raises(ConfigError, match=r"MiB left of \d+ that Ray needs.* Set RAY_TMPDIR to a folder"):
            session_folder()

    def test_is_left_without_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_here, "LONGEST_SOCKET_PATH", 300)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("RAY_TMPDIR", "short")
        monkeypatch.setattr(ray_here.os.path, "abspath", lambda path: path)
        assert session_folder() == "short/ray"
        assert list((tmp_path / "short" / "ray").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"HOME": "/dev/null/home"}, True),
        ({"HOME": "/dev/null/home", "RAY_AUTH_MODE": "disabled"}, False),
        ({"HOME": "/dev/null/home", "RAY_AUTH_TOKEN_PATH": "/a/file"}, False),
        ({"HOME": "here"}, False),
    ],
)
def test_where_the_home_folder_takes_no_token_the_environment_does(
    given: Mapping[str, str], made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, str(tmp_path) if value == "here" else value)
    provide_token()
    assert re.fullmatch("[0-9a-f]{64}" if made else "", os.environ.get("RAY_AUTH_TOKEN", ""))


def test_variables_that_end_tune_are_removed_and_ray_uploads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR", "RAY_STORAGE")
    for name in refused:
        monkeypatch.setenv(name, "/tmp/results")
    prepare()
    assert not set(refused) & os.environ.keys()
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"


def test_a_user_without_a_home_folder_gets_a_name_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry: `~` would be an error in Ray."""

    def no_entry(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setenv("HOME", "/its/own")
    prepare()
    assert os.environ["HOME"] == "/its/own"
    monkeypatch.delenv("HOME")
    prepare()
    assert os.environ["HOME"] == NO_HOME and not Path(NO_HOME).exists()


def test_a_folder_of_ray_that_is_no_good_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = run(tmp_path, "sweeps/low_data.py", *SMOKE, RAY_TMPDIR=f"/tmp/{LONG}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"low_data.py: error: RAY_TMPDIR '/tmp/{LONG}' is not valid for Ray: ")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_ray_works_where_everything_is_unusual(tmp_path: Path) -> None:
    """Everything at once, since a start of Ray takes long; each of the first five alone ended it before."""
    unusual = {
        "HOME": "/dev/null/home",
        "TMPDIR": f"/tmp/{LONG}",
        "TUNE_RESULT_DIR": "/tmp/results",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "nonsense",
        "COLUMNS": "1",
        "TERM": "dumb",
        "NO_COLOR": "1",
    }
    done = run(tmp_path, "sweeps/low_data.py", *SMOKE, **unusual)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "two_phase" in done.stdout and "Tables and figures:" in done.stdout
    made = run(tmp_path, "analysis/make_tables.py", "--storage", "storage", **unusual)
    assert made.returncode == 0, made.stderr
    assert made.stdout.isascii() and (tmp_path / "results" / "low_data.png").is_file()
