"""The files of every sweep: its tables (Markdown, CSV, LaTeX) and its figure (PNG, SVG)."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from analysis.display import accuracy_tables as tables
from analysis.layouts import LAYOUTS
from analysis.questions import expressivity, tuned
from analysis.statistics.studies import Study, read_studies
from analysis.store.frames import Frames


def training_files(sweep: str, frames: Frames) -> dict[str, bytes]:
    """The files of a sweep over a grid of trainings by name, the Markdown table first."""
    layout = LAYOUTS[sweep]
    studies = read_studies(frames, sweep, layout.axes)
    texts = {
        "md": tables.markdown(sweep, studies, layout),
        "csv": tables.csv(studies, layout),
        "tex": tables.latex_tables(studies, layout),
    }
    return _files(sweep, texts, studies)


def expressivity_files(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep expressivity by name, the Markdown table first; the CSV is of the most recent study."""
    studies = read_studies(frames, expressivity.SWEEP, expressivity.AXES)
    texts = {
        "md": expressivity.markdown(studies),
        "csv": expressivity.csv(studies[0]),
        "tex": expressivity.latex_tables(studies),
    }
    return _files(expressivity.SWEEP, texts, studies)


def tuned_files(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep tuned by name, the Markdown table first."""
    studies = read_studies(frames, tuned.SWEEP, tuned.AXES)
    texts = {"md": tuned.markdown(studies), "csv": tuned.csv(studies), "tex": tuned.latex_tables(studies)}
    return _files(tuned.SWEEP, texts, studies)


def _files(sweep: str, texts: Mapping[str, str], studies: Sequence[Study]) -> dict[str, bytes]:
    # matplotlib is slow to load, so the module that draws a sweep is not imported before there is one to draw.
    figure = importlib.import_module(f"analysis.questions.figures.{sweep}").draw(studies)
    from analysis.display.figure_style import image_bytes

    files = {f"{sweep}.{kind}": text.encode() for kind, text in texts.items()}
    return files | {f"{sweep}.{kind}": image_bytes(figure, kind) for kind in ("png", "svg")}


BUILDERS: Mapping[str, Callable[[Frames], dict[str, bytes]]] = {
    "low_data": partial(training_files, "low_data"),
    "no_warmup": partial(training_files, "no_warmup"),
    "expressivity": expressivity_files,
    "head_count": partial(training_files, "head_count"),
    "patch_size": partial(training_files, "patch_size"),
    "init_schemes": partial(training_files, "init_schemes"),
    "full_grid": partial(training_files, "full_grid"),
    "tuned": tuned_files,
}
"""How each sweep is shown, in the order of the report: from the frames to the files, Markdown first."""
