"""Titles of studies in words, such as `digits, ViT 4×48, n = 5`: what a reader wants to know first.

The hash that tells studies apart is `study_hash`; where both are shown, it is the smaller one.
"""

from typing import Any

from cvit import vocabulary as names
from cvit.analysis.statistics.studies import Study

SMOKE = "smoke"


def study_title(study: Study) -> str:
    """The data set, the model and the number of seeds of a study; parts that are unknown or vary are left out."""
    parts = [study.dataset or study.sweep, *_model(study), f"n = {_seeds_text(study)}"]
    return ", ".join(parts) + (f" ({SMOKE} preset)" if is_smoke(study) else "")


def study_hash(study: Study) -> str:
    """The beginning of the study's key, as in the tables' file names and in MLflow."""
    return study.label.rpartition("-")[2]


def named_title(study: Study) -> str:
    """The title with the hash behind it, for captions."""
    return f"{study_title(study)} (study {study_hash(study)})"


def is_smoke(study: Study) -> bool:
    """True if all trials of a study were asked for by a preset that only shows that everything runs."""
    presets = study.preset.split(", ") if study.preset else []
    return bool(presets) and all(preset == SMOKE for preset in presets)


def _model(study: Study) -> list[str]:
    """The transformer, with its depth and width."""
    size: list[Any] = [study.params.get(name) for name in ("depth", "embed_dim")]
    return [] if None in size else [f"ViT {size[0]}×{size[1]}"]


def _seeds_text(study: Study) -> str:
    """The number of seeds with a result: one number, or the least and the most of all places.

    The trials of a search are not counted: they have one seed, and only the winners are trained on others.
    """
    in_search = names.FINALISTS in study.params
    counts: dict[tuple[Any, ...], int] = {}
    for result in study.results:
        if in_search and not names.SEARCH_SEED < result.seed < names.FINALIST_SEED:
            continue
        place = tuple(result.place.values())
        counts[place] = counts.get(place, 0) + (not result.missing)
    least, most = (min(counts.values()), max(counts.values())) if counts else (0, 0)
    return str(most) if least == most else f"{least} to {most}"
