"""The page report.html: the answer to each question first, then the verdicts, the rules and the provenance."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

from markupsafe import Markup

from cvit.analysis import verdicts_text
from cvit.analysis.claims import Verdict, claim_of, latest_of, source_of, sweep_of
from cvit.analysis.display.html import from_markdown, picture_url, rendered
from cvit.analysis.display.notes import IN_BRACKETS, notes
from cvit.analysis.display.text import p_text
from cvit.analysis.display.titles import named_title, study_hash, study_title
from cvit.analysis.display.wording import in_words_of
from cvit.analysis.files import SweepFiles
from cvit.analysis.questions import Claim, question_of, studies_of, tables_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import ERROR_RATE, FAILS, HOLDS, UNDECIDED
from cvit.analysis.store.frames import TRAINED_WITH, Frames

PAPER = "https://arxiv.org/abs/2111.01353"
TITLE = "Can vision transformers perform convolution? The claims, checked"
_LIBRARIES = ("matplotlib", "mlflow", "numpy", "optuna", "pandas", "ray", "scipy", "torch")
_CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "open"}
_KINDS = {"csv": "CSV", "tex": "LaTeX", "pdf": "PDF", "svg": "SVG", "png": "PNG", "md": "Markdown", "json": "settings"}
_PROVENANCE = ("sweep", "study", "started", "trials", "data set", "data fingerprint", "code version", "torch", "device")


@dataclass(frozen=True)
class _StudyPart:
    """A study in the page: its short table and, behind a click, all of its numbers and settings."""

    title: str
    hash: str
    is_recent: bool
    answer: Markup
    notes: list[str]
    details: Markup


@dataclass(frozen=True)
class _Row:
    """A verdict in the page."""

    place: str
    verdict: str
    outcome: str
    estimate: str
    interval: str
    p: str
    n: int
    dataset: str
    hash: str


@dataclass(frozen=True)
class _ClaimPart:
    """A claim in the page. `counts` are its outcomes in words, each with the class of its colour."""

    name: str
    statement: str
    unit: str
    has_study: bool
    counts: list[tuple[str, str]]
    rows: list[_Row]


@dataclass(frozen=True)
class _Answer:
    """The answer of a study in a sentence."""

    title: str
    sentence: str


@dataclass(frozen=True)
class _QuestionPart:
    """A sweep in the page."""

    sweep: str
    name: str
    text: str
    answers: list[_Answer]
    summary: list[str]
    claims: list[_ClaimPart]
    picture: str
    narrow_picture: str
    caption: str
    files: list[tuple[str, str]]
    studies: list[_StudyPart]


def report(frames: Frames, sections: Mapping[str, SweepFiles], verdicts: Sequence[Verdict], command: str) -> str:
    """The page as HTML.

    Args:
        sections: the files of each sweep.
        command: the command that makes this page.
    """
    studies = {sweep: studies_of(frames, sweep) for sweep in sections}
    everything = [study for of_sweep in studies.values() for study in of_sweep]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return rendered(
        "report.html.j2",
        title=TITLE,
        paper=PAPER,
        summary=verdicts_text.summary(verdicts),
        questions=[_question(studies[sweep], files, verdicts) for sweep, files in sections.items()],
        claims=_claims(verdicts, everything),
        rules=[in_words_of(everything, rule) for rule in verdicts_text.rules()],
        error_rate=f"{ERROR_RATE:g}",
        command=command,
        commands="\n".join(dict.fromkeys(study.command or f"unknown: {named_title(study)}" for study in everything)),
        machine=machine,
        versions=[["Python", platform.python_version()], *([name, _version(name)] for name in _LIBRARIES)],
        provenance_head=[*_PROVENANCE, "CPU"],
        provenance_rows=[_provenance(study) for study in everything],
        provenance_notes=[
            f"{study.sweep}, {named_title(study)}: {in_words_of([study], note)}"
            for study in everything
            for note in notes(study)
            if note != IN_BRACKETS
        ],
    )


def _question(studies: Sequence[Study], files: SweepFiles, verdicts: Sequence[Verdict]) -> _QuestionPart:
    sweep, recent = studies[0].sweep, latest_of(studies)
    own = [verdict for verdict in verdicts if sweep_of(verdict) == sweep]
    sentences = [(study, question_of(sweep).sentence(study)) for study in recent]
    return _QuestionPart(
        sweep=sweep,
        name=_in_words(sweep),
        text=studies[0].question or _in_words(sweep),
        answers=[_Answer(study_title(study), sentence) for study, sentence in sentences if sentence],
        summary=verdicts_text.summary(own) if own else [],
        claims=_claims(own, studies),
        picture=picture_url(files.svg),
        narrow_picture=picture_url(files.narrow_svg),
        caption=files.caption,
        files=[(name, _KINDS.get(name.rpartition(".")[2], name)) for name in sorted(files.by_name, key=_order_of_file)],
        studies=[_study(study, study in recent) for study in studies],
    )


def _study(study: Study, is_recent: bool) -> _StudyPart:
    tables = tables_of(study.sweep, [study])
    details = from_markdown(in_words_of([study], tables.markdown([study])))
    _, has_heading, below_heading = details.partition("</h3>")
    return _StudyPart(
        title=study_title(study),
        hash=study_hash(study),
        is_recent=is_recent,
        answer=from_markdown(in_words_of([study], tables.answer(study))),
        notes=[in_words_of([study], note) for note in notes(study)],
        details=Markup(below_heading if has_heading else details),
    )


def _claims(verdicts: Iterable[Verdict], studies: Sequence[Study]) -> list[_ClaimPart]:
    by_claim: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_claim.setdefault(claim_of(verdict).name, []).append(verdict)
    by_source = {source_of(study): study for study in studies}
    return [_claim(claim_of(of_claim[0]), of_claim, by_source) for of_claim in by_claim.values()]


def _claim(claim: Claim, verdicts: Sequence[Verdict], by_source: Mapping[str, Study]) -> _ClaimPart:
    rows = []
    for verdict in verdicts:
        study = by_source.get(verdict.source)
        if study is not None:  # there is one, with something to compare
            rows.append(
                _Row(
                    place=verdicts_text.place_text(verdict),
                    verdict=verdict.verdict,
                    outcome=_CLASSES[verdict.verdict],
                    estimate=verdicts_text.estimate_text(verdict),
                    interval=verdicts_text.interval_text(verdict),
                    p=p_text(verdict.p_holm),
                    n=verdict.n,
                    dataset=study.dataset or study.sweep,
                    hash=study_hash(study),
                )
            )
    return _ClaimPart(
        claim.name,
        in_words_of([*by_source.values()], claim.statement),
        claim.unit,
        verdicts[0].has_study,
        _counts(verdicts),
        rows,
    )


def _counts(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """The outcomes of a claim in a few words: where they are few, with their places."""
    counts = []
    for outcome, word in ((HOLDS, "holds"), (FAILS, "does not hold"), (UNDECIDED, "undecided")):
        places = [verdicts_text.place_text(v) for v in verdicts if v.can_be_judged and v.verdict == outcome]
        if places:
            is_short = len(places) <= 2 and places != ["-"]
            at = f"at {' and '.join(places)}" if is_short else f"at {len(places)} places" if len(places) > 1 else ""
            counts.append((_CLASSES[outcome], f"{word} {at}".strip()))
    return counts or [("open", "not judged yet")]


def _provenance(study: Study) -> list[str]:
    started = datetime.fromtimestamp(study.start_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    done = f"{len(study.results) - len(study.missing)} of {len(study.results)}"
    measured = [_distinct(study, name) for name in ("data_fingerprint", *TRAINED_WITH)]
    return [study.sweep, study_hash(study), started, done, study.dataset or "-", *measured]


def _distinct(study: Study, name: str) -> str:
    values = dict.fromkeys(trial[name] for trial in study.trials if trial.get(name))
    return ", ".join(map(str, values)) or "-"


def _order_of_file(name: str) -> int:
    kinds = list(_KINDS)
    kind = name.rpartition(".")[2]
    return kinds.index(kind) if kind in kinds else len(kinds)


def _in_words(sweep: str) -> str:
    """The name of a sweep as a heading, such as `Low data`."""
    return sweep.replace("_", " ")[:1].upper() + sweep.replace("_", " ")[1:]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
