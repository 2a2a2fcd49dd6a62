"""A misspelt URL of a storage is refused with the right spelling; it would be the name of a local folder."""

from pathlib import Path

import pytest

from cvit.storage import Storage, StorageError
from cvit.storage_urls import spelling_error

MISSPELT = [
    ("", "give a folder, or a URL such as s3://bucket/folder"),
    (" ", "give a folder, or a URL such as s3://bucket/folder"),
    ("s3:/bucket/x", "write s3://bucket/x, or ./ before it for a folder of that name"),
    ("s3:bucket/x", "write s3://bucket/x, or ./ before it for a folder of that name"),
    ("s3//bucket/x", "write s3://bucket/x, or ./ before it for a folder of that name"),
    ("S3://bucket/x", "write s3://bucket/x"),
    ("s3 ://bucket/x", "write s3://bucket/x"),
    (" s3://bucket/x", "write s3://bucket/x"),
    ("s3a://bucket/x", "write s3://bucket/x"),
    ("gs:/bucket", "write gs://bucket, or ./ before it for a folder of that name"),
    ("GS//", "write gs://bucket/folder, or ./ before it for a folder of that name"),
    ("file:x", "write file:///x, or ./ before it for a folder of that name"),
    ("dbfs:/x", "a URL has two slashes after its scheme"),
    ("https://bucket.s3.eu-west-1.amazonaws.com/x", "give a bucket as s3://bucket/folder"),
    (r"C:\runs", "it is a path of Windows"),
    ("c:/runs", "it is a path of Windows"),
]


@pytest.mark.parametrize(("url", "advice"), MISSPELT, ids=[repr(url) for url, _ in MISSPELT])
def test_what_is_neither_a_folder_nor_a_url_is_refused(url: str, advice: str) -> None:
    with pytest.raises(StorageError) as refused:
        Storage.open(url)
    assert str(refused.value).startswith(f"storage {url!r} is not valid: {advice}")


def test_a_password_in_a_misspelt_url_is_not_shown() -> None:
    with pytest.raises(StorageError) as refused:
        Storage.open("S3://user:hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("folder", ["s3", "s3/x", "./s3:/x", "runs:2024", "a//b", "~/x", "/tmp/gs:/x", "file"])
def test_a_folder_is_a_folder_whatever_its_name(folder: str) -> None:
    assert Storage.open(folder).url == str(Path(folder).expanduser().absolute())


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://bucket", "gcs://bucket", "hdfs:///x", "file:///tmp/x", "ftp://host"]
)
def test_a_url_is_left_to_arrow(url: str) -> None:
    assert spelling_error(url) is None
