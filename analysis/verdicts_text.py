"""The verdicts on the claims as files and for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields

import pandas as pd

from analysis.claims import KINDS, PENALTY, TRAINS_SHARE, ZERO_ERROR, Claim, kind_of, latest_studies, source_of
from analysis.display.text import markdown_table, percent
from analysis.questions.expressivity import number_text as error_text
from analysis.statistics.verdicts import ERROR_RATE, HOLDS, LEAST_PAIRS, MARGIN
from analysis.store.frames import Frames

CSV_COLUMNS = tuple(field.name for field in fields(Claim))

_UNITS = "Estimates are points of accuracy, percent of the steps, relative errors or numbers of heads; see claims.md."

_MARGIN = f"{100 * MARGIN:g}"
RULE = (
    "Accuracy and steps: the mean difference between trials on the same seeds, with Student's t limits. A claim of a "
    f"gain holds where the whole interval lies above 0; otherwise it does not hold where it lies below +{_MARGIN} (no "
    f"gain that matters). A claim of no loss holds where the interval lies above -{_MARGIN} (no loss that matters); "
    "otherwise it does not hold where it lies below 0. Units are points of accuracy, or percent of the steps. Else, "
    f"and with fewer than {LEAST_PAIRS} pairs: not enough data. Claims of one kind at several places of one study are "
    f"judged together by Holm's procedure, for either verdict at {100 * ERROR_RATE:g} %, so that the chance of any "
    f"wrong verdict among them is at most {200 * ERROR_RATE:g} %; the ends of an interval are shown at the level of "
    "their step in it, so they are wider than those of the tables. A diverged trial counts with its last measured "
    "accuracy, or, never tested, with that of guessing."
)
RULE_OF_HEADS = (
    "Heads that a convolution needs: no seeds are compared. The interval runs from theorem 2's bound, which nothing "
    f"can undercut, to the error that was reached, relative to the convolution's norm; up to {ZERO_ERROR:g} counts as "
    "zero, and what lies below the bound refutes it. Here n counts restarts."
)
FURTHER_RULES = (
    f"Without warm-up less with the longest, at learning rates where the scheme, with it, reaches {TRAINS_SHARE:g} "
    "times its best accuracy. Steps are those to the last validation accuracy of random initialisation on the same "
    f"seed and images, as a share of the trial's; an accuracy that is never reached counts as {PENALTY} times all "
    "steps. Of each data set the most recent study of a sweep is judged."
)


def csv(claims: Sequence[Claim]) -> str:
    """The verdicts as CSV with the columns CSV_COLUMNS; numbers are fractions, errors or heads, in full precision."""
    rows = [asdict(claim) for claim in claims]
    return pd.DataFrame(rows, columns=list(CSV_COLUMNS), dtype=object).to_csv(index=False, lineterminator="\n")


def markdown(frames: Frames, claims: Sequence[Claim]) -> str:
    """The verdicts with the rule, what the claims say, and the commands of the studies that they rest on."""
    head = ["claim", "verdict", "estimate", "interval", "n", "unit", "source"]
    rows = [
        [f"`{c.claim}`", c.verdict, estimate_text(c), interval_text(c), str(c.n), kind_of(c).unit, c.source]
        for c in claims
    ]
    lines = ["# Claims", "", RULE, "", RULE_OF_HEADS, "", FURTHER_RULES, "", *markdown_table(head, rows)]
    lines += ["", "What the claims say:", "", *(f"- `{kind.name}`: {kind.statement}." for kind in KINDS)]
    lines += ["", "Commands of the studies:", ""]
    studies = {
        source_of(study): study.command
        for sweep in dict.fromkeys(kind.sweep for kind in KINDS)
        for study in latest_studies(frames, sweep)
    }
    for source, command in studies.items():
        lines += [f"{source}:", "", *(f"    {line}" for line in command.splitlines() or ["unknown"]), ""]
    return "\n".join(lines)


def answer(claims: Sequence[Claim]) -> str:
    """The verdicts in a table for the terminal."""
    head = ["claim", "verdict", "estimate", "interval", "n", "source"]
    rows = [[c.claim, c.verdict, estimate_text(c), interval_text(c), str(c.n), c.source] for c in claims]
    held = sum(claim.verdict == HOLDS for claim in claims)
    return "\n".join([*markdown_table(head, rows), "", _UNITS, f"{held} of {len(claims)} claims hold."])


def estimate_text(claim: Claim) -> str:
    """The estimate in the claim's unit, rounded."""
    return _number(claim, claim.estimate)


def interval_text(claim: Claim) -> str:
    """The interval in the claim's unit, rounded."""
    if math.isnan(claim.ci_low):
        return "-"
    return f"[{_number(claim, claim.ci_low)}, {_number(claim, claim.ci_high)}]"


def _number(claim: Claim, value: float) -> str:
    match kind_of(claim).unit:
        case "relative error":
            return error_text(value)
        case "heads":
            return "-" if not math.isfinite(value) else f"{value:+g}"
        case _:
            return percent(value, sign="+")
