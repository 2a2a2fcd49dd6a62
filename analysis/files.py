"""The files of a sweep: its tables (Markdown, CSV, LaTeX) and its figure (PNG, SVG)."""

import re
from dataclasses import dataclass

from analysis.display.arrangement import caption
from analysis.questions import draw_figure, question_of, tables_of
from analysis.statistics.studies import read_studies
from analysis.store.frames import Frames

_TAKEN = ("claims", "report")


@dataclass(frozen=True)
class SweepFiles:
    """The files of a sweep.

    Attributes:
        by_name: their contents, the Markdown table first.
        markdown: the tables as Markdown.
        svg: the figure.
        caption: the text below the figure.
    """

    by_name: dict[str, bytes]
    markdown: str
    svg: bytes
    caption: str


def files_of(frames: Frames, sweep: str) -> SweepFiles:
    """The files of a sweep: those of its question, or general ones.

    Raises:
        TableError: a study varies other axes than the tables of its sweep show.
    """
    question = question_of(sweep)
    studies = read_studies(frames, sweep, question.axes)
    tables = tables_of(sweep, studies)
    markdown = tables.markdown(studies)
    figure = draw_figure(sweep, studies)
    # Imported here because matplotlib is slow to load, and a store that cannot be shown is refused before.
    from analysis.display.figure_style import image_bytes

    stem = file_stem(sweep)
    texts = {"md": markdown, "csv": tables.csv(studies), "tex": tables.latex(studies)}
    images = {kind: image_bytes(figure, kind) for kind in ("png", "svg")}
    files = {f"{stem}.{kind}": text.encode() for kind, text in texts.items()}
    files |= {f"{stem}.{kind}": image for kind, image in images.items()}
    return SweepFiles(files, markdown, images["svg"], question.caption or caption(studies[0]))


def file_stem(sweep: str) -> str:
    """The name of a sweep's files without the ending: the sweep's name, made safe because a store may hold any name."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", sweep)
    return sweep if safe == sweep and sweep not in _TAKEN else f"sweep-{safe}"
