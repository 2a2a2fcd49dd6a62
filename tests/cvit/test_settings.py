"""Files of settings: what is written is read again, the presets' files are such files, and wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cvit.engine import declaration
from cvit.engine.declaration import SETTINGS_FOLDER, tuned
from cvit.parameters import ConfigError
from cvit.settings import SearchResult, Winner, read_settings, settings_text

RESULT = SearchResult(
    dataset="digits",
    data_fingerprint="0123",
    data_fraction=0.05,
    model={"depth": 4},
    training={"batch_size": 32},
    command="python sweeps/tuned.py",
    code_version="0.1.0",
    schemes={
        "random": Winner(
            settings={"learning_rate": 0.002, "position_encoding": "relative+absolute"},
            validation_accuracy=0.9,
            seeds=3,
            trials=24,
        ),
        "two_phase": Winner(settings={"convolution_learning_rate": None, "patch_size": 2}),
    },
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(settings_text([RESULT, RESULT]))
    assert read_settings(path).searches == (RESULT, RESULT)


def test_what_a_later_version_adds_is_passed_over(tmp_path: Path) -> None:
    content = json.loads(settings_text([RESULT]))
    content["new"] = content["searches"][0]["new"] = content["searches"][0]["schemes"]["random"]["new"] = [1]
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(content))
    assert read_settings(path).searches == (RESULT,)


def test_an_integer_is_the_number_that_it_stands_for(tmp_path: Path) -> None:
    """Keys are hashes of text: 1 and 1.0 must not make two studies."""
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(content_with("weight_decay", 0)))
    value = read_settings(path).searches[0].settings["random"]["weight_decay"]
    assert (value, type(value)) == (0.0, float)


@pytest.mark.parametrize("path", sorted(SETTINGS_FOLDER.iterdir()), ids=lambda path: path.name)
def test_the_files_of_presets_are_as_a_search_writes_them(path: Path) -> None:
    """So the result of a search can take the place of any, and each says where it comes from."""
    settings = read_settings(path)
    assert settings_text(settings.searches) == path.read_text()
    assert all(search.command and search.model for search in settings.searches)


def test_a_preset_takes_the_schemes_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.json").write_text(settings_text([RESULT]))
    monkeypatch.setattr(declaration, "SETTINGS_FOLDER", tmp_path)
    assert tuned("some", ("random", "mimetic")) == {"random": RESULT.settings["random"]}
    with pytest.raises(ConfigError, match=r"no_such\.json' cannot be read: No such file"):
        tuned("no_such", ("random",))


def content_with(name: str, value: Any) -> dict[str, Any]:
    search = {"dataset": "digits", "schemes": {"random": {"settings": {name: value}}}}
    return {"format": 1, "searches": [search]}


WRONG = [
    ("", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("{}", "not a file of settings, such as results/tuned.json"),
    ("[1]", "not a file of settings"),
    ('{"format": 2, "searches": []}', "format 2 is not known to this version, which reads 1"),
    ('{"format": 1, "searches": []}', "it has no search"),
    ('{"format": 1, "searches": [1]}', "a search is not an object"),
    ('{"format": 1, "searches": [{"dataset": "digits"}]}', "a search has no schemes"),
    ('{"format": 1, "searches": [{"dataset": 1}]}', "dataset 1 is not valid"),
    (
        '{"format": 1, "searches": [{"dataset": "x", "schemes": {"zero": {}}}]}',
        "init_scheme 'zero' is not valid: one",
    ),
    ('{"format": 1, "searches": [{"dataset": "x", "schemes": {"random": {}}}]}', "random has no settings"),
    (content_with("learning_rat", 1.0), "random: 'learning_rat' is not a setting of an init scheme; valid are data_fr"),
    (content_with("seed", 1), "random: 'seed' is not a setting"),
    (content_with("dataset", "digits"), "random: 'dataset' is not a setting"),
    (content_with("learning_rate", -1.0), "random: learning_rate -1.0 must be positive"),
    (content_with("learning_rate", "fast"), "random: learning_rate 'fast' is not of type float"),
    (content_with("learning_rate", None), "random: learning_rate None is not of type float"),
    (content_with("learning_rate", True), "random: learning_rate True is not of type float"),
    (content_with("learning_rate", 10**400), "is not of type float"),
    (content_with("depth", 1.5), "random: depth 1.5 is not of type int"),
    (content_with("position_encoding", "absolute"), "position_encoding 'absolute' is not valid: one of relative, rel"),
    (content_with("position_encoding", []), r"position_encoding \[\] is not valid"),
    (content_with("patch_size", 0), "random: patch_size 0 must be at least 1"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_wrong_file_is_refused_in_one_line(content: str | dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=f"^settings '.*tuned.json'.*{message}") as refused:
        read_settings(path)
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, message in (("missing", "No such file"), (".", "Is a directory"), ("binary", "is not JSON")):
        with pytest.raises(ConfigError, match=message):
            read_settings(tmp_path / name)
