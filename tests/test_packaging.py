"""The lock file, the badges and the image agree with pyproject.toml and with the files that there are."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
LOCKED = {package["name"]: package for package in LOCK["package"]}


def requirements() -> set[tuple[str, str, str]]:
    """(name, versions, extra of ours) of everything that pyproject.toml asks for."""
    asked = [(line, "") for line in PROJECT["dependencies"]]
    asked += [(line, extra) for extra, lines in PROJECT["optional-dependencies"].items() for line in lines]
    parsed = [(Requirement(line), extra) for line, extra in asked]
    return {(one.name, str(one.specifier), extra) for one, extra in parsed}


def test_the_lock_file_is_that_of_the_project() -> None:
    metadata = LOCKED["cvit"]["metadata"]["requires-dist"]
    marker = re.compile(r"extra == '(\w+)'")
    locked = {
        (one["name"], one.get("specifier", ""), extra[1] if (extra := marker.search(one.get("marker", ""))) else "")
        for one in metadata
    }
    # Specifiers have no order.
    ordered = {(name, ",".join(sorted(versions.split(","))), extra) for name, versions, extra in locked}
    assert {(n, ",".join(sorted(v.split(","))), e) for n, v, e in requirements()} == ordered, "run .venv/bin/uv lock"
    assert LOCK["requires-python"] == PROJECT["requires-python"]


def test_the_lock_file_names_the_public_registry_alone() -> None:
    sources = {package["source"].get("registry") for package in LOCK["package"] if package["name"] != "cvit"}
    assert sources == {"https://pypi.org/simple"}


@pytest.mark.parametrize(
    ("badge", "value"),
    [
        ("licence", PROJECT["license"]),
        ("python", PROJECT["requires-python"].removeprefix(">=") + " or newer"),
        ("paper", "2111.01353"),
    ],
)
def test_a_badge_says_what_is_true(badge: str, value: str) -> None:
    assert f">{value}</text>" in (ROOT / f"docs/images/badge_{badge}.svg").read_text()
    assert f"docs/images/badge_{badge}.svg" in (ROOT / "README.md").read_text()


def test_the_image_copies_what_exists_and_runs_a_target_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [(line.split()[0], line.partition(" ")[2]) for line in lines if line and line[0].isupper()]
    copied = [name for word, text in instructions if word == "COPY" for name in shlex.split(text)[1:-1]]
    assert copied == ["pyproject.toml", "uv.lock", "."]
    words = [word for word, _ in instructions]
    assert "USER" in words and words.index("USER") < words.index("COPY")
    assert instructions[-1] == ("CMD", '["make", "demo"]')


def test_the_image_gets_what_the_installation_and_the_demo_need() -> None:
    left_out = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"}
    needed = {"cvit", "sweeps", "analysis", "Makefile", "README.md", "LICENSE", "pyproject.toml", "uv.lock"}
    assert not needed & left_out and all((ROOT / name).exists() for name in needed)
    assert {".git", ".venv"} <= left_out, "what another machine made is not copied"
