"""A laptop and three hosts on one machine: each has a network address, processes, a /tmp and a home of its own.

    sudo .venv/bin/python tests/cluster/lan.py

opens a shell on the laptop, from which `ray up ~/cluster.yaml` starts a cluster on the hosts. The file is
cluster-onprem.yaml with their addresses; instead of installing anything, the hosts use this checkout's .venv. All of it
ends with the shell.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HEAD, *WORKERS = HOSTS = {"head": "10.77.0.11", "worker1": "10.77.0.12", "worker2": "10.77.0.13"}
NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = {"unshare": "util-linux", "ip": "iproute2", "/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client"}
PROGRAMS |= {"rsync": "rsync", "curl": "curl"}


def missing() -> str | None:
    """The first thing that this machine lacks to simulate hosts, as a line; None if it lacks nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install {package}"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "no namespaces can be made here"
    return None


@dataclass(frozen=True)
class Lan:
    """A running laptop with its hosts.

    Attributes:
        folder: has `shared`, which all machines see as /mnt/shared, and NAME/{home,tmp} of the laptop and every host.
        pid: the process id of the laptop's first process.
    """

    folder: Path
    pid: int

    def on_laptop(self, *command: str) -> list[str]:
        """The command line that runs a command on the laptop, in the checkout."""
        path = f"{ROOT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = (
            "HOME=/mnt/home",
            f"PATH={path}",
            "RAY_AUTH_MODE=token",
            "RAY_USAGE_STATS_ENABLED=0",
            "TERM=xterm",
        )
        namespaces = ("nsenter", "-t", str(self.pid), "--net", "--pid", "--mount", "--uts", f"--wd={ROOT}")
        return [*namespaces, "env", "-i", *environment, *command]

    def run(self, *command: str, timeout_s: float = 300.0) -> str:
        """Runs a command on the laptop and returns all its output; it must succeed."""
        done = subprocess.run(
            self.on_laptop(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def ssh(self, host: str, command: str, timeout_s: float = 120.0) -> str:
        """Runs a command on a host in a login shell, as Ray does; it must succeed."""
        options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        shell = f"bash --login -c {shlex.quote('. ~/.bashrc; ' + command)}"
        return self.run("ssh", *options, f"root@{HOSTS[host]}", shell, timeout_s=timeout_s)

    def pull_cable(self, host: str) -> None:
        """Silences the host: no packet reaches or leaves it from now on, and no connection is closed."""
        self.run("ip", "link", "set", f"lan-{HOSTS[host].rpartition('.')[2]}", "down")


@contextlib.contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    """Runs the laptop and its hosts during the block, with an authentication token and ~/cluster.yaml on the laptop.
    They end with this process, however it ends."""
    (folder / "laptop/home").mkdir(parents=True)
    (folder / "laptop/home/cluster.yaml").write_text(yaml.safe_dump(cluster_config(), sort_keys=False))
    command = [*NAMESPACES, str(ROOT / "tests/cluster/hosts.sh"), str(folder), str(ROOT), *HOSTS]
    with (
        (folder / "hosts.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n", (folder / "hosts.log").read_text()
        running = Lan(folder, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()))
        running.run("bash", "-c", "umask 077 && ray get-auth-token --generate > /dev/null")
        yield running
        process.stdin.close()


def cluster_config() -> dict[str, Any]:
    """cluster-onprem.yaml for the hosts: their addresses, this checkout's .venv, one CPU a worker and little memory.
    Ray gives up a silent host after about 20 s instead of 65, a lost head after 15 s instead of 60."""
    config = yaml.safe_load((ROOT / "cluster-onprem.yaml").read_text())
    config["provider"] |= {"head_ip": HOSTS[HEAD], "worker_ips": [HOSTS[name] for name in WORKERS]}
    config["auth"]["ssh_user"] = "root"
    health = "export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 "
    health += "RAY_gcs_rpc_server_reconnect_timeout_s=15; "
    paths = "grep -q PYTHONPATH ~/.bashrc || echo export PYTHONPATH=~/cvit >> ~/.bashrc"  # the mounted code, not ROOT's
    for kind, cpus in (("head", 0), ("worker", 1)):
        setup = [command for command in config[f"{kind}_setup_commands"] if ".bashrc" in command]
        config[f"{kind}_setup_commands"] = [f"ln -sfn {ROOT}/.venv ~/venv", *setup, paths]
        limits = f" --num-cpus={cpus} --num-gpus=0 --object-store-memory=100000000"
        start = config[f"{kind}_start_ray_commands"]
        config[f"{kind}_start_ray_commands"] = [f"{health}{c}{limits}" if "ray start" in c else c for c in start]
    return config


def main() -> None:
    """Opens a shell on the laptop."""
    if reason := missing():
        sys.exit(f"lan.py: error: {reason}")
    with tempfile.TemporaryDirectory(prefix="cvit-lan-") as folder, lan(Path(folder)) as running:
        print(f"The laptop of {ROOT}. Try: ray up ~/cluster.yaml -y; ray status; ray down ~/cluster.yaml -y; exit")
        subprocess.run(running.on_laptop("bash", "--norc", "-i"))


if __name__ == "__main__":
    main()
