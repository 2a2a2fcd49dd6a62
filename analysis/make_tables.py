"""Makes the tables and figures of every sweep in a tracking store.

python analysis/make_tables.py                      # sqlite:///mlflow.db here, or MLFLOW_TRACKING_URI
python analysis/make_tables.py --storage runs       # from the journal, without MLflow
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    # Not this folder: its tables.py must not pass for the package that pandas knows by that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from analysis.load import Frames, LoadError, load_journal, load_mlflow
from analysis.tables import LOW_DATA, TableError, low_data_csv, low_data_latex, low_data_markdown
from cvit.storage import Storage, StorageError

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

_SOURCE = Group("Source (one of them)", validator=mutually_exclusive)

app = App(
    name="make_tables.py",
    help="Tables (Markdown, CSV, LaTeX) and figures (PNG, SVG) of every sweep in a tracking store.",
    result_action="return_value",
    version_flags=[],
)


def low_data(frames: Frames) -> dict[str, bytes]:
    """The files of the sweep low_data by name, the Markdown table first."""
    from analysis.figures import image_bytes, low_data_figure  # matplotlib is slow to load: not before it is needed

    figure = low_data_figure(frames.studies, frames.trials, frames.curves)
    return {
        "low_data.md": low_data_markdown(frames.studies, frames.trials).encode(),
        "low_data.csv": low_data_csv(frames.studies, frames.trials).encode(),
        "low_data.tex": low_data_latex(frames.studies, frames.trials).encode(),
        "low_data.png": image_bytes(figure, "png"),
        "low_data.svg": image_bytes(figure, "svg"),
    }


BUILDERS: Mapping[str, Callable[[Frames], dict[str, bytes]]] = {LOW_DATA: low_data}
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
