"""The files of every sweep: its tables (Markdown, CSV, LaTeX) and its figure (PNG, SVG)."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from analysis import expressivity as fits
from analysis import tables
from analysis import tuned as searches
from analysis.frames import Frames
from analysis.layouts import LAYOUTS
from analysis.studies import Study, read_studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is slow to load: figures are not imported before one is drawn.


def low_data(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep low_data by name, the Markdown table first."""
    from analysis.figures.low_data import draw

    studies, texts = _of_trainings("low_data", frames)
    return texts | _images("low_data", draw(studies))


def head_count(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep head_count by name, the Markdown table first."""
    from analysis.figures.head_count import draw

    studies, texts = _of_trainings("head_count", frames)
    return texts | _images("head_count", draw(studies))


def patch_size(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep patch_size by name, the Markdown table first."""
    from analysis.figures.patch_size import draw

    studies, texts = _of_trainings("patch_size", frames)
    return texts | _images("patch_size", draw(studies))


def expressivity(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep expressivity by name, the Markdown table first; the CSV is of the most recent study."""
    from analysis.figures.expressivity import draw

    studies = read_studies(frames, fits.SWEEP, fits.AXES)
    texts = {"md": fits.markdown(studies), "csv": fits.csv(studies[0]), "tex": fits.latex_tables(studies)}
    return _named(fits.SWEEP, texts) | _images(fits.SWEEP, draw(studies))


def no_warmup(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep no_warmup by name, the Markdown table first."""
    from analysis.figures.no_warmup import draw

    studies, texts = _of_trainings("no_warmup", frames)
    return texts | _images("no_warmup", draw(studies))


def init_schemes(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep init_schemes by name, the Markdown table first."""
    from analysis.figures.init_schemes import draw

    studies, texts = _of_trainings("init_schemes", frames)
    return texts | _images("init_schemes", draw(studies))


def full_grid(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep full_grid by name, the Markdown table first."""
    from analysis.figures.full_grid import draw

    studies, texts = _of_trainings("full_grid", frames)
    return texts | _images("full_grid", draw(studies))


def tuned(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep tuned by name, the Markdown table first."""
    from analysis.figures.tuned import draw

    studies = read_studies(frames, searches.SWEEP, searches.AXES)
    texts = {
        "md": searches.markdown(studies),
        "csv": searches.csv(studies),
        "tex": searches.latex_tables(studies),
    }
    return _named(searches.SWEEP, texts) | _images(searches.SWEEP, draw(studies))


def _of_trainings(sweep: str, frames: Frames) -> tuple[list[Study], dict[str, bytes]]:
    """The studies of a sweep of trainings, and their tables."""
    layout = LAYOUTS[sweep]
    studies = read_studies(frames, sweep, layout.axes)
    texts = {"md": tables.markdown(sweep, studies, layout), "csv": tables.csv(studies, layout)}
    return studies, _named(sweep, texts | {"tex": tables.latex_tables(studies, layout)})


def _named(sweep: str, texts: Mapping[str, str]) -> dict[str, bytes]:
    return {f"{sweep}.{kind}": text.encode() for kind, text in texts.items()}


def _images(sweep: str, figure: "Figure") -> dict[str, bytes]:
    from analysis.figures.style import image_bytes

    return {f"{sweep}.{kind}": image_bytes(figure, kind) for kind in ("png", "svg")}


BUILDERS: Mapping[str, Callable[[Frames], dict[str, bytes]]] = {
    "low_data": low_data,
    "no_warmup": no_warmup,
    "expressivity": expressivity,
    "head_count": head_count,
    "patch_size": patch_size,
    "init_schemes": init_schemes,
    "full_grid": full_grid,
    "tuned": tuned,
}
"""How each sweep is shown: from the frames to the files, Markdown first."""
