"""The words by which names of files and folders say that they hold training, test or validation images.

A word counts as a whole token only: `seg_train`, `Training`, `mnist-test` and `trainSet` have one, `trainspotting` and
`contest` have none. Names are splits of one data set if they agree in everything but the word.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cvit.data.images import DataError
from cvit.errors import some_of

Role = Literal["train", "test", "validation"]

_WORDS: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "development", "dev", "evaluation", "eval"), "validation"),
}
_ROLES: dict[str, Role] = {
    "trainval": "train",
    **{f"{word}{end}": role for word, role in _WORDS.items() for end in ("", "set", "data", "images")},
}
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_GLUED = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)))
_KINDS: dict[Role, str] = {"train": "training", "test": "test", "validation": "validation"}
_PARTIAL = "partial"  # Hugging Face converts the first part of a large data set into folders such as `partial-train`


@dataclass(frozen=True)
class SplitName:
    """A name, the role that it gives, and its other tokens, in lower case.

    Attributes:
        series: the other tokens less the numbers at the end, which differ among the parts of one split.
    """

    name: str
    role: Role | None
    rest: tuple[str, ...]
    series: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The names that hold the training, test and validation images of one data set."""

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[tuple[Role, tuple[str, ...]], ...]:
        """The roles that may hold the test images, the best first, with their names."""
        return ("test", self.test), ("validation", self.validation)


def split_name(name: str) -> SplitName:
    """Reads the role from a name without its suffix. Of several words the last one counts, except in `train_val`."""
    tokens = [token.casefold() for token in _TOKEN.findall(_HUMP.sub("_", name))]
    places = [i for i, token in enumerate(tokens) if token in _ROLES]
    if not places:
        return SplitName(name, None, tuple(tokens), tuple(tokens))
    first = last = places[-1]
    if last > 0 and (_ROLES.get(tokens[last - 1]), _ROLES[tokens[last]]) == ("train", "validation"):
        first = last - 1
    before, after = [token for token in tokens[:first] if token != _PARTIAL], tokens[last + 1 :]
    num_kept = len(after)
    while num_kept and after[num_kept - 1].isdigit():
        num_kept -= 1
    return SplitName(name, _ROLES[tokens[first]], (*before, *after), (*before, *after[:num_kept]))


def find_splits(names: Iterable[str], place: str) -> Splits:
    """The splits among names that lie in one place; all empty if no name holds training images.

    Test and validation images belong to the training images whose names agree in the other tokens; else to any, if
    there is no choice.

    Raises:
        DataError: the names leave a choice.
    """
    parsed = [split_name(name) for name in names]
    train = [each for each in parsed if each.role == "train"]
    if not train:
        _refuse_glued(parsed, place)
        return Splits()
    others = [each for each in parsed if each.role in ("test", "validation")]
    all_series = sorted({each.series for each in train})
    complete = [series for series in all_series if any(other.series == series for other in others)]
    candidates = complete or all_series
    if len(candidates) > 1 and () in candidates:
        candidates = [()]
    if len(candidates) > 1:
        raise _choice(place, [each.name for each in train], "train")
    train = [each for each in train if each.series == candidates[0]]
    tests, validations = (_partners(others, role, candidates[0]) for role in ("test", "validation"))
    folds = {each.rest for each in train} & {each.rest for each in tests + validations}
    if len({each.rest for each in train}) < len(train) or len(folds) > 1:
        raise _choice(place, [each.name for each in train], "train")
    return Splits(*(tuple(each.name for each in part) for part in (train, tests, validations)))


def only_one(names: Sequence[str], place: str, role: Role) -> None:
    """Raises DataError if several names, which are not numbered shards, claim the same role."""
    parsed = [split_name(name) for name in names]
    if len({each.rest for each in parsed}) < len(parsed) or len({each.series for each in parsed}) > 1:
        raise _choice(place, names, role)


def other_splits(name: str, beside: Iterable[str]) -> list[str]:
    """The names beside one that hold other splits of the same data set."""
    this = split_name(name)
    if this.role is None:
        return []
    others = map(split_name, beside)
    return [each.name for each in others if each.role not in (None, this.role) and each.series == this.series]


def _partners(others: Sequence[SplitName], role: Role, series: tuple[str, ...]) -> list[SplitName]:
    of_role = [each for each in others if each.role == role]
    if same := [each for each in of_role if each.series == series]:
        return same
    return of_role if len({each.series for each in of_role}) == 1 else []


def _refuse_glued(parsed: Sequence[SplitName], place: str) -> None:
    """Raises DataError if names without tokens differ by the words alone, such as mnisttrain and mnisttest."""
    found: dict[str, dict[Role, str]] = {}
    for name in (each.name for each in parsed if each.role is None):
        folded = name.casefold()
        for match in _GLUED.finditer(folded):
            frame = f"{folded[: match.start()]}*{folded[match.end() :]}"
            found.setdefault(frame, {})[_WORDS[match[0]]] = name
    for by_role in found.values():
        if "train" in by_role and len(by_role) > 1:
            raise DataError(
                f"{place} holds {' and '.join(by_role.values())}, which may be training and test images of one data "
                "set, or not: set the word off by a hyphen, or give the path of one of them"
            )


def _choice(place: str, names: Sequence[str], role: Role) -> DataError:
    remedy = "give the path of one of them" if role == "train" else "call the one to test on test"
    return DataError(
        f"{place} holds {some_of(names)}, which may each be the {_KINDS[role]} images: {remedy}, or put the others "
        "elsewhere"
    )
