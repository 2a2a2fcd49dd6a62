"""Data that are broken, hostile, or changed behind the back of a sweep end in one line, or are read right."""

import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvit.data.datasets import DataError, describe, load
from cvit.data.images import MAX_PIXELS
from tests.support.images import (
    NAMES,
    alternating,
    encoded,
    error_of,
    info_of,
    loaded,
    picture,
    pictures,
    write_folder,
    write_parquet,
)
from tests.support.scripts import call, sweep

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def num_images(path: Path) -> int:
    info = info_of(path)
    return len(info.train_labels) + info.num_test


# Links


@pytest.mark.parametrize("target", ["..", "../..", "../dog", "."])
def test_each_image_is_read_once_whatever_folders_link_to_each_other(target: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    plain = info_of(tmp_path / "pets")
    (tmp_path / "pets/cat/link").symlink_to(target)
    (tmp_path / "pets/dog/link").symlink_to("../cat")
    info = info_of(tmp_path / "pets")
    assert info.fingerprint == plain.fingerprint and num_images(tmp_path / "pets") == 10
    np.testing.assert_array_equal(info.train_labels, plain.train_labels)
    assert any("to what is listed already" in note for note in info.notes)


def test_links_in_splits_lead_to_each_image_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets/train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "pets/test", {"cat": 2, "dog": 2}, mode="L")
    for place in ("loop", "train/loop", "train/cat/loop", "test/dog/loop"):
        (tmp_path / "pets" / place).symlink_to(tmp_path / "pets")
    (tmp_path / "pets/train/cat/same.png").symlink_to(tmp_path / "pets/train/cat/000.png")
    info = info_of(tmp_path / "pets")
    assert (len(info.train_labels), info.num_test) == (6, 4)
    assert info.notes[0] == "passed over: 4 links to what is listed already"


def test_images_and_classes_may_be_links_to_elsewhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "store", {"a": 5, "b": 5})
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    for path in (tmp_path / "store/a").iterdir():
        (tmp_path / "pets/cat" / path.name).symlink_to(path)
    (tmp_path / "pets/dog").rmdir()
    (tmp_path / "pets/dog").symlink_to(tmp_path / "store/b")
    assert loaded(tmp_path / "pets").info.notes == () and num_images(tmp_path / "pets") == 10


def test_each_parquet_file_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    for name, first in (("train/0", 0), ("train/1", 20), ("test/0", 40)):
        write_parquet(tmp_path / f"a/{name}.parquet", pictures(10, first), alternating(10))
    plain = info_of(tmp_path / "a")
    for place in ("loop", "train/loop", "test/loop"):
        (tmp_path / "a" / place).symlink_to(tmp_path / "a")
    (tmp_path / "a/train/2.parquet").symlink_to("1.parquet")
    info = info_of(tmp_path / "a")
    assert (len(info.train_labels), info.num_test, info.notes) == (20, 10, ())
    assert info.fingerprint == plain.fingerprint


def test_a_parquet_file_whose_name_cannot_be_decoded_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a/train.parquet", pictures(20), alternating(20))
    path.rename(tmp_path / "a" / os.fsdecode(b"train-\xff.parquet"))
    assert error_of(tmp_path / "a").startswith(rf"{tmp_path}/a/train-\udcff.parquet is not a Parquet file that can be")


def test_a_link_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    for place in ("pets/cat/gone.png", "pets/emu"):
        (tmp_path / place).symlink_to("/no/such/place")
        assert error_of(tmp_path / "pets") == f"{tmp_path}/{place} is a link to /no/such/place, which does not exist"
        (tmp_path / place).unlink()
    write_parquet(tmp_path / "a/train.parquet", pictures(4), alternating(4))
    (tmp_path / "a/test.parquet").symlink_to("/no/such/place")
    assert "neither a file nor a link to one" in error_of(tmp_path / "a")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    os.mkfifo(tmp_path / "pets/cat/pipe.png")
    assert "pipe.png is not a regular file" in error_of(tmp_path / "pets")
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "holds neither" in error_of(tmp_path / "pipe.parquet")


# Changes between the plan and the training


def shorten(path: Path) -> None:
    write_parquet(path, pictures(10), alternating(10))


def lengthen(path: Path) -> None:
    write_parquet(path, pictures(30), alternating(30))


def swap(path: Path) -> None:
    write_parquet(path, [*pictures(19), encoded(picture(99))], alternating(20))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [shorten, lengthen, swap, cut, os.unlink])
