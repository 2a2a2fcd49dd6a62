"""What the engine writes into a tracking store in parts, the analysis puts together again."""

from collections.abc import Sequence

import pytest

from cvit import tracking
from cvit import vocabulary as v
from cvit.tracking import MAX_TAG_LENGTH, all_pages, chosen_uri, joined_tag, split_tag


@pytest.mark.parametrize("length", [0, 1, MAX_TAG_LENGTH, MAX_TAG_LENGTH + 1, 2 * MAX_TAG_LENGTH, 12_345])
def test_a_tag_of_any_length_comes_back(length: int) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(length))
    parts = split_tag(v.TAG_GRID, text)
    assert list(parts) == [v.TAG_GRID, *(f"cvit.grid.{number}" for number in range(1, len(parts)))]
    assert all(len(part) <= MAX_TAG_LENGTH for part in parts.values())
    assert joined_tag(v.TAG_GRID, parts | {"cvit.gridlock": "another tag"}) == text


class Page(list[int]):
    def __init__(self, items: Sequence[int], token: str | None) -> None:
        super().__init__(items)
        self.token = token


def test_all_pages_are_read_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PER_PAGE", 3)
    asked: list[str | None] = []

    def search(max_results: int, page_token: str | None) -> Page:
        asked.append(page_token)
        start = int(page_token or 0)
        stop = start + max_results
        return Page(range(start, min(stop, 7)), str(stop) if stop < 7 else None)

    assert list(all_pages(search)) == list(range(7))
    assert asked == [None, "3", "6"]


def test_an_option_goes_before_the_environment_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(v.TRACKING_URI_VARIABLE, raising=False)
    assert chosen_uri(None) == v.DEFAULT_TRACKING_URI
    monkeypatch.setenv(v.TRACKING_URI_VARIABLE, "http://127.0.0.1:5000")
    assert chosen_uri(None) == "http://127.0.0.1:5000"
    assert chosen_uri("none") == "none"
