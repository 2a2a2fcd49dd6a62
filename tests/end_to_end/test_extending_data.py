"""A data format is added as CONTRIBUTING says, in one file of a copy of the code; a sweep is planned on its data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.scripts import ROOT
from tests.support.tree import copy_of_tree

FORMAT = """
\"\"\"Images in NumPy archives: arrays `images` (N, C, H, W) uint8 and `labels` (N,), one pool.\"\"\"

import numpy as np

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import ArrayPart, Stored, hash_arrays


def open_archive(place: Place) -> Stored | None:
    if place.path is None or place.path.suffix != ".npz":
        return None
    with np.load(place.path) as arrays:
        if "images" not in arrays or "labels" not in arrays:
            raise DataError(f"{place.path} has no arrays `images` and `labels`")
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    names = tuple(map(str, np.unique(labels)))
    return Stored(ArrayPart(images, labels), None, names, hash_arrays([images, labels]))


FORMAT = Format(open=open_archive, suffix=".npz", paths=("an .npz file",), contents="arrays")
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = copy_of_tree(tmp_path)
    (tree / "cvit/data/formats/archive.py").write_text(FORMAT)
    return tree


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    images, labels = draw.integers(0, 256, (90, 2, 8, 8), np.uint8), np.arange(90) % 3
    np.savez(tmp_path / "data/spots.npz", images=images, labels=labels)
    np.savez(tmp_path / "data/broken.npz", pictures=images)
    return tmp_path / "data"


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)


def test_a_format_in_one_file_is_found_described_and_loaded(tree: Path, data_dir: Path) -> None:
    code = """
import sys
from pathlib import Path
import cvit.data.datasets as datasets
assert Path(datasets.__file__).is_relative_to(sys.argv[1]), datasets.__file__
names = ("spots", "spots.npz", sys.argv[2] + "/spots.npz")
described = [datasets.describe(name, sys.argv[2], download=False) for name in names]
assert len({info.fingerprint for info in described}) == 1
info = described[0]
assert (info.name, info.image_size, info.in_channels, info.class_names) == ("spots", 8, 2, ("0", "1", "2"))
data = datasets.load(info)
assert data.train.images.shape == (72, 2, 8, 8) and data.test.images.shape == (18, 2, 8, 8)
assert datasets.describe("digits", sys.argv[2], download=False).fingerprint == "e6c6360373e6d5af"
for name in ("broken", "absent"):
    try:
        datasets.describe(name, sys.argv[2], download=False)
    except datasets.DataError as error:
        print(error)
"""
    done = run(tree, "-c", code, str(tree), str(data_dir))
    assert done.returncode == 0, done.stderr
    broken, absent = done.stdout.splitlines()
    assert broken == f"{data_dir}/broken.npz has no arrays `images` and `labels`"
    assert absent.endswith(
        "an .npz file, a .ts file, a Parquet file, a folder of Parquet files, an image folder or a folder of WAV "
        "recordings"
    )


def test_a_sweep_is_planned_on_data_of_the_new_format(tree: Path, data_dir: Path) -> None:
    arguments = ("--preset", "smoke", "--dataset", "spots", "--data-dir", str(data_dir), "--dry-run")
    done = run(tree, "sweeps/low_data.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "two_phase" in done.stdout and "spots" in done.stdout
    assert run(ROOT, "sweeps/low_data.py", *arguments).returncode != 0, "without its file the format is unknown"
