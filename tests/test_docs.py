"""The docs name files that exist, and the commands in them parse."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvit.analysis.make_tables import app
from cvit.engine.declaration import Sweep
from cvit.engine.terminal.cli import parse, parts_asked_for

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "cvit/engine/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
SCRIPTS = tuple(f"sweeps/{path.name}" for path in ROOT.glob("sweeps/[!_]*.py"))
FILE = re.compile(r"(?<![\w/<>…*~-])[\w./-]*\w\.(?:py|yaml|toml)\b")
COMMAND = re.compile(r"python ((?:sweeps|analysis)/\w+\.py)([^\n#`'…]*)(…?)")


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(script, arguments) of the commands on a page; one with an ellipsis in it is not whole."""
    for script, arguments, ellipsis in COMMAND.findall((ROOT / page).read_text()):
        if not ellipsis:
            yield script, shlex.split(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    paths = [f"/{path.relative_to(ROOT)}" for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    named = {name.removeprefix("./") for name in FILE.findall((ROOT / page).read_text())}
    missing = {name for name in named if not any(path.endswith(f"/{name.removeprefix('../')}") for path in paths)}
    assert missing == set()


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS])
def test_the_commands_on_a_page_parse(page: str) -> None:
    for script, arguments in commands(page):
        if script == "analysis/make_tables.py":
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            continue
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        sweeps = [value for value in vars(module).values() if isinstance(value, Sweep)]
        for sweep in parts_asked_for(sweeps, arguments):
            assert parse(sweep, arguments, sweeps if len(sweeps) > 1 else ()) is not None


def test_commands_are_found() -> None:
    assert sum(len(list(commands(page))) for page in (*PAGES, *SCRIPTS)) > 40
