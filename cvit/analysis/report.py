"""The page report.html: the question, the verdicts, every table and figure, and their provenance."""

import itertools
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata

from cvit.analysis import verdicts_text
from cvit.analysis.claims import Verdict, claim_of
from cvit.analysis.display.html import code, figure, from_markdown, page, table, table_of
from cvit.analysis.display.notes import IN_BRACKETS, notes
from cvit.analysis.files import SweepFiles
from cvit.analysis.statistics.studies import Study, all_studies
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED
from cvit.analysis.store.frames import TRAINED_WITH, Frames

PAPER = "https://arxiv.org/abs/2111.01353"
TITLE = "Can vision transformers perform convolution? The claims, checked"
_LIBRARIES = ("matplotlib", "mlflow", "numpy", "optuna", "pandas", "ray", "scipy", "torch")
_CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "open"}


def report(frames: Frames, sections: Mapping[str, SweepFiles], verdicts: Sequence[Verdict], command: str) -> str:
    """The page as HTML.

    Args:
        sections: the files of each sweep.
        command: the command that makes this page.
    """
    studies = all_studies(frames)
    links = {"verdicts": "Verdicts", **{f"sweep-{sweep}": sweep for sweep in sections}}
    links |= {"commands": "Commands", "provenance": "Provenance"}
    counts = [
        f"{sum(verdict.verdict == outcome for verdict in verdicts)} {text}"
        for outcome, text in ((HOLDS, "hold"), (FAILS, "do not hold"), (UNDECIDED, "have not enough data"))
    ]
    body = [
        f"<header><h1>{escape(TITLE)}</h1>",
        '<p class="lead">Attention with enough heads can express any convolution, says the paper '
        f'<a href="{PAPER}">Can Vision Transformers Perform Convolution?</a> So a transformer that is first trained as '
        "a convolution should be more accurate where data are few, train faster and need no warm-up. Does it?</p>",
        f"<p>Of {len(verdicts)} claims, {', '.join(counts[:2])} and {counts[2]}.</p>",
        "<nav aria-label='Contents'><ul>",
        *(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links.items()),
        "</ul></nav></header>",
        "<main>",
        _section(
            "verdicts",
            [
                "<h2>Verdicts</h2>",
                *_verdicts(verdicts),
                "<h3>How they are judged</h3>",
                *map(_paragraph, verdicts_text.rules()),
            ],
        ),
        *(_section(f"sweep-{sweep}", [_sweep(files)]) for sweep, files in sections.items()),
        _section("commands", _commands(studies, command)),
        _section("provenance", _provenance(studies)),
        "</main>",
    ]
    return page(TITLE, body)


def _verdicts(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A heading and a table per claim."""
    for claim, group in itertools.groupby(verdicts, claim_of):
        of_claim = list(group)
        num_holding = sum(verdict.verdict == HOLDS for verdict in of_claim)
        rows = []
        for verdict in of_claim:
            place = verdict.claim.partition("/")[2] or "-"
            numbers = [verdicts_text.estimate_text(verdict), verdicts_text.interval_text(verdict), str(verdict.n)]
            cells = "".join(f"<td>{escape(text)}</td>" for text in [place, *numbers, verdict.source])
            rows.append(f'<tr><td class="{_CLASSES[verdict.verdict]}">{verdict.verdict}</td>{cells}</tr>')
        yield f"<h3>{escape(claim.statement)}: {num_holding} of {len(of_claim)}</h3>"
        yield f"<p><code>{escape(claim.name)}</code>, in {escape(claim.unit)}</p>"
        yield table_of(
            ["verdict", "at", "estimate", "interval", "n", "study"], "<tbody>" + "\n".join(rows) + "</tbody>"
        )


def _sweep(files: SweepFiles) -> str:
    """A sweep's section: its Markdown as HTML, with its figure before the first study."""
    rules, heading, studies = from_markdown(files.markdown).partition("<h3>")
    return rules + figure(files.svg, files.caption) + heading + studies


def _commands(studies: Iterable[Study], command: str) -> list[str]:
    lines = [study.command or f"unknown: {study.sweep}, {study.label}" for study in studies]
    return [
        "<h2>Commands</h2>",
        _paragraph("The trials:"),
        code("\n".join(dict.fromkeys(lines))),
        _paragraph("This page, with its tables and figures as files:"),
        code(command),
    ]


def _provenance(studies: Iterable[Study]) -> list[str]:
    head = [
        "sweep",
        "study",
        "started",
        "trials",
        "data set",
        "data fingerprint",
        "code version",
        "torch",
        "device",
        "CPU",
    ]
    rows, all_notes = [], []
    for study in studies:
        started = datetime.fromtimestamp(study.start_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        done = f"{len(study.results) - len(study.missing)} of {len(study.results)}"
        measured = [_distinct(study, name) for name in ("data_fingerprint", *TRAINED_WITH)]
        rows.append([study.sweep, study.label, started, done, study.dataset or "-", *measured])
        all_notes += [f"{study.sweep}, {study.label}: {note}" for note in notes(study) if note != IN_BRACKETS]
    versions = [["Python", platform.python_version()], *([name, _version(name)] for name in _LIBRARIES)]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return [
        "<h2>Provenance</h2>",
        _paragraph("With what the trials were trained: a dash is what their records do not say."),
        table(head, rows),
        *map(_paragraph, all_notes),
        _paragraph(f"Versions on the machine that made this page ({machine}):"),
        table(["library", "version"], versions),
    ]


def _distinct(study: Study, name: str) -> str:
    values = dict.fromkeys(trial[name] for trial in study.trials if trial.get(name))
    return ", ".join(map(str, values)) or "-"


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _section(name: str, parts: Iterable[str]) -> str:
    return "\n".join([f'<section id="{escape(name)}">', *parts, "</section>"])


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
