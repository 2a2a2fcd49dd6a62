"""Facts about a tracking store that its writer (the engine) and its reader (the analysis) share: where it is, how long
texts and long lists pass through MLflow's interface, and which run is which. Importing this module does not import
MLflow."""

import itertools
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cvit.vocabulary import (
    DEFAULT_TRACKING_URI,
    ROLE_STUDY,
    ROLE_TRIAL,
    TAG_GRID,
    TAG_ROLE,
    TAG_STUDY_KEY,
    TAG_TRIAL_KEY,
    TRACKING_URI_VARIABLE,
)

MAX_TAG_LENGTH = 5000
"""The largest number of characters in a tag of MLflow."""
PER_PAGE = 1000
"""The number of runs or experiments in one request to MLflow."""
PARENT = "mlflow.parentRunId"
"""MLflow's own tag with the id of a run's parent: a trial's study."""

CONNECT_TIMEOUT_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def chosen_uri(given: str | None) -> str:
    """The tracking URI: the given one, else that of the environment, else the default."""
    return given or os.environ.get(TRACKING_URI_VARIABLE) or DEFAULT_TRACKING_URI


def why_unreachable(uri: str) -> str | None:
    """The reason why nothing can be reached at a server's address; None if something listens there, or if the way leads
    through a proxy. Raises ValueError if a web server's address is not valid."""
    server = urlsplit(uri)
    scheme, host = server.scheme.partition("+")[0], server.hostname or ""
    if scheme not in _PORTS or (scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)):
        return None
    try:
        port = server.port or _PORTS[scheme]
    except ValueError:
        if scheme in ("http", "https"):
            raise
        return None  # a slash in a password, which a database's URI may have
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"tracking server {host}:{port} cannot be reached: {error}"
    return None


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


def is_trial(run: Any) -> bool:
    """True for the run of a trial, even if somebody has removed some of its tags in MLflow's UI."""
    tags = run.data.tags
    return tags.get(TAG_ROLE) == ROLE_TRIAL or (TAG_ROLE not in tags and (TAG_TRIAL_KEY in tags or PARENT in tags))


def is_study(run: Any) -> bool:
    """True for the run of a study, even if somebody has removed some of its tags."""
    tags = run.data.tags
    return tags.get(TAG_ROLE) == ROLE_STUDY or (TAG_ROLE not in tags and TAG_GRID in tags)


def trial_key(run: Any) -> str | None:
    """The key of a trial's run; None if somebody has removed it."""
    return run.data.tags.get(TAG_TRIAL_KEY)


def study_keys(runs: Sequence[Any]) -> dict[str, str]:
    """The keys of the studies that runs belong to, by the ids of the runs. A key that somebody has removed is that of
    the parent or of a child."""
    keys = {run.info.run_id: run.data.tags[TAG_STUDY_KEY] for run in runs if TAG_STUDY_KEY in run.data.tags}
    below = [run for run in runs if PARENT in run.data.tags]
    for run in below:
        if run.info.run_id in keys:
            keys.setdefault(run.data.tags[PARENT], keys[run.info.run_id])
    for run in below:
        if run.data.tags[PARENT] in keys:
            keys.setdefault(run.info.run_id, keys[run.data.tags[PARENT]])
    return keys
