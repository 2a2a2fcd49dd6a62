"""The docs name files that exist, the commands in them parse, and their links lead somewhere.

A block with a title, such as ```python title="depth.py", is a file that the reader writes; its sweep is planned.
"""

import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from cvit.analysis.make_tables import make_tables
from cvit.engine.declaration import Sweep
from cvit.engine.loading import load_sweeps
from cvit.engine.scripts import sweep_scripts
from cvit.engine.terminal.cli import parse, parts_asked_for
from tests.support.plans import make_plan

ROOT = Path(__file__).parents[1]
DOCS = tuple(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "cvit/engine/README.md", *DOCS)
SCRIPTS = tuple(f"sweeps/{path.name}" for path in ROOT.glob("sweeps/[!_]*.py"))
FILE = re.compile(r"(?<![\w/<>…*~-])[\w./-]*\w\.(?:py|yaml|toml)\b")
WRITTEN = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
CONFIGS = re.compile(r'^```toml title="([\w.]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)|(?:src|href)=\"([^\"#]+)(?:#([^\"]*))?\"")
COMMAND = re.compile(r"python ((?:sweeps|analysis)/\w+\.py)([^\n#`'…]*)(…?)")
FRONT_DOOR = re.compile(rf"\bcvit ((?:{'|'.join(sweep_scripts())}|run|tables)\b)([^\n#`'…]*)(…?)")
INFORMATION = {"--help", "--help-all", "--version"}
TABLES = "analysis/make_tables.py"


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(script, arguments) of the commands on a page; one with an ellipsis in it is not whole."""
    for script, arguments, ellipsis in COMMAND.findall((ROOT / page).read_text()):
        if not ellipsis:
            yield script, shlex.split(arguments)
    for name, rest, ellipsis in FRONT_DOOR.findall((ROOT / page).read_text()):
        arguments = shlex.split(rest)
        names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments)) if name == "run" else [name]
        for one in [] if ellipsis else names:
            yield (
                TABLES if one == "tables" else str(sweep_scripts()[one].relative_to(ROOT)),
                arguments[name == "run" and len(names) :],
            )


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    paths = [f"/{path.relative_to(ROOT)}" for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    named = {name.removeprefix("./") for name in FILE.findall((ROOT / page).read_text())}
    named -= {name for name, _ in WRITTEN.findall((ROOT / page).read_text())}
    named -= set(re.findall(r"--config (\S+)", (ROOT / page).read_text()))
    missing = {name for name in named if not any(path.endswith(f"/{name.removeprefix('../')}") for path in paths)}
    assert missing == set()


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS])
def test_the_commands_on_a_page_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in CONFIGS.findall((ROOT / page).read_text()):
        Path(name).write_text(content)
    for script, arguments in commands(page):
        if INFORMATION & {*arguments}:
            continue
        if script == TABLES:
            tables = App()
            tables.default(make_tables)
            tables.parse_args(arguments, exit_on_error=False, print_error=False)
            continue
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        sweeps = [value for value in vars(module).values() if isinstance(value, Sweep)]
        for sweep in parts_asked_for(sweeps, arguments):
            assert parse(sweep, arguments, sweeps if len(sweeps) > 1 else ()) is not None


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_files_and_headings(page: str) -> None:
    for match in LINK.finditer((ROOT / page).read_text()):
        target, anchor = match[1] or match[3] or "", match[2] or match[4]
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert file.exists() and file.is_relative_to(ROOT), f"{page}: {match[0]}"
        assert not anchor or anchor in anchors(file), f"{page}: {match[0]}"


def test_a_broken_link_would_be_noticed() -> None:
    links = [match.groups("") for match in LINK.finditer('![a](b.png) [c](d.md#e) [f](#g) <img src="h.png">')]
    assert links == [("b.png", "", "", ""), ("d.md", "e", "", ""), ("", "g", "", ""), ("", "", "h.png", "")]
    assert "what-is-kept" in anchors(ROOT / "docs/tutorial/own-data.md")


@pytest.mark.parametrize("page", [page for page in DOCS if "/tutorial/" in page])
def test_the_sweeps_that_a_tutorial_writes_can_be_planned(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    for name, code in WRITTEN.findall(text):
        (tmp_path / name).write_text(code)
        (sweep,) = load_sweeps(tmp_path / name)
        for arguments in re.findall(rf"^python {name}(.*)$", text, re.MULTILINE):
            assert make_plan(tmp_path / "storage", *shlex.split(arguments), sweep=sweep).trials


def test_commands_are_found() -> None:
    assert sum(len(list(commands(page))) for page in (*PAGES, *SCRIPTS)) > 40
