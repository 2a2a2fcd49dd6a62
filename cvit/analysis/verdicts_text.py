"""The verdicts on the claims as text, for files and the terminal."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields

from cvit.analysis.claims import Verdict, all_claims, claim_of, latest_studies, source_of
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.text import error_text, markdown_table, number_text, p_text, percent
from cvit.analysis.display.wording import joined
from cvit.analysis.questions import HEADS, PAIRED_UNITS, RELATIVE_ERROR
from cvit.analysis.statistics.verdicts import ERROR_RATE, FAILS, HOLDS, LEAST_PAIRS, MARGIN, UNDECIDED
from cvit.analysis.store.frames import Frames

CSV_COLUMNS = tuple(field.name for field in fields(Verdict))

_MARGIN = f"{100 * MARGIN:g}"
RULE = (
    "Accuracy and cost: the mean difference between trials on the same seeds, with its 95 % t-interval, the same as in "
    "the tables. A claim of a gain holds where the difference is shown to be above 0; otherwise it does not hold where "
    f"it is shown to be below +{_MARGIN} (no gain that matters). A claim of no loss holds where it is shown to be "
    f"above -{_MARGIN} (no loss that matters); otherwise it does not hold where it is shown to be below 0. Units "
    "are points of accuracy, or percent of the cost. Shown means that the one-sided p-value of the t-test, adjusted by "
    "Holm's procedure (p, Holm) over the claims of one kind at all places of one study, is at most "
    f"{ERROR_RATE:g}, so that the chance of any wrong verdict among them is at most {200 * ERROR_RATE:g} %: so an "
    "interval may exclude a line that the verdict does not. An undecided claim has the smaller p-value of the two, for "
    f"and against it. With fewer than {LEAST_PAIRS} pairs, and with pairs that all differ by the same amount, nothing "
    "can be judged: not enough data. Kinds, studies and data sets are not corrected for each other, and the rate is "
    "that of one look at a number of seeds chosen beforehand. A diverged trial counts with its last measured accuracy, "
    "or, never tested, with that of guessing."
)
_OUTCOMES = (
    (HOLDS, "holds", "hold"),
    (FAILS, "does not hold", "do not hold"),
    (UNDECIDED, "is undecided", "are undecided"),
)
_RULE_OF_STUDIES = "Of each data set the most recent study of a sweep is judged."


def rules() -> list[str]:
    """The paragraphs about how claims are judged: the common rule, other rules, then details of the common rule."""
    claims = [claim for _, claim in all_claims() if claim.rule]
    others = [claim.rule for claim in claims if claim.unit not in PAIRED_UNITS]
    details = [claim.rule for claim in claims if claim.unit in PAIRED_UNITS]
    return [RULE, *others, " ".join([*details, _RULE_OF_STUDIES])]


def csv(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as CSV with the columns CSV_COLUMNS; numbers are fractions, errors or heads, in full precision."""
    return csv_text([asdict(verdict) for verdict in verdicts], CSV_COLUMNS)


def markdown(frames: Frames, verdicts: Sequence[Verdict]) -> str:
    """The verdicts as Markdown: the summary, a row per claim and place, the rules, the statements of the claims, and
    the commands of their studies."""
    head = ["claim", "verdict", "estimate", "95 % interval", "p, Holm", "n", "unit", "source"]
    rows = [
        [
            *(f"`{v.claim}`", v.verdict, estimate_text(v), interval_text(v), p_text(v.p_holm)),
            *(str(v.n), claim_of(v).unit, v.source),
        ]
        for v in verdicts
        if v.has_study
    ]
    lines = ["# Claims", ""]
    for sentence in summary(verdicts):
        lines += [sentence, ""]
    lines += [*markdown_table(head, rows), ""] if rows else []
    lines += ["## How they are judged", ""]
    for rule in rules():
        lines += [rule, ""]
    lines += ["What the claims say:", "", *(f"- `{c.name}`: {c.statement}." for _, c in all_claims())]
    lines += ["", "Commands of the studies:", ""]
    studies = {
        source_of(study): study.command
        for sweep in dict.fromkeys(sweep for sweep, _ in all_claims())
        for study in latest_studies(frames, sweep)
    }
    for source, command in studies.items():
        lines += [f"{source}:", "", *(f"    {line}" for line in command.splitlines() or ["unknown"]), ""]
    return "\n".join(lines)


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """The sentences that sum the verdicts up: how many hold, what cannot be judged yet and why, and what has no study.
    Where nothing can be judged, none of them counts claims that hold."""
    sentences = [counts_text(verdicts)] if any(v.can_be_judged for v in verdicts) else []
    waiting = [v for v in verdicts if v.has_study and not v.can_be_judged]
    if waiting:
        places = f"{len(waiting)} more cannot be judged yet" if sentences else "nothing can be judged yet"
        sentences.append(f"{places}: {_reason(waiting)}.")
    without = list(dict.fromkeys(claim_of(v).name for v in verdicts if not v.has_study))
    if without and not sentences:
        sentences.append("nothing can be judged yet: no claim has a study.")
    elif without:
        sentences.append(f"no study yet: {joined(without)}.")
    return [sentence[:1].upper() + sentence[1:] for sentence in sentences]


def counts_text(verdicts: Iterable[Verdict]) -> str:
    """The number of claims that hold, that do not and that are undecided, as a sentence. A claim counts once per place,
    such as a learning rate."""
    outcomes = Counter(verdict.verdict for verdict in verdicts if verdict.can_be_judged)
    texts = []
    for outcome, one, several in _OUTCOMES:
        if count := outcomes[outcome]:
            claims = "" if texts else " claim" if count == 1 else " claims"
            texts.append(f"{count}{claims} {one if count == 1 else several}")
    return f"{joined(texts)}."


def _reason(waiting: Sequence[Verdict]) -> str:
    """The reason why claims cannot be judged yet, by the one that has come furthest."""
    _, least, most = max((v.n / claim_of(v).least_n, claim_of(v).least_n, v.n) for v in waiting)
    if most == 0 and all(not verdict.place for verdict in waiting):
        return "their studies have nothing to compare"
    if least < LEAST_PAIRS:
        return "no trial of theirs has finished"
    seeds = f"{most} seed{'' if most == 1 else 's'}" if most else "no seed has what they compare"
    return f"{seeds}, at least {least} are needed"


def place_text(verdict: Verdict) -> str:
    """The place of a verdict in words, such as `2 %` or `1 head, head_dim fixed`; a dash without one."""
    return claim_of(verdict).place_text(verdict.place) if verdict.place else "-"


def estimate_text(verdict: Verdict) -> str:
    """The estimate in the claim's unit, rounded."""
    return _number(verdict, verdict.estimate)


def interval_text(verdict: Verdict) -> str:
    """The interval in the claim's unit, rounded."""
    if math.isnan(verdict.ci_low) and math.isnan(verdict.ci_high):
        return "-"
    return f"[{_number(verdict, verdict.ci_low)}, {_number(verdict, verdict.ci_high)}]"


def _number(verdict: Verdict, value: float) -> str:
    unit = claim_of(verdict).unit
    if unit in PAIRED_UNITS:
        return percent(value, sign="+")
    if unit == RELATIVE_ERROR:
        return error_text(value)
    if unit == HEADS:
        return "-" if not math.isfinite(value) else f"{value:+g}"
    return number_text(value)
