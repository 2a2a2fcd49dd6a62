"""The files of a sweep: its tables (Markdown, CSV, LaTeX) and its figure (PDF, PNG, SVG)."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cvit.analysis.display.arrangement import caption
from cvit.analysis.display.wording import in_words_of
from cvit.analysis.questions import draw_figure, question_of, studies_of, tables_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.frames import Frames

_TAKEN = ("claims", "report")
_LONGEST_STEM = 100
"""The largest number of characters of a sweep's name in a file's name."""


@dataclass(frozen=True)
class SweepFiles:
    """The files of a sweep.

    Attributes:
        by_name: their contents, the Markdown table first.
        markdown: the tables as Markdown.
        svg: the figure.
        narrow_svg: the figure with one panel per line, for a narrow screen.
        caption: the text below the figure.
    """

    by_name: dict[str, bytes]
    markdown: str
    svg: bytes
    narrow_svg: bytes
    caption: str


def files_of(frames: Frames, sweep: str, stem: str | None = None) -> SweepFiles:
    """The files of a sweep: those of its question, or general ones.

    Args:
        stem: their name without the ending; by default that of `file_stem`.

    Raises:
        TableError: a study varies other axes than the tables of its sweep show.
    """
    question = question_of(sweep)
    studies = studies_of(frames, sweep)
    tables = tables_of(sweep, studies)
    markdown = in_words_of(studies, tables.markdown(studies))
    figure = draw_figure(sweep, studies)
    # Imported here because matplotlib is slow to load, and a store that cannot be shown is refused before.
    from cvit.analysis.display.figure_style import image_bytes
    from cvit.analysis.display.narrow_figure import narrow_svg

    stem = stem or file_stem(sweep)
    texts = {"md": markdown, "csv": tables.csv(studies), "tex": in_words_of(studies, tables.latex(studies))}
    images = {kind: image_bytes(figure, kind) for kind in ("png", "svg", "pdf")}
    files = {f"{stem}.{kind}": text.encode() for kind, text in texts.items()}
    files |= {f"{stem}.{kind}": image for kind, image in images.items()}
    files |= winners_file(studies, sweep, stem)
    text = in_words_of(studies, question.caption or caption(studies[0]))
    return SweepFiles(files, markdown, images["svg"], narrow_svg(figure), text)


def winners_file(studies: Sequence[Study], sweep: str, stem: str) -> dict[str, bytes]:
    """The name and the contents of the file with the winners of a sweep's searches, for `--settings-from`; nothing if
    it has none."""
    winners = question_of(sweep).winners
    text = "" if winners is None else winners(studies)
    return {f"{stem}.json": text.encode()} if text else {}


def file_stem(sweep: str) -> str:
    """The name of a sweep's files without the ending: the sweep's name, made safe because a store may hold any name."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", sweep)
    if len(safe) > _LONGEST_STEM:
        safe = _with_checksum(safe, sweep)
    is_safe = safe == sweep and safe[:1] not in ("", "-") and safe.lower() not in _TAKEN
    return sweep if is_safe else f"sweep-{safe}"


def file_stems(sweeps: Iterable[str]) -> dict[str, str]:
    """The names of the files of all sweeps in a store, by sweep. Where two would be equal, on a disk that does not tell
    capitals from small letters too, the later ones get a checksum."""
    stems: dict[str, str] = {}
    for sweep in sweeps:
        stem, taken = file_stem(sweep), {other.lower() for other in stems.values()}
        stems[sweep] = _with_checksum(stem, sweep) if stem.lower() in taken else stem
    return stems


def _with_checksum(stem: str, sweep: str) -> str:
    return f"{stem[:_LONGEST_STEM]}-{hashlib.sha256(sweep.encode(errors='surrogatepass')).hexdigest()[:8]}"
