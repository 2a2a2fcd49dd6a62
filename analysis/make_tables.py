"""Makes the tables and figures of every sweep in a tracking store.

python analysis/make_tables.py                      # sqlite:///mlflow.db here, or MLFLOW_TRACKING_URI
python analysis/make_tables.py --storage runs       # from the journal, without MLflow
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __name__ == "__main__":
    # Not this folder: its tables.py must not pass for the package that pandas knows by that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from analysis import expressivity as fits
from analysis import tables
from analysis import tuned as searches
from analysis.frames import Frames, LoadError
from analysis.layouts import LAYOUTS
from analysis.load import load_journal, load_mlflow
from analysis.studies import Study, TableError, read_studies
from cvit.storage import Storage, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

_SOURCE = Group("Source (one of them)", validator=mutually_exclusive)

app = App(
    name="make_tables.py",
    help="Tables (Markdown, CSV, LaTeX) and figures (PNG, SVG) of every sweep in a tracking store.",
    result_action="return_value",
    version_flags=[],
)


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


@app.default
def make_tables(
    *,
    tracking_uri: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    storage: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    out: Path = Path("results"),
) -> int:
    """Tables (Markdown, CSV, LaTeX) and figures (PNG, SVG) of every sweep in a tracking store.

    Parameters
    ----------
    tracking_uri
        MLflow store to read, such as sqlite:///mlflow.db or http://host:5000. The environment variable
        MLFLOW_TRACKING_URI by default, else sqlite:///mlflow.db in the working folder.
    storage
        Folder or URL of a sweep's storage: read its journal instead of MLflow.
    out
        Folder that the files are written to.
    """
    frames = read(tracking_uri, storage)
    held = sorted(set(frames.studies["sweep"]))
    shown = [sweep for sweep in BUILDERS if sweep in held]
    if not shown:
        raise LoadError(f"no study of {', '.join(BUILDERS)} found; the store holds {', '.join(held)}")
    for sweep in shown:
        files = BUILDERS[sweep](frames)
        print(next(iter(files.values())).decode())
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
            print(f"wrote {out / name}")
    if passed_over := [sweep for sweep in held if sweep not in BUILDERS]:
        print(f"passed over, without a table of their own: {', '.join(passed_over)}")
    return 0


def read(tracking_uri: str | None, storage: str | None) -> Frames:
    """The frames of the source that was asked for.

    Raises:
        LoadError: it cannot be read or holds no study.
        StorageError: the storage's URL is wrong.
    """
    if storage is not None:
        return load_journal(Storage.open(storage))
    return load_mlflow(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 after one line on stderr for bad input."""
    try:
        return app(arguments, exit_on_error=False, print_error=False) or 0
    except (CycloptsError, LoadError, StorageError, TableError, OSError) as error:
        print(f"make_tables.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
