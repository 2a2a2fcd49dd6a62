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


@pytest.mark.usefixtures("as_before")
def test_the_figure_of_windows_shows_bounds_that_layers_meet() -> None:
    """On 6×6 tokens; and the figure's curves fall with the windows and with the heads."""
    script = runpy.run_path(str(ROOT / "examples/windows_figure.py"))
    torch.manual_seed(0)
    channels = script["CHANNELS"]
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=torch.float64)
    errors = script["errors_by_window"](conv, 6)
    assert list(errors) == [1, 2, 3, 6] and script["HEADS"][-1] == 9
    for size, by_heads in errors.items():
        layer = cvit.theorem.window_attention(conv, 1, size)
        assert script["measured"](layer, conv, 6) == pytest.approx(by_heads[-1], abs=1e-12)
        assert by_heads == sorted(by_heads, reverse=True)
    assert all(list(column) == sorted(column, reverse=True) for column in zip(*errors.values(), strict=True))
    assert errors[6][-1] == 0.0
    two = cvit.theorem.convolution_as_two_window_layers(conv, 1, 3)
    assert script["measured"](two, conv, 6) < 1e-12


def test_the_page_names_every_function() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    functions = {name for name in cvit.theorem.__all__ if name[0].islower()}
    assert functions - named - {"singular_values", "window_pairs"} == set()
