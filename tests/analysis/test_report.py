"""results/report.html: whole, self-contained, and safe whatever a study is called."""

import base64
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cvit import vocabulary as names
from cvit.analysis import make_tables
from cvit.analysis.display.html import from_markdown
from cvit.analysis.questions import all_questions, question_of
from cvit.analysis.report import PAPER
from tests.support.fake_studies import trainings, write_journal

VOID = {"meta", "img", "br", "hr", "source"}
HOSTILE = '"><script>alert(1)</script>|[x](http://evil.example)'


class Page(HTMLParser):
    """Notes tags, links and texts; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    grid = {"data_fraction": [0.05, 1.0], "init_scheme": ["random", "two_phase"], "seed": [0, 1, 2]}
    known = trainings("low_data", "a" * 16, grid, lambda cell: 0.5, data_fingerprint="f1234")
    known.code_version = "1.2.3+abcdef"
    for trial in known.trials:
        trial.tags[names.TAG_DEVICE] = "NVIDIA H100"
    hostile = trainings("init_schemes", "b" * 16, grid, lambda cell: 0.5, dataset=HOSTILE)
    hostile.question = f"Is it {HOSTILE}?"
    write_journal(folder / "storage", [known, hostile])
    assert make_tables.main(["--storage", str(folder / "storage"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "report.html").read_text())


def test_every_figure_and_table_is_there(out: Path, page: Page) -> None:
    pictures = page.named("img")
    assert [str(picture["alt"]) for picture in pictures] == [
        question_of(sweep).caption for sweep in ("low_data", "init_schemes")
    ]
    for picture, sweep in zip(pictures, ("low_data", "init_schemes"), strict=True):
        kind, _, content = str(picture["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(content) == (out / f"{sweep}.svg").read_bytes()
    assert "+0.0" in page.text and "trains_faster" in page.text and "does not hold" in page.text
    assert all(question.caption for question in all_questions().values())


def test_commands_and_provenance_are_there(out: Path, page: Page) -> None:
    assert page.text.count("python sweeps/low_data.py --dataset digits --seeds 3") == 2
    assert f"python analysis/make_tables.py --storage {out.parent / 'storage'}" in page.text
    for said in ("f1234", "1.2.3+abcdef", "NVIDIA H100", "12 of 12", "matplotlib", "Python"):
        assert said in page.text


def test_nothing_is_loaded_from_elsewhere(out: Path, page: Page) -> None:
    references = [str(a[name]) for _, a in page.tags for name in ("src", "href", "srcset", "action") if name in a]
    others = [reference for reference in references if not reference.startswith(("#", "data:"))]
    assert others[0] == PAPER and set(others[1:]) == {
        path.name for path in out.iterdir() if path.name not in ("report.html", "claims.md", "claims.csv")
    }
    loaded = [str(a[name]) for _, a in page.tags for name in ("src", "srcset") if name in a]
    assert len(loaded) == 4 and all(reference.startswith("data:image/svg+xml;base64,") for reference in loaded)
    targets = {str(attributes["id"]) for _, attributes in page.tags if "id" in attributes}
    assert {r[1:] for r in references if r.startswith("#")} <= targets
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    style = (out / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_the_answers_come_first_then_verdicts_rules_and_provenance(page: Page) -> None:
    assert [attributes["id"] for attributes in page.named("section")] == [
        "sweep-low_data", "sweep-init_schemes", "verdicts", "rules", "provenance",
    ]  # fmt: skip
    texts = ["two_phase - random on the same seeds:", "Files beside this page", "A row per claim and place"]
    assert sorted(texts, key=page.text.index) == texts
    assert "digits, n = 3" in page.text and "study digits-aaaaaaaa" in page.text
    assert "digits-aaaaaaaa" not in page.text.partition("All numbers, settings")[0]  # titles are words
    assert "Nothing to compare in their studies: low_data_gain_at_equal_flops.\n" in page.text
    waiting = page.text.partition("Claims without a study: ")[2].partition("\n")[0]
    assert "heads_enough, heads_necessary, patches_save_heads, " in waiting and "low_data" not in waiting


def test_numbers_are_aligned(page: Page) -> None:
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    assert {"style": "text-align:right"} in cells and {"class": "number"} in cells


def test_panels_stack_on_a_phone(out: Path, page: Page) -> None:
    """The picture for narrow screens has a view per panel and legend, each no wider than the screen."""
    (first, _) = page.named("source")
    assert first["media"] == "(max-width: 40rem)"
    svg = xml.etree.ElementTree.fromstring(base64.b64decode(str(first["srcset"]).partition(",")[2]))
    views = svg.findall("{http://www.w3.org/2000/svg}svg")
    figure = xml.etree.ElementTree.parse(out / "low_data.svg").getroot()
    panels = [group for group in figure.iter() if str(group.get("id")).startswith("axes_")]
    assert len(views) > len(panels) >= 2
    tops = [float(str(view.get("y"))) for view in views]
    ends = [top + float(str(view.get("height"))) for top, view in zip(tops, views, strict=True)]
    assert all(end <= top for end, top in zip(ends, tops[1:], strict=False))
    width = float(str(svg.get("width")).removesuffix("pt"))
    assert all(float(str(view.get("width"))) <= width + 0.01 for view in views) and width < 7 * 72 / 1.9


def test_hostile_names_stay_text(page: Page) -> None:
    assert page.text.count("<script>alert(1)</script>") >= 3  # question, command, provenance
    assert page.named("html") == [{"lang": "en"}]


def test_markdown_keeps_its_tables_and_loses_its_html() -> None:
    html = from_markdown("# a\n\n| x | y |\n|---|---|\n| <b>1</b> | `c\\|d` |\n\n![i](http://a.b/c) <http://a.b>\n")
    assert html.startswith("<h2>a</h2>") and '<div class="scroll" tabindex="0"><table>' in html
    assert "<td>&lt;b&gt;1&lt;/b&gt;</td>" in html and "<code>c|d</code>" in html
    assert "href" not in html and "<img" not in html


def test_passwords_of_the_store_are_not_shown() -> None:
    command = make_tables.command_of("postgresql://me:secret@host/db", None)
    assert "secret" not in command and "://***@host/db" in command
