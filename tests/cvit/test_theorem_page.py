"""The numbers in docs/THEOREMS.md are those that its script prints."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cvit.theorem

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/THEOREMS.md").read_text()


@pytest.fixture
def as_before() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("as_before")
def test_the_tables_are_what_the_script_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["theorems.py"])
    runpy.run_path(str(ROOT / "examples/theorems.py"))["main"]()
    parts = capsys.readouterr().out.strip().split("\n\n")
    words = " ".join(PAGE.split())
    assert len(parts) == 6
    for part in parts:
        assert " ".join(part.split()) in words
    blocks = re.findall(r"^```(\w*)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
    assert [block for language, block in blocks if not language and block not in parts] == []


def test_the_page_names_every_function() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    functions = {name for name in cvit.theorem.__all__ if name[0].islower()}
    assert functions - named - {"singular_values", "window_pairs"} == set()
