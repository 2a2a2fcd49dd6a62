"""Tells which folders of an image data set are classes, and which hold its training and test images.

The names alone do not: `train` is a split beside `test`, and a class beside `bus` and `car`. So a folder counts as a
split only if it holds class folders, and what leaves a choice is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvit.data.class_folders import Listing, Parts
from cvit.data.images import DataError
from cvit.data.splits import Splits, find_splits, only_one, other_splits, split_name
from cvit.errors import counted, some_of

_PLAIN = frozenset(("images", "image", "imgs", "img", "pictures", "data", "dataset"))
"""Names of folders that are no classes."""
_ANNOTATIONS = (".txt", ".csv", ".json", ".xml")


@dataclass(frozen=True)
class Labelled:
    """Images with the depths of their class folders, and the number of images outside class folders."""

    images: tuple[tuple[Parts, int], ...]
    outside: int

    @property
    def classes(self) -> set[str]:
        return {parts[depth] for parts, depth in self.images}


@dataclass(frozen=True)
class Layout:
    """The images of a data set in folders.

    Attributes:
        base: the folders around the data set, such as one of an archive.
        outside: the number of images beside the folders.
        used: the folders that hold the training and test images.
        notes: lines about the folders that are not used.
    """

    base: Parts
    train: Labelled
    test: Labelled | None
    outside: int
    used: tuple[Parts, ...]
    notes: tuple[str, ...] = ()


def find_layout(folder: Path, listing: Listing) -> Layout | None:
    """The layout of a folder; None if no folder in it holds images.

    A data set has folders for its training and test images, in any spelling that `cvit.data.splits` reads, with a
    folder for each class in them; or only the latter.

    Raises:
        DataError: the folders leave a choice, or the images of a split do not lie in class folders.
    """
    base = _surrounding(listing)
    place = folder.joinpath(*base)
    tops = _below(listing.images, base)
    if not tops:
        return None
    without_folders = {name for name, images in tops.items() if all(len(parts) < len(base) + 3 for parts in images)}
    # Scenes have classes such as train_station and train_interior: without folders in them they are no training images.
    candidates = [name for name in tops if name not in without_folders or split_name(name).role != "train"]
    splits = find_splits(candidates, str(place))
    train = _labelled(tops, splits.train, base, "train")
    if not _has_classes(train, set(), "train"):
        _refuse_flat(place, tops)
        return _classes_only(place, base, tops, _num_in(base, listing))
    if not _pair(tops) and len(splits.train) < len(tops):
        _refuse_class(place, base, tops, splits, train)
    return _with_splits(place, base, tops, splits, listing)


def _surrounding(listing: Listing) -> Parts:
    """The folders around the data set: each is the only one at its place, and holds class folders, or splits."""
    base: Parts = ()
    while True:
        tops = _below(listing.images, base)
        if len(tops) != 1:
            return base
        (name, images) = next(iter(tops.items()))
        parsed = split_name(name)
        is_split = parsed.role == "train" or (parsed.role is not None and not parsed.rest)
        if is_split or any(len(parts) < len(base) + 3 for parts in images):
            return base
        base = (*base, name)


def _below(images: Sequence[Parts], base: Parts) -> dict[str, list[Parts]]:
    """The images below each folder in `base`; images directly in it are left out."""
    tops: dict[str, list[Parts]] = {}
    for parts in images:
        if parts[: len(base)] == base and len(parts) > len(base) + 1:
            tops.setdefault(parts[len(base)], []).append(parts)
    return tops


def _num_in(base: Parts, listing: Listing) -> int:
    return sum(parts[:-1] == base for parts in listing.images)


def _labelled(tops: dict[str, list[Parts]], names: Sequence[str], base: Parts, role: str) -> Labelled:
    """The images in some folders, by the class folders in them."""
    labelled: list[tuple[Parts, int]] = []
    outside = 0
    for name in names:
        depth = len(base) + 1
        while _is_wrapped(tops[name], depth, role):
            depth += 1
        labelled += [(parts, depth) for parts in tops[name] if len(parts) > depth + 1]
        outside += sum(len(parts) <= depth + 1 for parts in tops[name])
    return Labelled(tuple(labelled), outside)


def _is_wrapped(images: Sequence[Parts], depth: int, role: str) -> bool:
    """True if the only folder at a depth repeats the split, as in seg_train/seg_train/<class>, or is called images."""
    names = {parts[depth] for parts in images}
    if len(names) > 1 or any(len(parts) < depth + 3 for parts in images):
        return False
    name = next(iter(names))
    return split_name(name).role == role or name.casefold() in _PLAIN


def _with_splits(place: Path, base: Parts, tops: dict[str, list[Parts]], splits: Splits, listing: Listing) -> Layout:
    train = _labelled(tops, splits.train, base, "train")
    for name in splits.train:
        classes = _below(tops[name], (*base, name))
        _refuse_lone_splits(place / name, {each: _inner(each, classes[each], len(base) + 1) for each in classes})
    notes, without_classes, test, tested = [], [], None, ()
    for role, names in splits.held_out:
        labelled = _labelled(tops, names, base, role)
        if not names or test is not None:
            continue
        if not _has_classes(labelled, train.classes, role):
            without_classes += names
            continue
        only_one(names, str(place), role)
        test, tested = labelled, names
        if role == "validation":
            notes.append(f"tested on the images in {some_of(names)}, since there are no other test images")
    if without_classes and test is None:
        _refuse_annotated(place, base, without_classes, listing, splits.train[0])
        notes.append("test images are held out of the training images")
    unused = [name for name in tops if name not in (*splits.train, *tested)]
    if unused:
        lacks = {name: ", without class folders" if name in without_classes else "" for name in unused}
        counts = (f"{name} ({counted(len(tops[name]), 'image')}{lacks[name]})" for name in unused)
        notes.append(f"not used: {some_of(counts)}")
    used = tuple((*base, name) for name in (*splits.train, *tested))
    return Layout(base, train, test, _num_in(base, listing), used, tuple(notes))


def _has_classes(labelled: Labelled, known: set[str], role: str) -> bool:
    """False if there is no class folder, or only one like `images`, which is no known class."""
    classes = labelled.classes
    if len(classes) == 1 and not classes & known:
        name = next(iter(classes))
        return not (split_name(name).role == role or name.casefold() in _PLAIN)
    return bool(classes)


def _refuse_annotated(place: Path, base: Parts, names: Sequence[str], listing: Listing, train: str) -> None:
    """Raises DataError if a file beside images without class folders may tell their classes, as in tiny-imagenet."""
    for name in names:
        top = (*base, name)
        for parts in listing.others:
            if parts[: len(top)] == top and parts[-1].lower().endswith(_ANNOTATIONS):
                raise DataError(
                    f"{place}/{name} holds images without class folders; {'/'.join(parts[len(base) :])} may tell their "
                    f"classes: move each image to {name}/<class>/, with the class folders of {train}, or give the path "
                    f"{place}/{train} to hold test images out of it"
                )


def _refuse_flat(place: Path, tops: Iterable[str]) -> None:
    """Raises DataError if folders without class folders are named like splits, and nothing but splits."""
    names = _pair(tops) or list(tops)
    if split_name(names[0]).role == "train" and (len(names) > 1 or not split_name(names[0]).rest):
        raise DataError(
            f"{place}/{names[0]} holds images without class folders: put the images of each class into a folder of its "
            "own in it"
        )


def _refuse_class(place: Path, base: Parts, tops: dict[str, list[Parts]], splits: Splits, train: Labelled) -> None:
    """Raises DataError if a folder named train may be a class: its name says more, it holds both images and folders, or
    it holds folders beside others that hold different folders."""
    others = [name for name in tops if name not in splits.train]
    inner = [_inner(name, tops[name], len(base)) for name in others]
    says_more = any(split_name(name).series for name in splits.train)
    if says_more or train.outside or any(len(folders) > 1 and not folders & train.classes for folders in inner):
        raise DataError(
            f"{place} holds {splits.train[0]} with folders in it beside {some_of(others)}: training images or a class? "
            "Rename the folder, or give the path of the training images"
        )


def _pair(names: Iterable[str]) -> list[str]:
    """A name of training images and those of the other splits of its data set; empty if there are none."""
    names = list(names)
    for name in names:
        if split_name(name).role == "train" and (others := other_splits(name, names)):
            return [name, *others]
    return []


def _inner(name: str, images: Sequence[Parts], depth: int) -> set[str]:
    """The folders in a folder; in its only one, if that has its name, as in casting_data/casting_data."""
    depth += 1
    inner = {parts[depth] for parts in images if len(parts) > depth + 1}
    while inner == {name} and all(len(parts) > depth + 2 for parts in images):
        depth += 1
        inner = {parts[depth] for parts in images if len(parts) > depth + 1}
    return inner


def _classes_only(place: Path, base: Parts, tops: dict[str, list[Parts]], outside: int) -> Layout:
    """The layout with class folders only.

    Raises:
        DataError: a folder may hold test images instead of a class, or splits.
    """
    depth = len(base)
    inner = {name: _inner(name, images, depth) for name, images in tops.items()}
    _refuse_lone_splits(place, inner)
    for name, folders in inner.items():
        if pair := _pair(sorted(folders)):
            raise DataError(
                f"{place}/{name} holds {some_of(pair)}: give its path if it is the data set; if it is a class, put the "
                f"classes into the splits, as in {pair[0]}/{name}"
            )
    common = set.intersection(*inner.values()) if len(inner) > 1 else set()
    notes = ()
    if len(common) > 1:
        notes = (f"the classes are {some_of(tops)}, though each has the folders {some_of(sorted(common))} in it",)
    labelled = tuple((parts, depth) for images in tops.values() for parts in images)
    return Layout(base, Labelled(labelled, 0), None, outside, tuple((*base, name) for name in tops), notes)


def _refuse_lone_splits(place: Path, inner: Mapping[str, set[str]]) -> None:
    """Raises DataError if a folder is named like test images, but there are no training images to go with it.

    Args:
        inner: the folders in each folder.
    """
    lone = [each for each in map(split_name, inner) if each.role in ("test", "validation")]
    roles = {each.series: {other.role for other in lone if other.series == each.series} for each in lone}
    pairs = [each.name for each in lone if len(roles[each.series]) > 1]
    bare = [each.name for each in lone if not each.rest and not _is_opposed(each.name, inner)]
    if pairs or (bare and len(bare) == len(inner)):
        raise DataError(f"{place} holds {some_of(pairs or bare)} but no training images, such as in a folder train")
    for name in (each.name for each in lone):
        others = [other for other in inner if other != name]
        if common := sorted(inner[name] & set(others)):
            raise DataError(
                f"{place} holds {name} beside class folders that are in it too: put {some_of(common)} into a folder "
                "train, and the other beside that"
            )
        twins = [other for other in others if inner[name] & inner[other]]
        if twins or name in bare:
            raise DataError(
                f"{place} holds {name} beside {some_of(twins or others)}: test images or a class? Call the folder with "
                "the training images train, or rename this one"
            )


def _is_opposed(name: str, names: Iterable[str]) -> bool:
    """True if a name is a class since its opposite is one too: valid and invalid."""
    return f"in{name}".casefold() in map(str.casefold, names)
