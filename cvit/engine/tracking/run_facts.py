"""The facts about a run that follow from the journal: where it came from, its data, its stages, its colour."""

import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cvit import vocabulary as v
from cvit.records import EndRecord, StudyRecord, SystemRecord, TrialRecord
from cvit.redaction import redacted
from cvit.results import Point, stage_folder

_COMMIT = re.compile(r"\+(?:\S*-g)?([0-9a-f]{7,40})(?:-dirty\.\w+)?$")
"""The commit in a code version, such as `0.1.0+1a2b3c4-dirty.5d6e7f80`."""
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]+")
"""Characters that trackers do not take in the name of a metric, and slashes."""
_STAGE = re.compile(r"\w+ ([0-9a-f]{8,}) \(\d+ steps\)")
"""A stage in the note of a trial's end; journals of earlier versions name the stages nowhere else."""


@dataclass(frozen=True)
class Surroundings:
    """Facts about the runs that the journal does not have.

    Attributes:
        storage: the place of the storage, absolute.
        colours: the colours of init schemes, such as `#0072B2`.
        driver: the identity of the driver's process; empty stands for this process.
    """

    storage: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""


NOWHERE = Surroundings()


@dataclass(frozen=True)
class DataUse:
    """The images that a run uses.

    Attributes:
        name: the data set, with the share of it, since trackers list data sets by name.
        digest: the fingerprint of its content.
        profile: numbers about the images, by name.
        tags: texts about this use.
    """

    name: str
    digest: str
    source: str
    profile: Mapping[str, Any]
    tags: Mapping[str, str]


def data_of(params: Mapping[str, Any], tags: Mapping[str, str]) -> DataUse | None:
    """The images that a trial or a study uses; None for a task that needs none."""
    dataset, digest = params.get("dataset"), tags.get(v.TAG_DATA_FINGERPRINT)
    if dataset is None or digest is None:
        return None
    fraction, images = params.get("data_fraction"), tags.get(v.TAG_TRAIN_IMAGES)
    share = "" if fraction is None else f" {100 * float(fraction):.6g} %"
    profile = {name: params[name] for name in ("image_size", "in_channels", "num_classes") if name in params}
    profile |= {} if fraction is None else {"data_fraction": fraction}
    profile |= {} if images is None else {"train_images": int(images)}
    texts = {"data_fraction": fraction, "train_images": images}
    return DataUse(
        name=f"{dataset}{share}",
        digest=digest,
        source=str(dataset),
        profile={**profile, "fingerprint": digest},
        tags={name: str(text) for name, text in texts.items() if text is not None},
    )


def facts_of_study(record: StudyRecord, surroundings: Surroundings) -> dict[str, str]:
    """The tags of a study that follow from its record."""
    return _origin(record.command, record.tags) | _stages(v.STAGES_FOLDER, surroundings)


def facts_of_trial(record: TrialRecord, study: StudyRecord | None, surroundings: Surroundings) -> dict[str, str]:
    """The tags of a trial that follow from its record and its study's."""
    colour = surroundings.colours.get(str(record.params.get("init_scheme")))
    return (
        _origin(study.command if study is not None else "", record.tags)
        | _stages(record.tags.get(v.TAG_STAGES, ""), surroundings)
        | ({v.TAG_COLOUR: colour} if colour is not None else {})
    )


def facts_of_end(record: EndRecord, tags: Mapping[str, str], surroundings: Surroundings) -> dict[str, str]:
    """The tags of a trial that its end adds to those it has: the commit that trained it, if it is not the one that
    planned it, and the stages, if a version that planned it did not name them."""
    facts: dict[str, str] = {}
    match = _COMMIT.search(record.tags.get(v.TAG_CODE_VERSION, ""))
    if match is not None and not tags.get(v.TAG_GIT_COMMIT, "").startswith(match[1]):
        facts[v.TAG_GIT_COMMIT] = match[1]
    if v.TAG_STAGES not in tags:
        facts |= _stages(", ".join(map(stage_folder, _STAGE.findall(record.note))), surroundings)
    return facts


def _origin(command: str, tags: Mapping[str, str]) -> dict[str, str]:
    match = _COMMIT.search(tags.get(v.TAG_CODE_VERSION, ""))
    facts = {v.TAG_SOURCE: _source(command), v.TAG_SOURCE_TYPE: "LOCAL"} if command else {}
    return facts | ({v.TAG_GIT_COMMIT: match[1]} if match is not None and v.TAG_GIT_COMMIT not in tags else {})


def _source(command: str) -> str:
    """The script or command at the beginning of a command line, without its options."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its other half, where something was hidden
        words = command.split()
    words = words[1:] if words and re.fullmatch(r"\S*python[\d.]*", words[0]) else words
    end = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    return " ".join(words[:end]) or command


def _stages(folders: str, surroundings: Surroundings) -> dict[str, str]:
    if not folders:
        return {}
    place = redacted(surroundings.storage.rstrip("/"))
    paths = (f"{place}/{folder}" if place else folder for folder in folders.split(", "))
    return {v.TAG_STAGES: ", ".join(paths)}


def study_note(question: str, command: str, answer: str = "") -> str:
    """The description of a study's run in Markdown: the question, the answer so far, in whose tables an interval must
    not look like a link, and the command, as code, whatever it holds."""
    answer = answer.replace("[", r"\[")
    return "\n\n".join([question, *([answer] if answer else []), textwrap.indent(command, " " * 4)])


def answer_metric(parts: Iterable[str]) -> str:
    """The name of a metric of a study's answer, from its scheme, its place and its column. It has one slash, so that
    MLflow shows all of them in one section."""
    return v.ANSWER + " ".join(_NOT_IN_NAMES.sub("-", part) for part in parts)


def load_points(record: SystemRecord, start_time_ms: int | None) -> list[Point]:
    """The load of a machine as measurements of the study's run, by seconds since its start."""
    start_s = (start_time_ms or 0) // 1000
    node = re.sub(r"[^\w.-]", "-", record.node)
    return [
        (f"{v.SYSTEM}{node}/{name}", max(0, second - start_s), value, time_ms)
        for name, second, value, time_ms in record.points
    ]
