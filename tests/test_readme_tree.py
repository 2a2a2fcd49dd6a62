"""The lists of folders and files in the docs name what exists, each with one line.

docs/ARCHITECTURE.md lists every folder, under one heading, and every file of cvit/ but the engine's, under another;
cvit/engine/README.md lists every file of the engine. A line `<name>.py` stands for the extensions in a folder: files
that are found by their name.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"(?P<indent> *)(?P<name>[\w<>./]+)(?: {2,}(?P<text>\S.*))?")
TREE = re.compile(r"[\w/]+/ {2,}.*\n {4}\S")
"""A folder, and something in it."""
INDENT = 4
ARCHITECTURE = "docs/ARCHITECTURE.md"
LISTS = {
    (ARCHITECTURE, "The packages"): (("cvit", "analysis"), "cvit/engine/"),
    ("cvit/engine/README.md", "Files"): (("cvit/engine",), None),
}
"""For each page and heading, the folders whose files it lists, and the one below them that another page lists."""
FOLDERS = ("sweeps", "cvit", "analysis", "examples", "benchmarks", "tests", "docs")
NOT_OURS = {"__pycache__", ".ipynb_checkpoints", "storage"}
"""The names of folders that running the project leaves."""


def listed(page: str, heading: str) -> dict[str, str]:
    """The paths in the trees below a heading, with the text beside each; folders end with a slash."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None, f"{page} has no heading {heading!r}"
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    trees = [block for language, block in blocks if not language and TREE.match(block)]
    return {path: text for tree in trees for path, text in _paths(tree).items()}


def _paths(tree: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in tree.splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, f"not a line of a tree: {line!r}"
        depth, text = len(match["indent"]) // INDENT, match["text"]
        path = "".join(above[:depth]) + match["name"]
        assert path not in entries, f"{path} is listed twice"
        assert text, f"{path} has no text"
        entries[path] = text
        above[depth:] = [match["name"]]
    return entries


def folders_below(folder: str) -> set[str]:
    """The folder and all below it that hold files of the project, each with a slash at its end."""
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    below = {path.parent for path in files if not NOT_OURS & {*path.relative_to(ROOT).parts}}
    parents = {parent for path in below for parent in (path, *path.parents) if parent.is_relative_to(ROOT / folder)}
    return {f"{path.relative_to(ROOT)}/" for path in parents}


def modules_below(folder: str) -> set[str]:
    """Every Python file below the folder; an empty `__init__.py` says nothing and is left out."""
    paths = [path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    return {str(path.relative_to(ROOT)) for path in paths}


def within(path: str, folder: str | None) -> bool:
    return folder is not None and path.startswith(folder)


def test_a_tree_is_read_as_paths() -> None:
    tree = "a/            one\n    b/        two\n        c.py  three\n    <d>.py    four\n"
    assert _paths(tree) == {"a/": "one", "a/b/": "two", "a/b/c.py": "three", "a/<d>.py": "four"}
    with pytest.raises(AssertionError, match=r"a/b\.py has no text"):
        _paths("a/            one\n    b.py\n")


def test_every_folder_is_listed() -> None:
    names = {name for name in listed(ARCHITECTURE, "The folders") if name.endswith("/")}
    assert names == {folder for top in FOLDERS for folder in folders_below(top)}


@pytest.mark.parametrize(("page", "heading"), LISTS)
def test_a_page_lists_every_file_once(page: str, heading: str) -> None:
    entries = listed(page, heading)
    names = {name for name in entries if name.endswith(".py") and "<" not in name}
    families = {name.rpartition("/")[0] for name in entries if "<" in name}
    tops, elsewhere = LISTS[page, heading]
    modules = {module for top in tops for module in modules_below(top) if not within(module, elsewhere)}
    assert names - modules == set(), "listed, but there is no such file"
    assert {module for module in modules - names if module.rpartition("/")[0] not in families} == set(), "not listed"
    folders = {folder for top in tops for folder in folders_below(top) if not within(folder, elsewhere)}
    assert {name for name in entries if name.endswith("/")} == folders
