"""Facts about a tracking store that its writer (the engine) and its reader (the analysis) share: where it is, and how
long texts and long lists pass through MLflow's interface. Importing this module does not import MLflow."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cvit.vocabulary import DEFAULT_TRACKING_URI, TRACKING_URI_VARIABLE

MAX_TAG_LENGTH = 5000
"""The largest number of characters in a tag of MLflow."""
PER_PAGE = 1000
"""The number of runs or experiments in one request to MLflow."""


def chosen_uri(given: str | None) -> str:
    """The tracking URI: the given one, else that of the environment, else the default."""
    return given or os.environ.get(TRACKING_URI_VARIABLE) or DEFAULT_TRACKING_URI


def split_tag(tag: str, text: str) -> dict[str, str]:
    """A tag of any length in tags that MLflow accepts: a long text continues in `tag.1`, `tag.2`, …"""
    starts = range(0, max(len(text), 1), MAX_TAG_LENGTH)
    names = [tag, *(f"{tag}.{number}" for number in range(1, len(starts)))]
    return {name: text[start : start + MAX_TAG_LENGTH] for name, start in zip(names, starts, strict=True)}


def joined_tag(tag: str, tags: Mapping[str, str]) -> str:
    """The whole text of a tag, the inverse of `split_tag`."""
    further = itertools.takewhile(tags.__contains__, (f"{tag}.{number}" for number in itertools.count(1)))
    return "".join(tags[part] for part in (tag, *further))


def all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All results of a search by MLflow's client, page by page.

    Args:
        search: takes `max_results` and `page_token`, and returns a list with the next page's `token`.
    """
    token = None
    while True:
        page = search(max_results=PER_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
