"""results/report.html: the question, the verdicts, every table and figure, and what they rest on, in one page."""

import itertools
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata

from analysis import verdicts_text as claims_text
from analysis.claims import Claim, kind_of
from analysis.display.html import code, figure, from_markdown, page, table, table_of
from analysis.statistics.studies import Study, all_studies
from analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED
from analysis.store.frames import Frames

PAPER = "https://arxiv.org/abs/2111.01353"
TITLE = "Can vision transformers perform convolution? The claims, checked"
CAPTIONS: Mapping[str, str] = {
    "low_data": "Left: test accuracy against the share of the training images. Right: validation accuracy during "
    "training; a tick marks where trials pass from convolution to attention. Means over seeds, bands 95 % intervals.",
    "no_warmup": "Above: test accuracy and share of diverged trials against learning rate, solid without warm-up, "
    "broken with the longest. Below: norm of the gradient in the first steps of the attention phase, median over seeds "
    "that have got so far. Means over seeds, bands 95 % intervals; trials that were never tested are left out of them.",
    "expressivity": "Distance from a convolution against the number of heads: theorem 2's bound and the least error "
    "that gradient descent reached. A vertical line marks the number of heads of theorem 1.",
    "head_count": "Test accuracy against the number of heads, at a fixed width of a head and of all heads together. "
    "Means over seeds, bands 95 % intervals.",
    "patch_size": "Left: test accuracy against the size of the patches, means over seeds, bands 95 % intervals. Right: "
    "optimiser steps per second, and the heads that convolutions of 3, 5 and 7 pixels need.",
    "init_schemes": "Left: test accuracy of all init schemes against the share of the training images. Right: gain "
    "over random initialisation on the same seeds, with 95 % intervals. References are dotted.",
    "full_grid": "Test accuracy against the number of heads, a row per patch size, a column per share of the training "
    "images. Lines are means over seeds, dots single trials.",
    "tuned": "Left: validation accuracy of the trials of each scheme's search, the best so far as a line; a trial that "
    "diverged is at 0. Right: test accuracy of the winners on fresh seeds, with mean and 95 % interval.",
}
"""What the figure of each sweep shows."""

_LIBRARIES = ("matplotlib", "mlflow", "numpy", "optuna", "pandas", "ray", "scipy", "torch")
_CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "open"}


def report(frames: Frames, sections: Mapping[str, Mapping[str, bytes]], claims: Sequence[Claim], command: str) -> str:
    """The page.

    Args:
        sections: the files of each sweep, by name.
        command: the one that makes this page.
    """
    studies = all_studies(frames)
    links = {"verdicts": "Verdicts", **{f"sweep-{sweep}": sweep for sweep in sections}}
    links |= {"commands": "Commands", "provenance": "Provenance"}
    counts = [
        f"{sum(claim.verdict == verdict for claim in claims)} {text}"
        for verdict, text in ((HOLDS, "hold"), (FAILS, "do not hold"), (UNDECIDED, "have not enough data"))
    ]
    body = [
        f"<header><h1>{escape(TITLE)}</h1>",
        '<p class="lead">Attention with enough heads can express any convolution, says the paper '
        f'<a href="{PAPER}">Can Vision Transformers Perform Convolution?</a> So a transformer that is first trained as '
        "a convolution should be more accurate where data are few, train faster and need no warm-up. Does it?</p>",
        f"<p>Of {len(claims)} claims, {', '.join(counts[:2])} and {counts[2]}.</p>",
        "<nav aria-label='Contents'><ul>",
        *(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links.items()),
        "</ul></nav></header>",
        "<main>",
        _section(
            "verdicts",
            ["<h2>Verdicts</h2>", *_verdicts(claims), "<h3>How they are judged</h3>", *map(_paragraph, _RULES)],
        ),
        *(_section(f"sweep-{sweep}", [_of_sweep(sweep, files)]) for sweep, files in sections.items()),
        _section("commands", _commands(studies, command)),
        _section("provenance", _provenance(studies)),
        "</main>",
    ]
    return page(TITLE, body)


_RULES = (claims_text.RULE, claims_text.RULE_OF_HEADS, claims_text.FURTHER_RULES)


def _verdicts(claims: Sequence[Claim]) -> Iterator[str]:
    """A heading and a table per kind of claim."""
    for kind, of_kind in itertools.groupby(claims, kind_of):
        group = list(of_kind)
        held = sum(claim.verdict == HOLDS for claim in group)
        rows = []
        for claim in group:
            place = claim.claim.partition("/")[2] or "-"
            shown = [place, claims_text.estimate_text(claim), claims_text.interval_text(claim), str(claim.n)]
            cells = "".join(f"<td>{escape(text)}</td>" for text in [*shown, claim.source])
            rows.append(f'<tr><td class="{_CLASSES[claim.verdict]}">{claim.verdict}</td>{cells}</tr>')
        yield f"<h3>{escape(kind.statement)}: {held} of {len(group)}</h3>"
        yield f"<p><code>{escape(kind.name)}</code>, in {escape(kind.unit)}</p>"
        yield table_of(
            ["verdict", "at", "estimate", "interval", "n", "study"], "<tbody>" + "\n".join(rows) + "</tbody>"
        )


def _of_sweep(sweep: str, files: Mapping[str, bytes]) -> str:
    """The Markdown of the sweep with its figure before the first study."""
    rules, heading, studies = from_markdown(files[f"{sweep}.md"].decode()).partition("<h3>")
    return rules + figure(files[f"{sweep}.svg"], CAPTIONS[sweep]) + heading + studies


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
    head = ["sweep", "study", "started", "trials", "data set", "data fingerprint", "code version", "device"]
    rows = []
    for study in studies:
        started = datetime.fromtimestamp(study.start_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        done = f"{len(study.results) - len(study.missing)} of {len(study.results)}"
        measured = [_distinct(study, name) for name in ("data_fingerprint", "code_version", "device")]
        rows.append([study.sweep, study.label, started, done, study.dataset or "-", *measured])
    versions = [["Python", platform.python_version()], *([name, _version(name)] for name in _LIBRARIES)]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return [
        "<h2>Provenance</h2>",
        _paragraph("Where the trials come from: a dash is what their records do not say."),
        table(head, rows),
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
