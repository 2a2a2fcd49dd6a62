"""The paper's claims, each judged on its sweep: on the most recent study of each data set that has the place.

The claims and their judges are part of the question of their sweep (`questions/`). A claim without a study in the
store has n = 0.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cvit.analysis.questions import Claim, all_questions, question_of, studies_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import UNDECIDED, Judged
from cvit.analysis.store.frames import Frames

_NO_STUDY = "no study of "


@dataclass(frozen=True)
class Verdict:
    """A row of results/claims.csv; `estimate` and the interval are in the claim's unit."""

    claim: str
    verdict: str
    estimate: float
    ci_low: float
    ci_high: float
    n: int
    source: str
    p_holm: float = math.nan

    @property
    def place(self) -> str:
        """The place in its study, such as a share of the images; empty for a claim without one."""
        return self.claim.partition("/")[2]

    @property
    def has_study(self) -> bool:
        return not self.source.startswith(_NO_STUDY)

    @property
    def can_be_judged(self) -> bool:
        """True if there are as many pairs as a verdict needs."""
        return self.n >= claim_of(self).least_n


@cache
def all_claims() -> list[tuple[str, Claim]]:
    """(sweep, claim) for the claims of all questions, in the order of the lists."""
    claims = [(sweep, claim) for sweep, question in all_questions().items() for claim in question.claims]
    return sorted(claims, key=lambda item: (item[1].order, item[0]))


def verdicts(frames: Frames, sweeps: Collection[str] | None = None) -> list[Verdict]:
    """The verdicts on all claims, or on those of some sweeps, in the order of `all_claims`."""
    claims = [(sweep, claim) for sweep, claim in all_claims() if sweeps is None or sweep in sweeps]
    studies = {sweep: latest_studies(frames, sweep) for sweep in dict.fromkeys(sweep for sweep, _ in claims)}
    rows = []
    for sweep, claim in claims:
        newest: dict[tuple[str, str], Verdict] = {}
        for study in studies[sweep]:
            for verdict in verdicts_on(claim, study):
                newest.setdefault((study.dataset, verdict.claim), verdict)
        rows_of_claim = list(newest.values())
        empty = "; ".join(f"nothing to compare in {source_of(study)}" for study in studies[sweep])
        rows += rows_of_claim or [_verdict(claim.name, Judged(UNDECIDED), empty or f"{_NO_STUDY}{sweep}")]
    return rows


def verdicts_on(claim: Claim, study: Study) -> list[Verdict]:
    """The verdicts on one claim at all places of one study."""
    places = (of_place for family in claim.judge(study) for of_place in family)
    return [_verdict(f"{claim.name}/{place}", judged, source_of(study)) for place, judged in places]


def claim_of(verdict: Verdict) -> Claim:
    """The claim that a verdict is about."""
    return next(claim for _, claim in all_claims() if claim.name == verdict.claim.partition("/")[0])


def sweep_of(verdict: Verdict) -> str:
    """The sweep that tests the claim of a verdict."""
    return next(sweep for sweep, claim in all_claims() if claim is claim_of(verdict))


def latest_studies(frames: Frames, sweep: str) -> list[Study]:
    """The most recent study of a sweep per data set, and per kind where some of its studies vary further axes."""
    return latest_of(studies_of(frames, sweep), question_of(sweep).further_axes)


def latest_of(studies: Iterable[Study], further_axes: Collection[str] = ()) -> list[Study]:
    """The first study per data set and kind; those of a sweep come most recent first. Studies are of one kind if they
    vary the same of the further axes and share the same values of the others."""
    latest: dict[tuple[Any, ...], Study] = {}
    for study in studies:
        kind = [(axis, axis in study.axes, study.params.get(axis)) for axis in further_axes]
        latest.setdefault((study.dataset, *kind), study)
    return list(latest.values())


def source_of(study: Study) -> str:
    """The source of a verdict as text: the sweep, and the study, whose label begins with the data set."""
    return f"{study.sweep}/{study.label}"


def _verdict(name: str, judged: Judged, source: str) -> Verdict:
    return Verdict(
        name, judged.verdict, judged.estimate, judged.ci_low, judged.ci_high, judged.n, source, judged.p_holm
    )