@pytest.mark.parametrize("has_test", [False, True])
def test_a_parquet_file_that_changed_after_the_plan_is_refused(
    change: Callable[[Path], None], has_test: bool, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "a/train.parquet", pictures(20), alternating(20))
    if has_test:
        write_parquet(tmp_path / "a/test.parquet", pictures(4, 50), alternating(4))
    info = info_of(tmp_path / "a")
    change(path)
    with pytest.raises(DataError, match=rf"^{path}.*(has changed since|cannot be read|can be read)") as caught:
        load(info)
    assert "\n" not in str(caught.value)


def test_an_image_file_that_changed_after_the_plan_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    info, path = info_of(tmp_path / "pets"), tmp_path / "pets/dog/003.png"
    path.write_bytes(encoded(picture(7)))
    with pytest.raises(DataError, match=f"^{path} has changed since"):
        load(info)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path} cannot be read"):
        load(info)


# Formats and limits


@pytest.mark.parametrize("data", [EPS, b"P6 4 4 255 " + bytes(48), b"%PDF-1.4"], ids=["EPS", "PPM", "PDF"])
def test_only_the_formats_that_are_meant_are_opened(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow starts Ghostscript to decode EPS, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    (tmp_path / "pets/cat/002.png").write_bytes(data)
    reason = "is not an image that can be decoded (PNG, JPEG, WebP, BMP, GIF or TIFF, by content)"
    assert error_of(tmp_path / "pets") == f"{tmp_path}/pets/cat/002.png {reason}"
    path = write_parquet(tmp_path / "a.parquet", [*pictures(9), data], alternating(10))
    assert error_of(path) == f"{path} row 9 {reason}"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("side", [9_500, 20_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused(side: int, tmp_path: Path) -> None:
    header = bytearray(encoded(Image.new("L", (4, 4))))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path = write_parquet(tmp_path / "a.parquet", [*pictures(9), bytes(header)], alternating(10))
    assert error_of(path, image_size=4) == f"{path} row 9 has more than {MAX_PIXELS:,} pixels, the most that are read"


def test_what_is_passed_over_is_counted_and_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5, "nothing": 0})
    for name in ("a.jfif", "b.JFIF", "c.txt", "d"):
        (tmp_path / "pets/cat" / name).write_bytes(encoded(picture(0), "JPEG"))
    (tmp_path / "pets/.cache").mkdir()
    (tmp_path / "pets/cat/.DS_Store").write_text("")
    (tmp_path / "pets/README.md").write_text("pets")
    assert info_of(tmp_path / "pets").notes == (
        "passed over: 2 .jfif, 1 .txt, 1 without suffix",
        "passed over: no image in nothing",
    )


def test_images_outside_class_folders_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets/train", {"cat": 5, "dog": 5})
    write_folder(tmp_path / "pets/test", {"cat": 5, "dog": 5})
    shutil.copy(tmp_path / "pets/train/cat/000.png", tmp_path / "pets/train/stray.png")
    assert "passed over: 1 image outside class folders" in info_of(tmp_path / "pets").notes
    shutil.copy(tmp_path / "pets/train/cat/000.png", tmp_path / "pets/stray.png")
    assert "passed over: 2 images outside class folders" in info_of(tmp_path / "pets").notes


def test_a_folder_with_images_of_other_kinds_alone_says_so(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "a.ppm").write_bytes(b"P6 1 1 255 abc")
    assert "holds 2 .ppm, which are not read: only .bmp, .gif, .jpeg" in error_of(tmp_path / "pets")


# Few images, equal images


def test_one_training_image_in_each_class_is_refused_in_the_plan(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets/train", {"cat": 1, "dog": 1}, size=(8, 8))
    write_folder(tmp_path / "pets/test", {"cat": 3, "dog": 3}, size=(8, 8))
    ended = call(tmp_path, "--preset", "smoke", "--dataset", str(tmp_path / "pets"))
    assert ended.exit_code == 2 and len(ended.errors.splitlines()) == 1
    assert "'pets' has one training image in each class" in ended.errors


@pytest.mark.parametrize("kind", ["folder", "parquet", "pool"])
def test_images_that_are_in_training_and_test_set_are_counted(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        write_parquet(tmp_path / "a/train.parquet", pictures(20), alternating(20))
        write_parquet(tmp_path / "a/test.parquet", pictures(10, 17), alternating(10))
        expected = "of 10 test images, 3"
    elif kind == "folder":
        write_folder(tmp_path / "a/train", {"cat": 5, "dog": 5})
        write_folder(tmp_path / "a/test", {"cat": 2, "dog": 3})
        expected = "of 5 test images, 5"
    else:
        write_parquet(tmp_path / "a/rows.parquet", [encoded(picture(0))] * 20, alternating(20))
        expected = "of 4 test images, 4"
    assert info_of(tmp_path / "a").notes == (f"{expected} are training images too (equal files)",)


def test_notes_are_in_the_plan(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets/train", {"cat": 9, "dog": 9}, size=(8, 8), mode="L")
    write_folder(tmp_path / "pets/valid", {"cat": 3, "dog": 3}, size=(8, 8))
    plan = sweep(tmp_path, "--preset", "smoke", "--dataset", str(tmp_path / "pets"), "--dry-run").splitlines()
    assert "            read as RGB: 18 grayscale images among images in colour" in plan
    assert "            tested on the images in valid, since there are no other test images" in plan


# Names and metadata


def test_names_that_cannot_be_decoded_are_read_or_shown_escaped(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "pets")
    for name in (b"caf\xe9", b"two\nlines", b"\x1b[31mred"):
        os.makedirs(root + b"/" + name)
        for i in range(5):
            with open(root + b"/" + name + b"/\xff%d.png" % i, "wb") as file:
                file.write(encoded(picture(i + len(name))))
    data = loaded(tmp_path / "pets")
    assert len(data.info.class_names) == 3
    with open(root + b"/two\nlines/\xff3.png", "wb") as file:
        file.write(b"nothing")
    message = error_of(tmp_path / "pets")
    assert message.isprintable() and message.startswith(rf"{tmp_path}/pets/two\nlines/\udcff3.png is not an image")
    os.remove(root + b"/two\nlines/\xff3.png")
    os.rename(root, root + b"\xff")
    assert "not printable" in error_of(os.fsdecode(root + b"\xff"))


@pytest.mark.parametrize("place", ["column", "label"])
def test_text_that_cannot_be_decoded_in_a_parquet_file_is_one_line(place: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(10), ["beetle", "spider"] * 5)
    data = path.read_bytes()
    before, after = (b"label", b"la\xffel") if place == "column" else (b"beetle", b"be\xfftle")
    assert before in data
    path.write_bytes(data.replace(before, after))
    assert error_of(path).startswith(str(path))


def test_metadata_that_are_nested_too_deeply_are_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(10), alternating(10), metadata=NAMES)
    table = pq.read_table(path)
    deep = "[" * 100_000 + "]" * 100_000
    pq.write_table(table.replace_schema_metadata({"huggingface": deep}), path)
    assert error_of(path) == f"{path} has metadata that are nested too deeply to be read"


@pytest.mark.parametrize("metadata", ["", "{", "[]", '{"info": 1}', json.dumps({"info": {"features": {"label": 3}}})])
def test_other_metadata_are_passed_over(metadata: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(10), alternating(10))
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    assert info_of(path).class_names == ("0", "1")


@pytest.mark.parametrize("depth", [100, 5_000])
def test_columns_that_are_nested_deeply_are_read_or_one_line(depth: int, tmp_path: Path) -> None:
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    table = pa.table({"img": pa.array(pictures(10)), "label": alternating(10)})
    path = tmp_path / "a.parquet"
    pq.write_table(table.append_column("deep", pa.nulls(10, kind)), path)
    if depth == 100:
        assert len(loaded(path).train.labels) == 8
    else:
        assert str(path) in error_of(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read_are_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    (tmp_path / "pets/dog").chmod(0)
    assert "Permission denied" in error_of(tmp_path / "pets")
    (tmp_path / "pets/dog").chmod(0o755)


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    assert "name too long" in error_of("x" * 5000, tmp_path)


def test_the_home_of_an_unknown_user_is_one_line(tmp_path: Path) -> None:
    assert "home directory" in error_of("~no-such-user/pets", tmp_path)
    assert "home directory" in error_of("pets", "~no-such-user")


def test_more_pixels_than_fit_into_the_memory_are_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(10), alternating(10))
    assert "allocate" in error_of(path, image_size=50_000_000)


def test_a_description_can_be_made_in_one_process_and_loaded_in_another(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    info = pickle.loads(pickle.dumps(describe(str(tmp_path / "pets"), "nowhere", download=False)))
    assert len(load(info).train.labels) == 8
