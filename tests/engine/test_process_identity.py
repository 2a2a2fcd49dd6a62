"""Living and dead processes are told apart, also where the system hides those of other users."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cvit.engine.recording import process_identity as module
from cvit.engine.recording.process_identity import is_alive, is_dead, this_process
from tests.support.scripts import ROOT

HOST = socket.gethostname()
FREE_PID = 2**22 + 1
"""A number that no process of Linux has."""
NOBODY = "65534"


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is another user's, and invisible in /proc."""
    this_process()  # which keeps what it finds out about this boot
    monkeypatch.setattr(module, "_PROC", tmp_path)


def of_this_place(pid: int, start: str) -> str:
    return f"{HOST}:{pid}:{this_process().split(':')[2]}:{start}"


def test_a_visible_process_lives_until_it_ends() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        start = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        identity = of_this_place(other.pid, start)
        assert (is_alive(identity), is_dead(identity)) == (True, False)
        reused = of_this_place(other.pid, str(int(start) - 1))
        assert (is_alive(reused), is_dead(reused)) == (False, True)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert (is_alive(identity), is_dead(identity)) == (False, True)
    assert (is_alive(identity), is_dead(identity)) == (False, True)


@pytest.mark.usefixtures("hidden")
def test_nothing_is_known_of_a_hidden_process_that_exists() -> None:
    identity = of_this_place(os.getpid(), "1")
    assert (is_alive(identity), is_dead(identity)) == (False, False)


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("pid", [FREE_PID, 2**40])
def test_a_hidden_process_that_does_not_exist_is_dead(pid: int) -> None:
    assert is_dead(of_this_place(pid, "1"))


@pytest.mark.parametrize("start", ["", "1"])
def test_a_process_elsewhere_is_neither(start: str) -> None:
    for identity in (
        f"elsewhere:{FREE_PID}:x:{start}",
        f"{HOST}:{FREE_PID}:another boot:{start}",
        "",
        "x:y",
        f"{HOST}:²",
    ):
        assert (is_alive(identity), is_dead(identity)) == (False, False)


@pytest.fixture(params=["1", "2"])
def hidepid(request: pytest.FixtureRequest) -> str:
    """The mode in which /proc hides processes; a mount namespace must be allowed."""
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "proc", "proc", "/proc"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode != 0:
        pytest.skip("needs root and a mount namespace")
    return request.param


def test_another_users_driver_is_not_dead_where_proc_hides_it(hidepid: str) -> None:
    """The other user sees neither this process's start nor its folder, as on many login nodes."""
    code = (
        "import sys; from cvit.engine.recording.process_identity import is_alive, is_dead, this_process;"
        "print([(is_alive(p), is_dead(p)) for p in (*sys.argv[1:], this_process())])"
    )
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    mount = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    command = [*as_nobody, sys.executable, "-c", code, this_process(), of_this_place(FREE_PID, "1")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr:
        pytest.skip("another user cannot read the project here")
    assert done.stdout.strip() == "[(False, False), (False, True), (True, False)]", done.stderr
