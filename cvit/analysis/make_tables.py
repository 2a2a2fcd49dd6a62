"""Makes the tables, figures and verdicts of every sweep in a tracking store, and one page with all of them.

python analysis/make_tables.py                      # sqlite:///mlflow.db here, or MLFLOW_TRACKING_URI
python analysis/make_tables.py --storage runs       # from the journal, without MLflow
python analysis/make_tables.py --sweep low_data     # of one sweep
python analysis/make_tables.py --strict             # exit code 3 when a claim of the paper does not hold
"""

import os
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import mutually_exclusive

from cvit.analysis import verdicts_text
from cvit.analysis.claims import Verdict, sweep_of, verdicts
from cvit.analysis.display.titles import study_title
from cvit.analysis.display.wording import in_words_of
from cvit.analysis.files import file_stems, files_of
from cvit.analysis.questions import curves_of, question_of, studies_of
from cvit.analysis.report import report
from cvit.analysis.statistics.studies import TableError
from cvit.analysis.statistics.verdicts import FAILS
from cvit.analysis.store.frames import Frames, LoadError
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from cvit.errors import one_line
from cvit.leaving import leave_quickly
from cvit.redaction import Redacting, redacted
from cvit.storage import Storage, StorageError, without_waiting
from cvit.streams import make_streams_last
from cvit.tracking import chosen_uri
from cvit.vocabulary import NO_TRACKING

REPORT = "report.html"
ABOUT = "Tables, figures and verdicts on the paper's claims, of every sweep in a tracking store, and a report."
_SOURCE = Group("Source (one of them)", validator=mutually_exclusive)


def make_tables(
    *,
    tracking_uri: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    storage: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    out: Path = Path("results"),
    sweep: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    open_report: Annotated[bool, Parameter(name="--open", negative="")] = False,
    strict: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tables (Markdown, CSV, LaTeX) and figures (PDF, PNG, SVG) of every sweep in a tracking store; claims.md and
    claims.csv with a verdict on each claim of the paper; report.html with all of it in one page.

    Parameters
    ----------
    tracking_uri
        MLflow store to read, such as sqlite:///mlflow.db or http://host:5000. The environment variable
        MLFLOW_TRACKING_URI by default, else sqlite:///mlflow.db in the working folder.
    storage
        Folder or URL of a sweep's storage: read its journal instead of MLflow.
    out
        Folder that the files are written to.
    sweep
        Names of sweeps, such as low_data: only theirs.
    open_report
        Open the report in the browser.
    strict
        Exit with code 3 when a claim does not hold.
    """
    frames = read(tracking_uri, storage)
    sweeps = _chosen(sorted(set(frames.studies["sweep"]), key=lambda name: (question_of(name).order, name)), sweep)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadError(f"out {str(out)!r} must be a folder, or a place for one: {error.strerror}") from error
    judged = verdicts(frames, sweeps if sweep else None)
    sections = {}
    for name, stem in file_stems(sweeps).items():
        sections[name] = files_of(frames, name, stem)
        _write(out, sections[name].by_name)
        print(f"{stem}: {_state(frames, name, judged)}")
    page = report(frames, sections, judged, command_of(tracking_uri, storage, sweep))
    studies = [study for name in sections for study in studies_of(frames, name)]
    claims = in_words_of(studies, verdicts_text.markdown(frames, judged))
    texts = {"claims.md": claims, "claims.csv": verdicts_text.csv(judged)}
    _write(out, {name: text.encode() for name, text in {**texts, REPORT: page}.items()})
    print("\n".join(["", *verdicts_text.summary(judged)]))
    failing = [verdict.claim for verdict in judged if verdict.verdict == FAILS]
    if strict and failing:
        print(f"Do not hold: {'; '.join(failing)}.")
    print(f"Tables, figures and claims: {out}{os.sep}\nReport: {out / REPORT}")
    if open_report and not webbrowser.open((out / REPORT).resolve().as_uri()):
        print("no browser could be opened", file=sys.stderr)
    return 3 if strict and failing else 0


def _chosen(sweeps: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted sweeps, or all of them. A name may have hyphens, as in the command line, and several may be joined by
    commas.

    Raises:
        LoadError: there is no such sweep.
    """
    names = [name.strip() for text in wanted for name in ([text] if text in sweeps else text.split(","))]
    names = [name if name in sweeps else name.replace("-", "_") for name in names]
    if unknown := [name for name in names if name not in sweeps]:
        raise LoadError(f"sweep {unknown[0]!r} is not in the store, which has {', '.join(sweeps)}")
    return [name for name in sweeps if name in names or not names]


def _state(frames: Frames, sweep: str, judged: Sequence[Verdict]) -> str:
    """The state of a sweep in a line: its studies, its trials, and the verdicts on its claims."""
    studies = studies_of(frames, sweep)
    results = [result for study in studies for result in study.results]
    num_done = sum(not result.missing for result in results)
    titles = "; ".join(map(study_title, studies)) if len(studies) == 1 else f"{len(studies)} studies"
    own = [verdict for verdict in judged if sweep_of(verdict) == sweep]
    return " ".join([f"{titles}; {num_done} of {len(results)} trials.", *verdicts_text.summary(own)[:1]])


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def command_of(tracking_uri: str | None, storage: str | None, sweeps: Sequence[str] = ()) -> str:
    """The command that makes the tables of this source, or of some of its sweeps, without passwords."""
    options = ["--storage", storage] if storage is not None else ["--tracking-uri", chosen_uri(tracking_uri)]
    options += [text for sweep in sweeps for text in ("--sweep", sweep)]
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
    leave_quickly()
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    with without_waiting():
        sys.exit(main(arguments, name))
