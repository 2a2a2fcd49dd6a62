"""The site of the docs: links of the repository become links of the site, and options and claims are in it."""

import re
from pathlib import Path

import pytest

from cvit.analysis.claims import all_claims
from cvit.config import PARAMETERS
from cvit.engine.scripts import sweep_scripts
from docs import hooks

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md",
    "RESULTS.md",
    "howto/resume.md",
    "project/contributing.md",
    "explanation/engine.md",
    "images/a.png",
}


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[r](RESULTS.md#low-data)", "[r](RESULTS.md#low-data)"),
        ("howto/resume.md", "![a](../images/a.png)", "![a](../images/a.png)"),
        ("howto/resume.md", "[c](../../CONTRIBUTING.md)", "[c](../project/contributing.md)"),
        ("project/contributing.md", "[r](docs/RESULTS.md)", "[r](../RESULTS.md)"),
        ("explanation/engine.md", "[r](../../docs/howto/resume.md)", "[r](../howto/resume.md)"),
        ("index.md", "`docs/RESULTS.md` and `RESULTS.md`", "[`docs/RESULTS.md`](RESULTS.md) and `RESULTS.md`"),
        ("index.md", "a file [of the tree](../pyproject.toml)", "a file of the tree"),
        ("index.md", "[no file](NOTHING.md)", "[no file](NOTHING.md)"),
        ("index.md", "[w](https://arxiv.org) [h](#here)", "[w](https://arxiv.org) [h](#here)"),
        ("index.md", "```\n[r](../docs/RESULTS.md)\n```", "```\n[r](../docs/RESULTS.md)\n```"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(page: str, text: str, expected: str) -> None:
    assert hooks.with_site_links(text, page, PAGES) == expected


def test_every_option_of_every_sweep_is_in_the_reference() -> None:
    text = hooks.options()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(sweep_scripts())
    options = set(re.findall(r"`--([a-z-]+)", text))
    assert {"storage", "dry-run", "seeds", "data-fraction"} < options
    assert {name.replace("_", "-") for name in PARAMETERS} - options <= {
        *("data-fingerprint", "in-channels", "num-classes", "seed"),  # the data set or another option says them
    }


def test_every_claim_is_in_the_reference() -> None:
    text = hooks.claims()
    for sweep, claim in all_claims():
        assert f"| {sweep} | `{claim.name}` | {claim.statement}. |" in text


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"(\S+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    written = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted([*written, *hooks.ELSEWHERE])
