"""Variants of init schemes: settings of single schemes that a study varies, shown as schemes beside the others.

A parameter such as `schedule` concerns schemes of two phases only. As an axis of tables it would show random
initialisation once for each of its values, always the same trainings. So the axis becomes part of the scheme's name:
`two_phase, schedule joint` stands beside `two_phase` and `random`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cvit.analysis.statistics.stats import Result
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import BUDGET_UNIT, SCHEME, SHOWN_AS, TRANSFERRED_FACTOR
from cvit.config import PARAMETERS
from cvit.init.schemes import SCHEMES

_WORDS = {TRANSFERRED_FACTOR: "factor", BUDGET_UNIT: "equal"}
"""Short names of parameters."""


def with_variants(study: Study, variants: Sequence[str]) -> Study:
    """The study with those of its axes in the names of its schemes, so that each scheme has one row at each place. A
    value that all its trials share is named too: two phases at equal FLOPs are that in whatever study.

    Trials that differ only in what their scheme ignores are the same trainings; one with a result stands for them.
    """
    shared = {name: study.params[name] for name in variants if name not in study.axes and name in study.params}
    shared = {name: value for name, value in shared.items() if value != PARAMETERS[name].neutral}
    folded = [axis for axis in variants if axis in study.axes or axis in shared]
    if not folded:
        return study
    results = [replace(result, place={**result.place, **shared}) for result in study.results]
    num_changed = {scheme_at(result.place, folded): len(_changed(result.place, folded)) for result in results}
    order = {name: (study.schemes.index(base_scheme(name)), num, name) for name, num in num_changed.items()}
    kept: dict[tuple[Any, ...], Result] = {}
    for result in sorted(results, key=lambda result: _num_not_neutral(result.place, folded)):
        place = {axis: value for axis, value in result.place.items() if axis not in folded}
        place[SCHEME] = scheme_at(result.place, folded)
        key = (*place.items(), result.seed)
        if key not in kept or (kept[key].missing and not result.missing):
            kept[key] = replace(result, place=place)
    shown = replace(
        study,
        axes=[axis for axis in study.axes if axis not in folded],
        schemes=sorted(order, key=order.__getitem__),
        trials=[{**r.trial, SHOWN_AS: r.place[SCHEME]} for r in kept.values() if r.trial is not None],
    )
    return replace(shown, results=sorted(kept.values(), key=lambda result: (*shown.order_of(result), result.seed)))


def scheme_at(place: Mapping[str, Any], folded: Collection[str]) -> str:
    """The name of the scheme at a place, with its values of the folded axes, such as `two_phase, factor 0.1`."""
    changed = _changed(place, folded)
    return ", ".join([place[SCHEME], *(f"{_WORDS.get(axis, axis)} {value}" for axis, value in changed.items())])


def base_scheme(name: str) -> str:
    """The init scheme in the name of a variant; the name itself if it is none."""
    return name.partition(", ")[0]


def _changed(place: Mapping[str, Any], folded: Collection[str]) -> dict[str, Any]:
    """The values, other than the neutral ones, of the folded axes that have an influence on the scheme."""
    scheme = SCHEMES.get(place[SCHEME])
    ignored = scheme.ignores if scheme is not None else frozenset()
    return {axis: place[axis] for axis in folded if axis not in ignored and place[axis] != PARAMETERS[axis].neutral}


def _num_not_neutral(place: Mapping[str, Any], folded: Collection[str]) -> int:
    return sum(place[axis] != PARAMETERS[axis].neutral for axis in folded)
