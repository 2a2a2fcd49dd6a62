"""A cluster with tokens, and what else may listen at an address, is told before Ray attaches to it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

TOKEN = "0123456789abcdef" * 4
WHERE = "put the cluster's in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
CHECK = """
import json, os, sys
from cvit.parameters import ConfigError
from cvit.engine.execution.attaching import check_cluster

for address, environment in json.loads(sys.argv[1]):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    from ray._raylet import AuthenticationTokenLoader
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        check_cluster(address)
        print("passed, with the mode", os.environ.get("RAY_AUTH_MODE"))
    except ConfigError as error:
        print(error)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that asks for a token."""
    port = free_port()
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command[1:]],
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while head.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        assert head.poll() is None, "Ray did not start"
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def test_a_cluster_with_tokens_is_named_as_such(cluster: str, tmp_path: Path) -> None:
    name = f"Ray address '{cluster}'"
    right = {"RAY_AUTH_TOKEN": TOKEN}
    cases: list[tuple[dict[str, str], str]] = [
        ({}, f"{name} wants a token. Set RAY_AUTH_MODE=token, and {WHERE}"),
        ({"RAY_ADDRESS": cluster}, f"{name} (from RAY_ADDRESS) wants a token. Set RAY_AUTH_MODE=token, and {WHERE}"),
        ({"RAY_AUTH_MODE": "token"}, f"{name} wants a token. Set RAY_AUTH_MODE=token, and {WHERE}"),
        (right | {"RAY_AUTH_MODE": "disabled"}, f"{name} wants a token. Set RAY_AUTH_MODE=token, and {WHERE}"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, f"{name} refuses this machine's token, so {WHERE}"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/file"}, f"{name} asks for a token, and this machine's cannot be read: "),
        (right, "passed, with the mode token"),
        (right | {"RAY_AUTH_MODE": "token"}, "passed, with the mode token"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps([(cluster, environment) for environment, _ in cases])],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    for line, (environment, expected) in zip(lines, cases, strict=True):
        assert line.startswith(expected), environment
    assert "gcs_client" not in done.stderr


def test_a_wrong_address_leaves_nothing_in_the_storage(cluster: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweeps/low_data.py"), "--preset", "smoke", "--address", "auto"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("low_data.py: error: Ray address 'auto' (RAY_ADDRESS names ")
    assert "wants a token. Set RAY_AUTH_MODE=token" in done.stderr
    assert list(tmp_path.iterdir()) == []
