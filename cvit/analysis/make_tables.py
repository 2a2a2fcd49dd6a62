"""Makes the tables, figures and verdicts of every sweep in a tracking store, and one page with all of them.

python analysis/make_tables.py                      # sqlite:///mlflow.db here, or MLFLOW_TRACKING_URI
python analysis/make_tables.py --storage runs       # from the journal, without MLflow
python analysis/make_tables.py --strict             # exit code 3 when a claim of the paper does not hold
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from cvit.analysis import verdicts_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import file_stems, files_of
from cvit.analysis.questions import curves_of, question_of
from cvit.analysis.report import report
from cvit.analysis.statistics.studies import TableError
from cvit.analysis.statistics.verdicts import FAILS
from cvit.analysis.store.frames import Frames, LoadError
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from cvit.errors import one_line
from cvit.redaction import Redacting, redacted
from cvit.storage import Storage, StorageError, without_waiting
from cvit.streams import make_streams_last
from cvit.tracking import chosen_uri
from cvit.vocabulary import NO_TRACKING

ABOUT = "Tables, figures and verdicts on the paper's claims, of every sweep in a tracking store, and a report."
_SOURCE = Group("Source (one of them)", validator=mutually_exclusive)


def make_tables(
    *,
    tracking_uri: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    storage: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    out: Path = Path("results"),
    strict: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tables (Markdown, CSV, LaTeX) and figures (PNG, SVG) of every sweep in a tracking store; claims.md and claims.csv
    with a verdict on each claim of the paper; report.html with all of it in one page.

    Parameters
    ----------
    tracking_uri
        MLflow store to read, such as sqlite:///mlflow.db or http://host:5000. The environment variable
        MLFLOW_TRACKING_URI by default, else sqlite:///mlflow.db in the working folder.
    storage
        Folder or URL of a sweep's storage: read its journal instead of MLflow.
    out
        Folder that the files are written to.
    strict
        Exit with code 3 when a claim does not hold.
    """
    frames = read(tracking_uri, storage)
    sweeps = sorted(set(frames.studies["sweep"]), key=lambda sweep: (question_of(sweep).order, sweep))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(f"out {str(out)!r} must be a folder, or a place for one: {error.strerror}") from error
    sections = {}
    for sweep, stem in file_stems(sweeps).items():
        sections[sweep] = files_of(frames, sweep, stem)
        print(sections[sweep].markdown)
        _write(out, sections[sweep].by_name)
    judged = verdicts(frames)
    page = report(frames, sections, judged, command_of(tracking_uri, storage))
    texts = {"claims.md": verdicts_text.markdown(frames, judged), "claims.csv": verdicts_text.csv(judged)}
    _write(out, {name: text.encode() for name, text in {**texts, "report.html": page}.items()})
    print("\n" + verdicts_text.answer(judged))
    return 3 if strict and any(verdict.verdict == FAILS for verdict in judged) else 0


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
        print(f"wrote {folder / name}")


def command_of(tracking_uri: str | None, storage: str | None) -> str:
    """The command that makes the tables of this source, without passwords."""
    options = ["--storage", storage] if storage is not None else ["--tracking-uri", chosen_uri(tracking_uri)]
    return shlex.join(["python", "analysis/make_tables.py", *map(redacted, options)])


def read(tracking_uri: str | None, storage: str | None) -> Frames:
    """The frames of the given source.

    Raises:
        LoadError: the source cannot be read or holds no study.
        StorageError: the storage's URL is wrong, or nobody answers there.
    """
    if storage is not None:
        opened = Storage.open(storage)
        opened.check_readable()
        return load_journal(opened, curves_of=curves_of)
    if (uri := chosen_uri(tracking_uri)) == NO_TRACKING:
        raise LoadError(f"tracking URI {uri!r}: there is no store to read; give --storage")
    return load_mlflow(uri, curves_of)


def main(arguments: Sequence[str] | None = None, name: str = "make_tables.py") -> int:
    """Runs the command line; returns the exit code, 2 after one line on stderr for bad input."""
    app = App(name=name, help=ABOUT, result_action="return_value", version_flags=[])
    app.default(make_tables)
    try:
        return app(arguments, exit_on_error=False, print_error=False) or 0
    except (CycloptsError, LoadError, StorageError, TableError, OSError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 2


def run(arguments: Sequence[str] | None = None, name: str = "make_tables.py") -> NoReturn:
    """Runs the command line of this process and ends it with the exit code. The output shows no passwords of URLs.

    Args:
        arguments: the options; by default those of this process.
        name: the command as a person types it.
    """
    os.environ.pop("MPLBACKEND", None)  # no figure needs it, and matplotlib refuses to be imported with a wrong one
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    with without_waiting():
        sys.exit(main(arguments, name))
