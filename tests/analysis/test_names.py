"""Whatever a sweep, a data set or a value is called: tables and figures show it as it is, and run none of it."""

import csv
import io
import itertools
import string
import xml.etree.ElementTree
from pathlib import Path

import pytest
from matplotlib.text import Text

from cvit import vocabulary as names
from cvit.analysis import make_tables
from cvit.analysis.display.csv_text import as_cell
from cvit.analysis.display.figure_style import image_bytes
from cvit.analysis.display.general_figure import draw
from cvit.analysis.display.html import from_markdown
from cvit.analysis.display.text import latex, latex_table, markdown_code, markdown_name, markdown_table
from cvit.analysis.files import file_stem, file_stems, files_of
from cvit.analysis.statistics.studies import read_studies
from cvit.analysis.store.journal import load_journal
from cvit.storage import Storage
from tests.support.fake_studies import TIME_MS, Cells, FakeStudy, FakeTrial, trainings, write_journal

KEY = "a" * 16
LINK = "https://evil.example/"
NAMES = [
    '=HYPERLINK("https://evil.example/","click")',
    "@SUM(A1)",
    "+1+cmd|' /C calc'!A0",
    "\t=1+1",
    "-2+3",
    "a$\\frac{$b$",
    "$\\alpha$",
    "100 % & #1_{x}^2 ~ \\input{/etc/passwd} <b> |",
    "<img src=x onerror=alert(1)>",
    f"[click]({LINK})",
    "`code` *b* **c** _d_",
    "first\nsecond\r\n# third\x00\x1b[31m",
    "../../etc/passwd",
    "x" * 400,
    "数据集 😀",
]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1 apple", "'+1 apple"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("-inf", "-inf"),
        (-1.5, -1.5),
        (None, None),
        ("-", "-"),
        ("two_phase-random", "two_phase-random"),
        ("a=1", "a=1"),
    ],
)
def test_a_cell_of_csv_is_no_formula(value: object, cell: object) -> None:
    assert as_cell(value) == cell


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_a_sweep_shows_a_name_and_runs_none_of_it(tmp_path: Path, name: str) -> None:
    grid: Cells = {"temperature": [0.1, 1.0], "mood": [name, "none"], "init_scheme": [name, "two_phase"], "seed": [0]}
    trials = []
    for place in itertools.product(*grid.values()):
        params = {"dataset": name, **dict(zip(grid, place, strict=True))}
        trials.append(FakeTrial(f"t{len(trials)}", params, [(names.TEST_ACCURACY, 9, 0.25, TIME_MS)]))
    study = FakeStudy(KEY, "any", [grid], trials, {"dataset": name, "kind": name}, task="dreaming", own_command="x")
    frames = load_journal(write_journal(tmp_path, [study]))
    files = files_of(frames, "any").by_name
    rows = list(csv.reader(io.StringIO(files["any.csv"].decode(), newline="")))
    assert len({len(row) for row in rows}) == 1
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@\t\r" and cell]
    tex = files["any.tex"].decode()
    assert "\\input{" not in tex and "\\frac" not in tex and "\\alpha" not in tex
    html = from_markdown(files["any.md"].decode())
    assert "<img" not in html and "<a " not in html and "<em>" not in html
    assert html.count("<h3>") == 1, "a name has become a heading"
    xml.etree.ElementTree.fromstring(files["any.svg"])
    (read,) = read_studies(frames, "any", ())
    figure = draw([read])
    image_bytes(figure, "png")
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    titles = [text for text in texts if f"study {KEY[:8]}; " in text.get_text() or "n = 1" in text.get_text()]
    assert len(titles) == 2
    assert not any(text.get_parse_math() for text in titles)


def test_names_as_text_of_tables() -> None:
    assert markdown_name("a*b* `c` <b> [d](e) low_data _x_") == "a\\*b\\* \\`c\\` \\<b> \\[d](e) low_data \\_x\\_"
    assert markdown_name("a\\b [0, 1] x < 3") == "a\\\\b [0, 1] x < 3"
    assert markdown_code("a=`b`") == "`` a=`b` ``" and markdown_code("a=b") == "`a=b`"
    assert markdown_table(["<b>"], [["[a](b)"], ["[+0.4, +1]"], ["**x**"]])[2:] == [
        "| \\[a](b)    |",
        "| [+0.4, +1] |",
        "| **x**      |",
    ]
    assert latex("<a> | \\b") == "\\textless{}a\\textgreater{} \\textbar{} \\textbackslash{}b"
    assert "    {}[a] & 1 \\\\" in latex_table("c", "n", ["x", "y"], [["[a]", "1"]])


def test_a_logarithmic_axis_keeps_its_mathematics(tmp_path: Path) -> None:
    study = trainings("any", KEY, {"depth": [1, 2], "init_scheme": ["random"], "seed": [0]}, lambda cell: 0.5)
    figure = draw(read_studies(load_journal(write_journal(tmp_path, [study])), "any", ()))
    figure.axes[0].set_yscale("log")
    image_bytes(figure, "png")
    assert all(tick.label1.get_parse_math() for tick in figure.axes[0].yaxis.get_major_ticks())


def test_files_have_names_that_every_disk_takes() -> None:
    sweeps = ["a/b", "a b", "low_data", "Low_Data", "x" * 300, "x" * 299 + "y", "-rf", ".hidden", "", "CLAIMS"]
    stems = file_stems(sweeps)
    assert len({stem.lower() for stem in stems.values()}) == len(stems)
    assert all(len(stem) <= 130 and stem[0].isalnum() for stem in stems.values())
    signs = {*string.ascii_letters, *string.digits, "_", "-"}
    assert all(signs.issuperset(stem) for stem in stems.values())
    assert stems["low_data"] == "low_data" and stems["a/b"] == file_stem("a/b") == "sweep-a-b"
    assert stems["CLAIMS"] == "sweep-CLAIMS"


def test_two_sweeps_whose_names_differ_in_signs_alone_have_files_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage.open(str(tmp_path))
    for number, name in enumerate(("a b", "a.b")):
        grid = {"depth": [1, 2], "init_scheme": ["random"], "seed": [0]}
        write_journal(tmp_path, [trainings(name, str(number) * 16, grid, lambda cell: 0.5)])
    out = tmp_path / "out"
    assert make_tables.main(["--storage", storage.url, "--out", str(out)]) == 0
    assert len(list(out.glob("sweep-a-b*.md"))) == 2
    assert {text.read_text().splitlines()[0] for text in out.glob("sweep-a-b*.md")} == {"# a b", "# a.b"}
