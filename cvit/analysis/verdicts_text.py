"""The verdicts on the claims as text, for files and the terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields

from cvit.analysis.claims import Verdict, all_claims, claim_of, latest_studies, source_of
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.text import error_text, markdown_table, number_text, percent
from cvit.analysis.questions import HEADS, PAIRED_UNITS, RELATIVE_ERROR
from cvit.analysis.statistics.verdicts import ERROR_RATE, HOLDS, LEAST_PAIRS, MARGIN
from cvit.analysis.store.frames import Frames

CSV_COLUMNS = tuple(field.name for field in fields(Verdict))

_UNITS = "Estimates are points of accuracy, % of the cost, relative errors, heads or decades; see claims.md."

_MARGIN = f"{100 * MARGIN:g}"
RULE = (
    "Accuracy and cost: the mean difference between trials on the same seeds, with Student's t limits. A claim of a "
    f"gain holds where the whole interval lies above 0; otherwise it does not hold where it lies below +{_MARGIN} (no "
    f"gain that matters). A claim of no loss holds where the interval lies above -{_MARGIN} (no loss that matters); "
    "otherwise it does not hold where it lies below 0. Units are points of accuracy, or percent of the cost. Else, "
    f"with fewer than {LEAST_PAIRS} pairs, and with pairs that all differ by the same amount: not enough data. Claims "
    "of one kind at all places of one study are judged together by Holm's procedure, for either verdict at "
    f"{100 * ERROR_RATE:g} %, so that the chance of any wrong verdict among them is at most {200 * ERROR_RATE:g} %; "
    "the ends of an interval are shown at the level of their step in it, so they are wider than those of the tables. "
    "Kinds, studies and data sets are not corrected for each other, and the rate is that of one look at a number of "
    "seeds chosen beforehand. A diverged trial counts with its last measured accuracy, or, never tested, with that of "
    "guessing."
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
    """The verdicts as Markdown, with the rules, the statements of the claims, and the commands of their studies."""
    head = ["claim", "verdict", "estimate", "interval", "n", "unit", "source"]
    rows = [
        [f"`{v.claim}`", v.verdict, estimate_text(v), interval_text(v), str(v.n), claim_of(v).unit, v.source]
        for v in verdicts
    ]
    lines = ["# Claims", ""]
    for rule in rules():
        lines += [rule, ""]
    lines += markdown_table(head, rows)
    lines += ["", "What the claims say:", "", *(f"- `{c.name}`: {c.statement}." for _, c in all_claims())]
    lines += ["", "Commands of the studies:", ""]
    studies = {
        source_of(study): study.command
        for sweep in dict.fromkeys(sweep for sweep, _ in all_claims())
        for study in latest_studies(frames, sweep)
    }
    for source, command in studies.items():
        lines += [f"{source}:", "", *(f"    {line}" for line in command.splitlines() or ["unknown"]), ""]
    return "\n".join(lines)


def answer(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in a table for the terminal."""
    head = ["claim", "verdict", "estimate", "interval", "n", "source"]
    rows = [[v.claim, v.verdict, estimate_text(v), interval_text(v), str(v.n), v.source] for v in verdicts]
    num_holding = sum(v.verdict == HOLDS for v in verdicts)
    return "\n".join([*markdown_table(head, rows), "", _UNITS, f"{num_holding} of {len(verdicts)} claims hold."])


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
