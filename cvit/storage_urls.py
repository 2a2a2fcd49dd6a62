"""The spelling of a storage's URL. A misspelt one, such as s3:/bucket/x, would be a valid name of a local folder, and a
sweep would train into that folder."""

import os
import re

_EXAMPLE = "bucket/folder"
_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
_ALIASES = {"s3a": "s3", "s3n": "s3"}
"""Schemes of the same stores in other programs."""
_URL = re.compile(r"\s*(?P<scheme>[A-Za-z][\w+.-]*?)\s*(?P<signs>:/*|//+)(?P<rest>.*?)\s*", re.DOTALL)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_WEB_ADDRESS_OF_S3 = re.compile(r"https?://([^/]+\.)?s3[.-][^/]*amazonaws\.com", re.IGNORECASE)


def spelling_error(url: str) -> str | None:
    """A phrase that says how to write the URL or the folder that is meant; None if there is nothing to say."""
    if not url.strip():
        return f"give a folder, or a URL such as s3://{_EXAMPLE}"
    if os.name != "nt" and _WINDOWS_PATH.match(url):
        return "it is a path of Windows, and this is another system"
    if _WEB_ADDRESS_OF_S3.match(url):
        return f"give a bucket as s3://{_EXAMPLE}"
    parts = _URL.fullmatch(url)
    if parts is None:
        return None
    store, is_url = parts["scheme"].lower(), parts["signs"].startswith(":/")
    store = _ALIASES.get(store, store)
    if url.startswith(f"{store}://") or (store not in _STORES and ("://" in url or not is_url)):
        return None  # Arrow judges it, or it is a folder
    if store not in _STORES:
        return f"a URL has two slashes after its scheme, as in s3://{_EXAMPLE}"
    rest = parts["rest"].lstrip("/")
    right = f"file:///{rest}" if store == "file" else f"{store}://{rest or _EXAMPLE}"
    return f"write {right}" + ("" if "://" in url else ", or ./ before it for a folder of that name")
